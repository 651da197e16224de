"""poyo_ssl_table3_full: Table 3 of POYO-SSL at its published size, for GPUs. Not run by us."""

from __future__ import annotations

from calm_jax.visual.experiment import Table
from experiments import poyo_ssl_full, poyo_ssl_table3


def table() -> Table:
    """The table at the published size."""
    return Table(
        name="poyo_ssl_table3_full",
        purpose="Table 3 of POYO-SSL at its published size.",
        lines=poyo_ssl_table3.lines(poyo_ssl_full.experiment()),
        ours=poyo_ssl_table3.OURS,
        baseline=poyo_ssl_table3.SCRATCH,
    )
