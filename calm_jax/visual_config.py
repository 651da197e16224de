"""VisualSimulation: every constant of the simulated Allen-like data set."""

from __future__ import annotations

import dataclasses

LINES = (
    "EXM1", "SLC17A7", "CUX2", "RORB", "SCNN1A", "NR5A1", "RBP4", "FEZF2", "TLX3", "NTSR1",
    "VIP", "SST", "PVALB",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class VisualSimulation:
    """An Allen-like data set: cell lines, drifting gratings, a movie; times in s, rates in Hz.

    Presets are `SMALL` (the default), `TABLE` and `FULL`. Stimuli run on a clock of
    `movie_rate`; an imaging frame is the mean over `movie_rate / rate` of its steps.
    """

    lines: tuple[str, ...] = LINES  # names of Table S3 of POYO-SSL
    containers: int = 2  # animals per line, one experiment container each
    sessions: int = 2  # per container
    cells: int = 40  # per container
    recurring: float = 0.8  # share of a container's cells found in each of its sessions
    rate: float = 10.0  # imaging frames per second; a divisor of `movie_rate`
    # stimuli
    directions: int = 8
    temporal_frequencies: tuple[float, ...] = (1.0, 4.0)
    grating_repeats: int = 5  # of every direction at every temporal frequency
    grating_blanks: int = 8
    grating_on: float = 2.0
    grating_off: float = 1.0  # grey after each
    spontaneous: float = 20.0  # grey, between the stimuli
    movie_frames: int = 900
    movie_rate: float = 30.0
    movie_repeats: int = 10  # end to end
    movie_height: int = 64  # pixels
    movie_width: int = 128
    # cells
    delay: float = 0.1  # from a stimulus to the rate it evokes
    tau_rise: float = 0.05  # of calcium
    tau_decay: float = 0.5
    running: float = 0.3  # how strongly running scales the rates (log SD)
    spread: float = 0.25  # log SD of a cell's skewness around the median of its line
    seed: int = 0


SMALL = VisualSimulation()
# Fewer cells, shown more: what a small encoder can learn within minutes. Eight lines, among
# them the four that Algorithm S1 keeps; one temporal frequency, 256 gratings a session.
TABLE = VisualSimulation(
    lines=("SLC17A7", "CUX2", "RORB", "FEZF2", "NTSR1", "VIP", "SST", "PVALB"),
    sessions=1,
    cells=48,
    rate=5.0,
    temporal_frequencies=(2.0,),
    grating_repeats=32,
)
FULL = VisualSimulation(
    containers=6,
    sessions=3,
    cells=150,
    rate=30.0,
    temporal_frequencies=(1.0, 2.0, 4.0, 8.0, 15.0),
    grating_repeats=15,
    grating_blanks=30,
    spontaneous=300.0,
    movie_height=152,
    movie_width=304,
)
