"""VisualExperiment: pretraining on one part of the animals, fine-tuning on another, as config.

One experiment is one line of Table 3 of POYO-SSL. A Table is a list of them with what the
paper reports, and says which of them is the baseline of the others.
"""

# ruff: noqa: RUF009  (defaults are frozen)
from __future__ import annotations

import dataclasses
from typing import Literal

from calm_jax.config import Data, Preprocess, Split, Training
from calm_jax.errors import ConfigError
from calm_jax.models.mlp_encoder import MlpConfig
from calm_jax.models.movie_decoder import DecoderConfig
from calm_jax.models.population_encoder import EncoderConfig
from calm_jax.models.siamese import Masking
from calm_jax.movie_losses import MovieLoss
from calm_jax.recordings.stimuli import Gratings, Movie
from calm_jax.tasks.finetuning import FineTuning
from calm_jax.tasks.latent_masking import Labels, Units

TASKS = ("gratings", "movie")


@dataclasses.dataclass(frozen=True)
class Diet:
    """Which animals pretrain and which are fine-tuned on; by cell line (section 3.1).

    Lines at or below both thresholds are predictable. Of every other line a share of the
    containers is in reserve: animals that may pretrain (reverse, mixed, random) and are never
    fine-tuned on, so that no cell is in both parts and all experiments fine-tune on the same.
    """

    # "random": as many sessions as are predictable, drawn from all that may pretrain.
    pretrain: Literal[
        "none", "predictable", "unpredictable", "inhibitory", "mixed", "random"
    ] = "predictable"
    # "excitatory": all but the inhibitory lines. "all": predictable and unpredictable.
    finetune: Literal["unpredictable", "predictable", "excitatory", "all"] = "unpredictable"
    method: Literal["gradient", "kneedle", "fixed"] = "gradient"  # the thresholds
    skewness: float | None = None  # fixed thresholds; None = those of the paper
    kurtosis: float | None = None
    reserve: float = 0.5  # of the containers of every unpredictable line
    partial: float = 0.5  # of the predictable sessions that "mixed" has too
    inhibitory: tuple[str, ...] = ("SST", "VIP", "PVALB")


@dataclasses.dataclass(frozen=True)
class VisualExperiment:
    """Everything that determines one line of the table, but for the seed of a repetition."""

    name: str
    purpose: str = ""
    seed: int = 0
    data: Data = Data(name="simulated_visual")
    preprocess: Preprocess = Preprocess()
    split: Split = Split()
    diet: Diet = Diet()
    encoder: EncoderConfig = EncoderConfig()
    encoder_kind: Literal["population", "mlp"] = "population"  # the MLP is not pretrained
    mlp: MlpConfig = MlpConfig()
    units: Units = Units()
    masking: Masking = Masking()
    labels: Labels = Labels()
    pretraining: Training = Training()
    pretraining_optimizer: Literal["lamb", "adamw"] = "lamb"  # LAMB as POYO+
    tasks: tuple[Literal["gratings", "movie"], ...] = TASKS
    gratings: Gratings = Gratings()
    gratings_tuning: FineTuning = FineTuning()
    gratings_training: Training = Training()
    shuffled_labels: bool = False  # of the gratings' training part: a control
    movie: Movie = Movie()
    decoder: DecoderConfig = DecoderConfig()
    movie_loss: MovieLoss = MovieLoss()
    movie_tuning: FineTuning = FineTuning(optimizer="adamw")
    movie_training: Training = Training()
    # As of `Experiment`: "quick" compiles in half the time programs that run slower.
    compilation: Literal["full", "quick"] = "full"


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a table, with what the paper reports (mean, half of its 95 % interval)."""

    label: str
    group: str
    experiment: VisualExperiment
    ssim: tuple[float, ...] = ()
    accuracy: tuple[float, ...] = ()
    against: str = ""  # label of the line it is compared with; "": the baseline of the table


@dataclasses.dataclass(frozen=True)
class Table:
    """Experiments side by side."""

    name: str
    purpose: str
    lines: tuple[Line, ...]
    ours: str  # label of the line that is compared
    baseline: str  # label of the line that all are compared with, but for `Line.against`


def check(experiment: VisualExperiment) -> None:
    """Raises `ConfigError` for what would only fail after hours."""
    e = experiment
    if not e.tasks:
        raise ConfigError("no task", where="tasks", expected=" or ".join(TASKS))
    if e.encoder_kind == "mlp" and (e.diet.pretrain != "none" or "gratings" in e.tasks):
        raise ConfigError(
            "the MLP encoder is not pretrained and reconstructs movies only",
            where="encoder_kind",
            found=f"diet.pretrain {e.diet.pretrain!r}, tasks {', '.join(e.tasks)}",
            expected="diet.pretrain 'none', tasks ('movie',)",
        )
    for name in ("reserve", "partial"):
        if not 0 < getattr(e.diet, name) < 1:
            raise ConfigError(
                "not a share", where=f"diet.{name}", found=getattr(e.diet, name),
                expected="between 0 and 1",
            )  # fmt: skip
    used = {"gratings_training": "gratings" in e.tasks, "movie_training": "movie" in e.tasks}
    used["pretraining"] = e.diet.pretrain != "none"
    for name, needed in used.items():
        if needed and not getattr(e, name).steps:
            raise ConfigError("give the number of steps", where=f"{name}.steps", found="none")
    if e.diet.pretrain == "none":
        for name in ("gratings_tuning", "movie_tuning"):
            if getattr(e, name).freeze != "none":
                raise ConfigError(
                    "a random encoder would be frozen",
                    where=f"{name}.freeze",
                    remedy="Pretrain, or set freeze to 'none'.",
                )


def check_table(table: Table) -> None:
    """Raises `ConfigError` for a table that cannot be made."""
    labels = [line.label for line in table.lines]
    for field in ("ours", "baseline"):
        if getattr(table, field) not in labels:
            raise ConfigError(
                "no such line", where=f"{table.name}.{field}", found=getattr(table, field),
                expected=", ".join(labels),
            )  # fmt: skip
    for line in table.lines:
        if line.against and line.against not in labels:
            raise ConfigError(
                "no such line", where=f"{table.name}, {line.label}, against", found=line.against,
                expected=", ".join(labels),
            )  # fmt: skip
    double = sorted({x for x in labels if labels.count(x) > 1})
    if double:
        raise ConfigError("two lines have one label", where=table.name, found=double[0])
    for line in table.lines:
        try:
            check(line.experiment)
        except ConfigError as e:
            raise ConfigError(f"{e}", where=f"{table.name}, {line.label}") from None
