"""Windows of a population as tokens for the population encoder; numpy, on the host.

A token is one neuron in one frame. Times are seconds from the start of the window and
stay float64 until they have become rotary codes. Batches are padded to a few lengths, so
that few shapes are compiled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from calm_jax.errors import ConfigError
from calm_jax.recordings.batches import bucket

T_MIN, T_MAX = 1e-4, 2.0627  # seconds, the shortest and longest rotary period
BUCKETS = (256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384)


def frequencies(head_width: int, t_min: float = T_MIN, t_max: float = T_MAX) -> np.ndarray:
    """(head_width / 4,) float64 angular frequencies (rad/s), the shortest period first.

    Periods are log-spaced from `t_min` to `t_max` seconds; half of a head is rotated, two
    dimensions for each of them. Rounded to float32, as the weights of torch_brain hold them.
    """
    count = head_width // 4
    periods = t_min * (t_max / t_min) ** (np.arange(count) / max(count - 1, 1))
    return (2 * np.pi / periods).astype(np.float32).astype(np.float64)


def rotary_code(times: np.ndarray, omega: np.ndarray, dtype: type = np.float32) -> np.ndarray:
    """cos and sin of times x frequencies: times (...) in s -> (..., 2, P), made in float64."""
    angle = np.asarray(times, np.float64)[..., None] * omega
    return np.stack([np.cos(angle), np.sin(angle)], axis=-2).astype(dtype)


def latent_grid(length: float, step: float, per_step: int) -> tuple[np.ndarray, np.ndarray]:
    """(index (L,) int32, times (L,) float64) of the latents of a window of `length` s.

    `per_step` latents, numbered from 0, at the centre of every `step` seconds.

    Raises:
      ConfigError: when the window is not a whole number of steps.
    """
    count = round(length / step) if step > 0 else 0
    if count < 1 or abs(count * step - length) > 1e-6 * length:
        raise ConfigError(
            "the window must be a whole number of latent steps",
            where="latent_step",
            found=f"window {length} s, step {step} s",
        )
    times = (np.arange(count) + 0.5) * step
    index = np.tile(np.arange(per_step, dtype=np.int32), count)
    return index, np.repeat(times, per_step)


# Unit dropout


def kept_density(
    x: np.ndarray, *, minimum: int = 10, mode: int = 50, tail: int = 100, peak: float = 4.0
) -> np.ndarray:
    """Density, not normalised, of the number of units that unit dropout keeps.

    0 below `minimum`; from 1 there up to `peak` at `mode`, down to 1 at `tail`, 1 beyond.
    """
    x = np.asarray(x, np.float64)
    rise = 1 + (peak - 1) * (x - minimum) / max(mode - minimum, 1)
    fall = 1 + (peak - 1) * (tail - x) / max(tail - mode, 1)
    out = np.where(x <= mode, rise, np.where(x <= tail, fall, 1.0))
    return np.where(x < minimum, 0.0, out)


def kept_units(
    rng: np.random.Generator,
    units: int,
    *,
    minimum: int = 10,
    maximum: int = 300,
    mode: int = 50,
    tail: int = 100,
    peak: float = 4.0,
) -> np.ndarray:
    """Indices, ascending, of the units that stay: `minimum` to `maximum` of `units`.

    Their number has the density `kept_density`; a population of fewer than `minimum` keeps
    all its units.
    """
    if units <= minimum:
        return np.arange(units)
    counts = np.arange(minimum, min(units, maximum) + 1)
    weight = kept_density(counts, minimum=minimum, mode=mode, tail=tail, peak=peak)
    count = rng.choice(counts, p=weight / weight.sum())
    return np.sort(rng.choice(units, count, replace=False))


# Windows


def sequential_windows(intervals: np.ndarray, length: float, step: float) -> np.ndarray:
    """(W, 2) float64 windows [start, stop) in s: every `step` within every interval.

    A last window is aligned to the end of its interval where a rest remains; intervals
    shorter than `length` give none.

    Args:
      intervals: (I, 2) float64, start and stop in s.
    """
    out = []
    for start, stop in np.asarray(intervals, np.float64).reshape(-1, 2):
        if stop - start < length - 1e-9:
            continue
        count = int(np.floor((stop - start - length) / step + 1e-9)) + 1
        starts = start + np.arange(count) * step
        if stop - length - starts[-1] > 1e-9:
            starts = np.append(starts, stop - length)
        out.append(starts)
    starts = np.concatenate(out) if out else np.zeros(0)
    return np.column_stack([starts, starts + length])


def random_windows(
    intervals: np.ndarray, length: float, rng: np.random.Generator
) -> np.ndarray:
    """(W, 2) float64 windows in random order, back to back from a random start per interval.

    An interval of duration D gives floor(D / length) windows, or one less where the random
    start takes the room.
    """
    out = []
    for start, stop in np.asarray(intervals, np.float64).reshape(-1, 2):
        if stop - start < length - 1e-9:
            continue
        jitter = rng.uniform(0, max(min(length, stop - start - length), 0.0))
        count = max(int(np.floor((stop - start - jitter) / length + 1e-9)), 1)
        out.append(start + jitter + np.arange(count) * length)
    starts = rng.permutation(np.concatenate(out)) if out else np.zeros(0)
    return np.column_stack([starts, starts + length])


# Samples and batches


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """One window of one session as tokens.

    Attributes:
      values: (S,) float32 dF/F. units: (S,) int32 rows of the unit table, 0 = none.
      times: (S,) float64 s in the window.
      sessions, tasks, query_times: (Q,) the output queries: row of the session table, task
        id from 1, s in the window.
      targets: task name -> (rows of its queries in order, values): (n,) int classes or
        (n, D) float32.
      weights: (Q,) float32.
    """

    values: np.ndarray
    units: np.ndarray
    times: np.ndarray
    sessions: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    tasks: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    query_times: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    targets: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    weights: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))


def window_tokens(
    traces: np.ndarray, mask: np.ndarray | None, times: np.ndarray, units: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(values (S,), units (S,), times (S,)) of the valid samples, frame by frame.

    Args:
      traces: (F, N). mask: (F, N) bool, or None. times: (F,) s in the window.
      units: (N,) rows of the unit table.
    """
    valid = np.ones(traces.shape, bool) if mask is None else np.asarray(mask, bool)
    frame, neuron = np.nonzero(valid)
    return (
        traces[frame, neuron].astype(np.float32),
        np.asarray(units)[neuron].astype(np.int32),
        np.asarray(times, np.float64)[frame],
    )


def collate(
    samples: Sequence[Sample],
    omega: np.ndarray,
    heads: Mapping[str, tuple[int, int]],
    *,
    tokens: Sequence[int] = BUCKETS,
    queries: Sequence[int] = (8, 16, 32, 64, 128, 256, 512),
) -> dict[str, np.ndarray]:
    """A batch of fixed shapes; what is padded has mask False, unit, session and task 0.

    Args:
      omega: of `frequencies`. heads: task name -> (id from 1, output dimensions or classes).
      tokens, queries: the lengths to pad to, as `batches.bucket` has them.

    Returns:
      values, units, mask (B, S); code (B, S, 2, P); sessions, tasks, weights (B, Q);
      query_code (B, Q, 2, P); target/NAME (B, Q) int32 or (B, Q, D) float32 per task.
    """
    size = bucket(max(len(s.values) for s in samples), tokens)
    asked = bucket(max(len(s.tasks) for s in samples), queries)
    batch = len(samples)
    pad = lambda rows, length, dtype: _padded(rows, (batch, length), dtype)
    out = {
        "values": pad([s.values for s in samples], size, np.float32),
        "units": pad([s.units for s in samples], size, np.int32),
        "mask": pad([np.ones(len(s.values), bool) for s in samples], size, bool),
        "code": _code(pad([s.times for s in samples], size, np.float64), omega),
        "sessions": pad([s.sessions for s in samples], asked, np.int32),
        "tasks": pad([s.tasks for s in samples], asked, np.int32),
        "weights": pad([s.weights for s in samples], asked, np.float32),
        "query_code": rotary_code(
            pad([s.query_times for s in samples], asked, np.float64), omega
        ),
    }
    for name, (task, width) in heads.items():
        given = [s.targets[name] for s in samples if name in s.targets]
        classes = given[0].dtype.kind in "iu" if given else width > 1
        shape = (batch, asked) if classes else (batch, asked, width)
        target = np.zeros(shape, np.int32 if classes else np.float32)
        for b, sample in enumerate(samples):
            own = np.flatnonzero(sample.tasks == task)
            if own.size:
                target[b, own] = sample.targets[name]
        out[f"target/{name}"] = target
    return out


def _code(times: np.ndarray, omega: np.ndarray) -> np.ndarray:
    """`rotary_code`, once for every time there is: the tokens of a frame share theirs."""
    seen, back = np.unique(times, return_inverse=True)
    return rotary_code(seen, omega)[back.reshape(times.shape)]


def _padded(rows: Sequence[np.ndarray], shape: tuple[int, int], dtype: type) -> np.ndarray:
    out = np.zeros(shape, dtype)
    for b, row in enumerate(rows):
        out[b, : len(row)] = row
    return out
