"""Sessions as fixed-shape batches, a pure function of (seed, step)."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from calm_jax.errors import ConfigError, RunError, SplitError
from calm_jax.recordings.preprocess import Scalers
from calm_jax.recordings.splits import PARTS, Splits


class Prepared:
    """Ranges of a store, smoothed and scaled; each is prepared once and kept.

    At most `cache_bytes` are kept, the least recently used go first. Safe to use from
    several threads.

    Attributes:
      store, splits, scalers: what it was made of.

    Raises:
      RunError: when the scalers were fitted on another split or other sessions.
    """

    def __init__(
        self, store: Any, splits: Splits, scalers: Scalers, cache_bytes: int = 2 << 30
    ) -> None:
        other = scalers.split_hash and scalers.split_hash != splits.hash
        if other or len(scalers.mean) != len(splits.sessions):
            raise RunError(
                "the scalers were fitted on another split",
                found=f"split {scalers.split_hash}, {len(scalers.mean)} sessions",
                expected=f"split {splits.hash}, {len(splits.sessions)} sessions",
                remedy="Fit them again on this split.",
            )
        self.store, self.splits, self.scalers = store, splits, scalers
        self._limit, self._used = cache_bytes, 0
        self._cache: OrderedDict[tuple, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._order: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def range(self, i: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """One whole range of session `i`: z (T, N) float32, mask (T, N) bool.

        Smoothing starts at `start`. The arrays are read-only.
        """
        key = (int(i), int(start), int(stop))
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        traces, mask = self.store.read(*key)
        z = self.scalers.apply(key[0], traces, mask)
        full = mask.all()
        # A mask that is all True takes no memory.
        mask = np.broadcast_to(np.True_, z.shape) if full else np.array(mask)
        z.flags.writeable = mask.flags.writeable = False
        size = z.nbytes + (0 if full else mask.nbytes)
        with self._lock:
            if key not in self._cache and size <= self._limit:
                self._cache[key] = (z, mask)
                self._used += size
                while self._used > self._limit:
                    _, (old, gone) = self._cache.popitem(last=False)
                    self._used -= old.nbytes + (gone.nbytes if gone.strides[0] else 0)
        return z, mask

    def window(self, i: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames [start, stop) of session `i`, cut from the range they lie in.

        Raises:
          SplitError: when no range of the split holds them.
        """
        a, b = self.range_of(i, start)
        if not start < stop <= b:
            raise SplitError(
                "a window must lie within one range of the split",
                where=f"session {self.splits.sessions[i]}",
                found=f"frames [{start}, {stop})",
            )
        z, mask = self.range(i, a, b)
        return z[start - a : stop - a], mask[start - a : stop - a]

    def range_of(self, i: int, frame: int) -> tuple[int, int]:
        """The range [start, stop) of the split of session `i` that holds `frame`.

        Raises:
          SplitError: when no range of the split holds it.
        """
        ranges = self._sorted(int(i))
        k = int(np.searchsorted(ranges[:, 0], frame, "right")) - 1
        if k < 0 or frame >= ranges[k, 1]:
            raise SplitError(
                "a window must lie within one range of the split",
                where=f"session {self.splits.sessions[i]}",
                found=f"frame {frame}, in none",
            )
        return int(ranges[k, 0]), int(ranges[k, 1])

    def _sorted(self, i: int) -> np.ndarray:
        if i not in self._order:
            ranges = np.concatenate([self.splits.parts[i][p] for p in PARTS])
            self._order[i] = ranges[np.argsort(ranges[:, 0])]
        return self._order[i]


class Windows:
    """The training windows of every epoch as index arithmetic: no state, no iterator.

    A range of L frames gives one window where L <= `window` (all of it), else
    ceil(L / window) windows of `window` frames, one in each of as many equal strata
    of the possible starts, drawn anew every epoch. Windows never leave their range.

    Args:
      ranges: (R, 3) rows (session, start, stop), as `Splits.ranges` gives them.
      window: frames, or None for whole ranges.
      seed: of the order and of the starts.

    Raises:
      SplitError: when there are no ranges.
      ConfigError: when `window` is not positive.
    """

    def __init__(self, ranges: np.ndarray, window: int | None, seed: int) -> None:
        ranges = np.asarray(ranges, np.int64).reshape(-1, 3)
        if not len(ranges):
            raise SplitError("there are no ranges to draw windows from")
        if window is not None and window < 1:
            raise ConfigError("no such window", found=window, expected=">= 1 frames")
        length = ranges[:, 2] - ranges[:, 1]
        frames = length if window is None else np.minimum(length, window)
        count = -(-length // frames)
        self._range = np.repeat(ranges, count, 0)
        self._frames = np.repeat(frames, count)
        self._slack = np.repeat(length - frames + 1, count)
        self._count = np.repeat(count, count)
        first = np.cumsum(count) - count
        self._stratum = np.arange(count.sum()) - np.repeat(first, count)
        self._seed = seed
        self._epoch = functools.lru_cache(maxsize=4)(self._draw)

    @property
    def per_epoch(self) -> int:
        """Windows in one pass over the data."""
        return int(self._frames.size)

    @property
    def longest(self) -> int:
        """Frames of the longest window."""
        return int(self._frames.max())

    def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Order (W,) and first frames (W,) of the windows of an epoch."""
        rng = np.random.default_rng([self._seed, epoch])
        order = rng.permutation(self.per_epoch)
        place = (self._stratum + rng.random(self.per_epoch)) / self._count
        offset = np.minimum((place * self._slack).astype(np.int64), self._slack - 1)
        return order, self._range[:, 1] + offset

    def at(
        self, step: int, batch: int, part: int = 0, parts: int = 1
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Session, start and stop (batch // parts,) int64 of the windows of `step`.

        Step s takes windows s * batch, s * batch + 1, ... of the endless sequence of
        shuffled epochs; host `part` of `parts` gets its share of consecutive rows.

        Raises:
          ConfigError: when the batch cannot be shared evenly.
        """
        if batch < 1 or batch % parts or not 0 <= part < parts:
            raise ConfigError(
                "the batch cannot be shared evenly",
                where="batch",
                found=f"{batch} windows, part {part} of {parts}",
                expected=f"a positive multiple of {parts}",
            )
        rows = batch // parts
        index = step * batch + part * rows + np.arange(rows)
        epoch, within = np.divmod(index, self.per_epoch)
        out = np.empty((3, rows), np.int64)
        for e in np.unique(epoch):
            order, start = self._epoch(int(e))
            here = epoch == e
            w = order[within[here]]
            out[:, here] = self._range[w, 0], start[w], start[w] + self._frames[w]
        return out[0], out[1], out[2]


def bucket(n: int, sizes: int | Sequence[int]) -> int:
    """The padded size of `n`: the next multiple of `sizes`, or the next of its entries.

    Beyond the largest entry it is the next multiple of that one. Few different sizes
    keep the number of compilations small.
    """
    if isinstance(sizes, Sequence):
        fits = [s for s in sizes if s >= n]
        if fits:
            return min(fits)
        sizes = max(sizes)
    return -(-n // sizes) * sizes


def pad_batch(
    traces: Sequence[np.ndarray],
    masks: Sequence[np.ndarray] | None = None,
    frames: int | None = None,
    neurons: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """One array from windows of different sizes, and the mask of what is real and valid.

    Shapes: traces B arrays (T_b, N_b), masks alike -> (B, frames, neurons) float32
    with 0 in the padding, mask of the same shape. `frames` and `neurons` default to
    the largest of the batch.

    Raises:
      ConfigError: when a window is larger than asked for.
    """
    most = np.max([x.shape for x in traces], axis=0)
    frames = int(most[0]) if frames is None else frames
    neurons = int(most[1]) if neurons is None else neurons
    if most[0] > frames or most[1] > neurons:
        raise ConfigError(
            "a window does not fit into the padded batch",
            found=f"{most[0]} frames x {most[1]} neurons",
            expected=f"at most {frames} x {neurons}",
        )
    out = np.zeros((len(traces), frames, neurons), np.float32)
    mask = np.zeros(out.shape, bool)
    for b, x in enumerate(traces):
        t, n = x.shape
        out[b, :t, :n] = x
        mask[b, :t, :n] = True if masks is None else masks[b]
    return out, mask


def choose_neurons(n: int, k: int, seed: int, step: int, row: int) -> np.ndarray:
    """min(n, k) different neurons of `n`, sorted; a pure function of (seed, step, row).

    `row` is the row of the global batch, so that hosts draw what one would.
    """
    if n <= k:
        return np.arange(n)
    rng = np.random.default_rng([seed, step, row])
    return np.sort(rng.choice(n, k, replace=False, shuffle=False))


def window_batch(
    prepared: Prepared,
    session: np.ndarray,
    start: np.ndarray,
    stop: np.ndarray,
    *,
    frames: int | None = None,
    neurons: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    step: int = 0,
    first_row: int = 0,
) -> dict[str, np.ndarray]:
    """The windows as one padded batch, with at most `limit` neurons of each, at random.

    Returns `traces` (B, frames, neurons) float32, `mask` alike, `session` (B,) int32,
    `neuron` (B, neurons) int32: rows in a table of all neurons of the store, 0 in the
    padding, and `real` (B, neurons) bool, False in the padding.
    """
    traces, masks, rows = [], [], []
    for b, (i, a, z) in enumerate(zip(session, start, stop, strict=True)):
        x, m = prepared.window(int(i), int(a), int(z))
        n = x.shape[1]
        take = choose_neurons(n, limit or n, seed, step, first_row + b)
        traces.append(x[:, take])
        masks.append(m[:, take])
        rows.append(prepared.store.neuron_offset(int(i)) + take)
    x, mask = pad_batch(traces, masks, frames, neurons)
    neuron = np.zeros((len(rows), x.shape[2]), np.int32)
    real = np.zeros(neuron.shape, bool)
    for b, row in enumerate(rows):
        neuron[b, : row.size], real[b, : row.size] = row, True
    session = np.asarray(session, np.int32)
    return {
        "traces": x,
        "mask": mask,
        "session": session,
        "neuron": neuron,
        "real": real,
    }
