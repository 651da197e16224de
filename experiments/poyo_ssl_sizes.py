"""poyo_ssl_sizes: the encoder's width with and without pretraining (Fig. 5 of POYO-SSL).

    make table EXP=poyo_ssl_sizes SEEDS=3
"""

from __future__ import annotations

import dataclasses

from calm_jax.visual.experiment import Line, Table
from experiments import poyo_ssl

WIDTHS = (16, 32, 64)
DIETS = {
    "predictable": {"pretrain": "predictable"},
    "mixed": {"pretrain": "mixed"},
    "unpredictable": {"pretrain": "unpredictable"},
    "from scratch": {"pretrain": "none", "finetune": "all"},
}


def table() -> Table:
    """Every diet at every width."""
    base = poyo_ssl.experiment()
    lines = [
        Line(
            label=f"{label}, width {width}",
            group=label,
            experiment=dataclasses.replace(
                base,
                name=f"poyo_ssl_{label.replace(' ', '_')}_{width}",
                tasks=("movie",),
                encoder=dataclasses.replace(base.encoder, width=width),
                diet=dataclasses.replace(base.diet, **diet),
            ),
        )
        for label, diet in DIETS.items()
        for width in WIDTHS
    ]
    return Table(
        name="poyo_ssl_sizes",
        purpose="Width of the encoder, with and without pretraining.",
        lines=tuple(lines),
        ours=f"predictable, width {WIDTHS[-1]}",
        baseline=f"from scratch, width {WIDTHS[-1]}",
    )
