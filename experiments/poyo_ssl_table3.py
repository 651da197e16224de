"""poyo_ssl_table3: Table 3 of POYO-SSL with its ablations and the controls that it lacks.

    make table EXP=poyo_ssl_table3 SEEDS=3

Every line derives from `poyo_ssl`. Reverse and mixed pretraining use animals in reserve, so that
all lines but "reverse" and the two of other thresholds are scored on the same cells. Decoders
have as many parameters (3 %). The published MLP encoder is "pretrained"; what that means is
not told, and ours is not.
Cost: docs/results.md.
"""

from __future__ import annotations

import dataclasses

from calm_jax.models.movie_decoder import matched
from calm_jax.tasks.finetuning import FineTuning
from calm_jax.visual.experiment import Line, Table, VisualExperiment
from experiments import poyo_ssl

OURS, SCRATCH = "POYO-SSL", "from scratch, all animals"
SAME = "from scratch, same animals"
UNSEEN = "frames never seen, from scratch, all animals"


def lines(base: VisualExperiment) -> tuple[Line, ...]:
    """The lines of the table, derived from an experiment."""
    out: list[Line] = []

    def line(
        group: str, label: str, name: str, ssim: tuple = (), accuracy: tuple = (),
        against: str = "", **changes: object,
    ) -> None:  # fmt: skip
        nested = {}
        for field, value in changes.items():
            if isinstance(value, dict):
                value = dataclasses.replace(getattr(base, field), **value)
            nested[field] = value
        made = dataclasses.replace(base, name=f"{base.name}_{name}", purpose=label, **nested)
        out.append(Line(label, group, made, ssim, accuracy, against))

    scratch = {"pretrain": "none", "finetune": "all"}
    line("main", OURS, "ours", (0.593, 0.013), (0.555, 0.022))
    line("main", SCRATCH, "scratch", (0.528, 0.023), (0.492, 0.041), diet=scratch)

    movie = {"tasks": ("movie",)}
    group = "architecture"
    line(group, "MLP encoder, MLP decoder", "mlp_mlp", (0.449, 0.022), **movie,
         encoder_kind="mlp", diet={"pretrain": "none"},
         decoder=matched("mlp", base.decoder, base.mlp.width))  # fmt: skip
    line(group, "encoder, MLP decoder", "mlp", (0.503, 0.019), **movie,
         decoder=matched("mlp", base.decoder, base.encoder.width))  # fmt: skip
    line(group, "U-Net without skips", "no_skip", (0.466, 0.047), **movie,
         decoder=matched("no_skip", base.decoder, base.encoder.width))  # fmt: skip

    group = "data selection"
    line(group, "inhibitory only", "inhibitory", (0.544, 0.030), (0.537, 0.025),
         diet={"pretrain": "inhibitory", "finetune": "excitatory"})  # fmt: skip
    line(group, "reverse", "reverse", (0.489, 0.032), (0.213, 0.037),
         diet={"pretrain": "unpredictable", "finetune": "predictable"})  # fmt: skip
    line(group, "mixed", "mixed", (0.543, 0.049), (0.313, 0.012), diet={"pretrain": "mixed"})

    group = "objective"
    line(group, "random masking", "random_masking", (0.540, 0.017), (0.548, 0.028),
         masking={"kind": "random"})  # fmt: skip
    line(group, "masking only", "masking_only", (0.496, 0.050), (0.099, 0.019),
         masking={"label_weight": 0.0})  # fmt: skip
    line(group, "CE weight 0.1", "ce_0.1", (0.552, 0.052), (0.482, 0.033),
         masking={"label_weight": 0.1})  # fmt: skip
    line(group, "CE weight 0.001", "ce_0.001", (0.532, 0.042), (0.469, 0.015),
         masking={"label_weight": 0.001})  # fmt: skip
    line(group, "CE only", "ce_only", (0.506, 0.057), (0.452, 0.026),
         masking={"masking_weight": 0.0})  # fmt: skip

    group = "controls (ours)"
    line(group, SAME, "scratch_same", diet={"pretrain": "none"})
    line(group, "random animals, as many", "random", diet={"pretrain": "random"})
    line(group, "shuffled labels", "shuffled", tasks=("gratings",), shuffled_labels=True)
    for skewness, kurtosis in ((2.3, 15.0), (5.2, 70.0)):
        fixed = {"method": "fixed", "skewness": skewness, "kurtosis": kurtosis}
        line(group, f"thresholds {skewness:g}, {kurtosis:g}", f"threshold_{skewness:g}", diet=fixed)

    group = "frames never seen (ours)"
    unseen = {**movie, "movie": {"holdout": "frame_block_holdout"}}
    line(group, "frames never seen, POYO-SSL", "unseen", **unseen, against=UNSEEN)
    line(group, UNSEEN, "unseen_scratch", **unseen, diet=scratch, against=UNSEEN)

    group = "frozen encoder (Fig. S6)"
    for part in ("all", "first", "middle", "last"):
        label = "all frozen" if part == "all" else f"{part} third frozen"
        line(group, label, f"frozen_{part}", gratings_tuning={"freeze": part},
             movie_tuning=FineTuning(freeze=part, optimizer="adamw"))  # fmt: skip
    return tuple(out)


def apart(made: tuple[Line, ...]) -> tuple[Line, ...]:
    """Gratings, then the movie of the lines that it says most about, as lines of their own.

    A step of the U-Net costs CPUs five steps of the encoder: all lines have gratings,
    the movie is for the main lines, the architectures and the frames never seen.
    """
    only = lambda x, task, **changes: dataclasses.replace(
        x, experiment=dataclasses.replace(x.experiment, tasks=(task,), **changes)
    )
    gratings = [
        dataclasses.replace(only(x, "gratings"), ssim=())
        for x in made if "gratings" in x.experiment.tasks
    ]  # fmt: skip
    movie = [
        dataclasses.replace(
            only(x, "movie", name=f"{x.experiment.name}_movie"), label=f"movie: {x.label}",
            group="movie", accuracy=(), against=f"movie: {x.against or SCRATCH}",
        )
        for x in made
        if x.group in ("main", "architecture", "frames never seen (ours)")
        or x.label == SAME
    ]  # fmt: skip
    return (*gratings, *movie)


def table() -> Table:
    """The table at the size for two CPU cores."""
    return Table(
        name="poyo_ssl_table3",
        purpose="Table 3 of POYO-SSL on the simulated Allen-like data set.",
        lines=apart(lines(poyo_ssl.experiment())),
        ours=OURS,
        baseline=SCRATCH,
    )
