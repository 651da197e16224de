"""poyo_ssl_long: the movie lines of Table 3 trained to where SSIM stops rising, for a GPU.

    make table EXP=poyo_ssl_long SEEDS=3

Four times the windows of `poyo_ssl_table3` (4,000 steps of 32 in place of 2,000 of 16), at the
same sizes; chosen on the validation part. Frames never seen: 1,000 steps at a lower rate, for
SSIM of the validation frames, which are never seen either, falls from there.
Cost: docs/results.md.
"""

from __future__ import annotations

import dataclasses

from calm_jax.visual.experiment import Line, Table
from experiments import poyo_ssl, poyo_ssl_table3


def table() -> Table:
    """The movie lines, trained longer."""
    base = poyo_ssl.experiment()
    long = dataclasses.replace(base.movie_training, steps=4000, batch=32, eval_every=1000)
    base = dataclasses.replace(base, movie_training=long)
    lines = poyo_ssl_table3.apart(poyo_ssl_table3.lines(base))
    return Table(
        name="poyo_ssl_long",
        purpose="Movie lines of Table 3 of POYO-SSL, trained longer.",
        lines=tuple(_own(line) for line in lines if line.group == "movie"),
        ours=f"movie: {poyo_ssl_table3.OURS}",
        baseline=f"movie: {poyo_ssl_table3.SCRATCH}",
    )


def _own(line: Line) -> Line:
    """The line under a name of this table; frames never seen with a training of their own."""
    e = dataclasses.replace(line.experiment, name=f"{line.experiment.name}_long")
    if e.movie.holdout == "frame_block_holdout":
        gentle = dataclasses.replace(
            e.movie_training, steps=1000, batch=16, learning_rate=5e-4, eval_every=100
        )
        e = dataclasses.replace(e, movie_training=gentle)
    return dataclasses.replace(line, experiment=e)
