"""An Allen-like data set: cell lines with the published statistics, gratings and a movie.

Every cell is a Gabor filter with a preferred direction. Its rate follows drifting gratings
(tuning to direction and temporal frequency), a movie (half-rectified and energy responses of
the filter) and running; Poisson events, calcium and noise follow. Of each cell the
non-linearity of the indicator (a power) and the noise are chosen so that its dF/F has the
skewness and kurtosis drawn for it around the medians of its line (Table S3 of POYO-SSL).
Inhibitory-like lines are broadly tuned and busy, excitatory-like lines selective and sparse.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from scipy.signal import lfilter
from scipy.stats import norm

from calm_jax.recordings.images import resized
from calm_jax.recordings.session import Channel, Intervals, NeuronTable, Session
from calm_jax.simulate.indicator import calibrated
from calm_jax.simulate.movie import natural_movie
from calm_jax.simulate.programme import GRATINGS, MOVIE, check, line_of, programme
from calm_jax.visual_config import VisualSimulation


@dataclasses.dataclass(frozen=True, eq=False)
class Cells:
    """The cells of a container. N cells.

    Attributes:
      direction: (N,) preferred direction (rad). frequency: (N,) preferred temporal
        frequency (Hz). sharpness: (N,) von Mises kappa. opposite: (N,) response to the
        opposite direction, 0 to 1. simple: (N,) 0 = energy, 1 = half-rectified.
      filters: (2, N, h, w) float32, even and odd Gabor on the screen.
      level: (N,) gain of the rates. running: (N,) coupling to running.
      skewness, kurtosis: (N,) targets.
    """

    direction: np.ndarray
    frequency: np.ndarray
    sharpness: np.ndarray
    opposite: np.ndarray
    simple: np.ndarray
    filters: np.ndarray
    level: np.ndarray
    running: np.ndarray
    skewness: np.ndarray
    kurtosis: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class SimulatedVisual:
    """One session with what a recording hides. T frames, N neurons, F clock steps.

    Attributes:
      config, number: what it was made from. line, container, session: its place.
      traces: (T, N) float32 dF/F. clean: (T, N) float32 without noise.
      rates: (F, N) float32 Hz on the clock of the stimuli. events: (F, N) float32.
      speed: (F,) float32 running speed (cm/s).
      intervals: stimulus tables. cells: their rows in the container. tuning: of those cells.
    """

    config: VisualSimulation
    number: int
    line: str
    container: int
    session: int
    traces: np.ndarray
    clean: np.ndarray
    rates: np.ndarray
    events: np.ndarray
    speed: np.ndarray
    intervals: dict[str, Intervals]
    cells: np.ndarray
    tuning: Cells


SCREEN = (32, 64)  # resolution of the filters


@functools.lru_cache(maxsize=2)
def movie(config: VisualSimulation) -> np.ndarray:
    """(frames, height, width) uint8, read-only: the movie that all sessions saw."""
    out = natural_movie(
        config.movie_frames,
        config.movie_height,
        config.movie_width,
        rate=config.movie_rate,
        seed=config.seed,
    )
    out.flags.writeable = False
    return out


@functools.lru_cache(maxsize=2)
def _screen(config: VisualSimulation) -> np.ndarray:
    """(frames, pixels) float32, the movie as the filters see it: contrast, mean 0."""
    x = resized(movie(config), *SCREEN)
    return ((x - x.mean()) / x.std()).reshape(len(x), -1)


def draw_cells(config: VisualSimulation, name: str, container: int) -> Cells:
    """The cells of container number `container`; the same in all of its sessions."""
    line, n = line_of(name), config.cells
    rng = np.random.default_rng([config.seed, 1, container])
    direction = rng.integers(0, config.directions, n) * (2 * np.pi / config.directions)
    direction = direction + rng.normal(0, 0.15, n)
    h, w = SCREEN
    y, x = np.arange(h)[:, None], np.arange(w)[None]
    cy, cx = rng.uniform(2, h - 2, (n, 1, 1)), rng.uniform(2, w - 2, (n, 1, 1))
    size = np.exp(rng.normal(np.log(4.0), 0.35, (n, 1, 1)))
    cycles = np.exp(rng.normal(np.log(0.6), 0.4, (n, 1, 1))) / (2 * size)  # per pixel
    along = (x - cx) * np.cos(direction)[:, None, None] + (y - cy) * np.sin(direction)[
        :, None, None
    ]
    window = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * size**2))
    phase = rng.uniform(0, 2 * np.pi, (n, 1, 1))
    pair = np.stack([window * np.cos(2 * np.pi * cycles * along + phase + s)
                     for s in (0, np.pi / 2)])  # fmt: skip
    pair /= np.sqrt((pair**2).sum((2, 3), keepdims=True))
    # Quantiles of the normal distribution: few cells have the median of the line too.
    spread = np.exp(config.spread * rng.permutation(norm.ppf((np.arange(n) + 0.5) / n)))
    skew, kurt = line.skewness * spread, 3 + (line.kurtosis - 3) * spread**2
    return Cells(
        direction=direction,
        frequency=rng.choice(config.temporal_frequencies, n),
        sharpness=line.sharpness * np.exp(rng.normal(0, 0.3, n)),
        opposite=rng.uniform(0.0, 0.6, n),
        simple=rng.beta(0.8, 0.8, n),
        filters=pair.astype(np.float32),
        level=np.exp(rng.normal(0, 0.3, n)),
        running=rng.normal(1.0, 0.5, n),
        skewness=skew,
        kurtosis=np.maximum(kurt, skew**2 + 1.5),
    )


def take(cells: Cells, rows: np.ndarray) -> Cells:
    """Some of the cells."""
    pick = lambda k, v: v[:, rows] if k == "filters" else v[rows]
    return Cells(**{f.name: pick(f.name, getattr(cells, f.name))
                    for f in dataclasses.fields(Cells)})  # fmt: skip


def grating_drive(cells: Cells, direction: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    """(R, N) in [0, 1]: the response to gratings of directions (rad) and frequencies (Hz) (R,)."""
    apart = direction[:, None] - cells.direction
    bump = lambda d: np.exp(cells.sharpness * (np.cos(d) - 1))
    tuned = np.maximum(bump(apart), cells.opposite * bump(apart - np.pi))
    octaves = np.log2(frequency[:, None] / cells.frequency)
    return tuned * np.exp(-(octaves**2) / (2 * 1.0**2))


def movie_drive(config: VisualSimulation, cells: Cells) -> np.ndarray:
    """(movie frames, N) float32 >= 0 with a 95th percentile of 1: the response to each frame."""
    screen = _screen(config)
    n = cells.direction.size
    even, odd = (screen @ cells.filters[k].reshape(n, -1).T for k in (0, 1))
    energy, half = np.hypot(even, odd), np.maximum(even, 0) * np.sqrt(2)
    drive = (1 - cells.simple) * energy + cells.simple * half
    # Selective lines answer to the strongest of what they see only.
    drive = drive ** (1 + 0.5 * np.log1p(cells.sharpness))
    return (drive / np.maximum(np.percentile(drive, 95, axis=0), 1e-9)).astype(np.float32)


def place(config: VisualSimulation, number: int) -> tuple[str, int, int]:
    """(line, container, session of it) of session `number`."""
    container, session = divmod(number, config.sessions)
    return config.lines[container // config.containers], container, session


def count(config: VisualSimulation) -> int:
    """Sessions of the data set."""
    return len(config.lines) * config.containers * config.sessions


def simulate(config: VisualSimulation, number: int) -> SimulatedVisual:
    """Simulates session `number`; a pure function of its arguments.

    Order: half of the gratings, spontaneous, the movie `movie_repeats` times end to end,
    spontaneous, the other half of the gratings.

    Raises:
      ConfigError: when a field makes no simulation.
    """
    check(config)
    name, container, session = place(config, number)
    line, every = line_of(name), draw_cells(config, name, container)
    rng = np.random.default_rng([config.seed, 2, number])
    kept = max(round(config.recurring * config.cells), 1)
    rows = np.sort(rng.choice(config.cells, kept, replace=False))
    cells = take(every, rows)
    shown, total = programme(config, rng)
    clock, n = config.movie_rate, rows.size
    drive = np.zeros((total, n), np.float32)
    lag = round(config.delay * clock)
    gratings = shown[GRATINGS]
    real = np.flatnonzero(np.isfinite(gratings.columns["orientation"]))
    tuned = grating_drive(
        cells,
        np.deg2rad(gratings.columns["orientation"][real]),
        gratings.columns["temporal_frequency"][real],
    )
    on = round(config.grating_on * clock)
    first = np.rint(gratings.start[real] * clock).astype(int) + lag
    at = first[:, None] + np.arange(on)
    drive[np.minimum(at, total - 1)] = tuned[:, None]
    table = shown[MOVIE]
    at = np.rint(table.start * clock).astype(int) + lag
    drive[np.minimum(at, total - 1)] = movie_drive(config, cells)[table.columns["frame"]]
    walk = lfilter([1], [1, -np.exp(-1 / (5 * clock))], rng.standard_normal(total))
    walk = (walk / walk.std()).astype(np.float32)
    scale = np.exp(config.running * cells.running * walk[:, None]).astype(np.float32)
    rates = ((line.baseline + line.peak * drive) * scale * cells.level).astype(np.float32)
    spikes = rng.poisson(rates / clock)
    # A sum of k gamma variates of shape b is one of shape k b; mean 1 per event.
    shape = np.maximum(spikes, 1) * line.burst
    events = np.where(spikes, rng.standard_gamma(shape) / line.burst, 0).astype(np.float32)
    per = round(clock / config.rate)
    calcium = _calcium(config, events)
    frames = total // per
    calcium = calcium[: frames * per].reshape(frames, per, n).mean(1)
    clean, traces = calibrated(calcium, cells.skewness, cells.kurtosis, rng)
    return SimulatedVisual(
        config, number, name, container, session, traces, clean, rates, events,
        (np.maximum(walk, 0) * 12).astype(np.float32), shown, rows, cells,
    )  # fmt: skip


def _calcium(config: VisualSimulation, events: np.ndarray) -> np.ndarray:
    """Events (F, N) through exp(-t / decay) - exp(-t / rise), in float32."""
    slow, fast = (np.exp(-1 / (t * config.movie_rate)) for t in (config.tau_decay, config.tau_rise))
    b, a = np.float32([slow - fast]), np.float32([1, -(slow + fast), slow * fast])
    return lfilter(b, a, events, axis=0)


def to_session(simulated: SimulatedVisual) -> Session:
    """The recording as the Allen reader would give it; ids recur within a container."""
    c = simulated.config
    n = simulated.cells.size
    animal = f"{simulated.line.lower()}{simulated.container % c.containers}"
    steps = np.arange(simulated.speed.size) / c.movie_rate
    columns = {
        "cell_line": np.full(n, simulated.line),
        "area": np.full(n, "simulated"),
        "container": np.full(n, f"c{simulated.container}"),
    }
    ids = (simulated.cells + 1000 * (simulated.container + 1)).astype(str)
    return Session(
        traces=simulated.traces,
        rate=c.rate,
        intervals=simulated.intervals,
        behavior={"running_speed": Channel(simulated.speed, times=steps, unit="cm/s")},
        neurons=NeuronTable(ids, columns),
        unit="dF/F",
        animal=animal,
        session=f"{animal}_{'ABCDEFGHIJ'[simulated.session % 10]}",
        notes=(f"simulated; container c{simulated.container}, cell line {simulated.line}",),
    )
