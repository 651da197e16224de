"""poyo_ssl_short: does pretraining save steps? Gratings after short fine-tunings.

    make table EXP=poyo_ssl_short SEEDS=3

On the simulation the lines of Table 3 end at the same accuracy, that of a linear read-out. Here
fine-tuning has a tenth to two fifths of its steps, pretrained and from scratch on the same
animals, so that both see the same labels as often. All lines of a seed share one pretraining.
Cost: docs/results.md.
"""

from __future__ import annotations

import dataclasses

from calm_jax.visual.experiment import Line, Table
from experiments import poyo_ssl

STEPS = (50, 100, 200)


def table() -> Table:
    """Pretrained and not, after each number of steps."""
    base = dataclasses.replace(poyo_ssl.experiment(), tasks=("gratings",))
    lines = []
    for steps in STEPS:
        training = dataclasses.replace(base.gratings_training, steps=steps, eval_every=steps)
        scratch = f"from scratch, same animals, {steps} steps"
        for label, diet in ((f"POYO-SSL, {steps} steps", {}), (scratch, {"pretrain": "none"})):
            name = f"poyo_ssl_short_{'scratch' if diet else 'ours'}_{steps}"
            made = dataclasses.replace(
                base, name=name, purpose=label, gratings_training=training,
                diet=dataclasses.replace(base.diet, **diet),
            )  # fmt: skip
            lines.append(Line(label, f"{steps} steps", made, against=scratch))
    return Table(
        name="poyo_ssl_short",
        purpose="Gratings after short fine-tunings, pretrained and from scratch.",
        lines=tuple(lines),
        ours=f"POYO-SSL, {STEPS[1]} steps",
        baseline=f"from scratch, same animals, {STEPS[1]} steps",
    )
