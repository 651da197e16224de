"""Stimulus presentations as parts of recordings: gratings by trial, movies by repeat or block.

Both kinds of split come back as `Splits`, so that scalers, prepared traces and windows obey
them as any other. Sessions that never showed the stimulus keep blocks in time and are not
trained on.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from calm_jax import config
from calm_jax.errors import ConfigError, SplitError
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.session import Intervals, Session
from calm_jax.recordings.splits import PARTS, Splits, make_split


@dataclasses.dataclass(frozen=True)
class Gratings:
    """Which presentations are decoded, and what of them."""

    intervals: str = "drifting_gratings"
    column: str = "orientation"  # its values are the classes; NaN (a blank) is left out
    tail: float = 0.25  # s after the end of a presentation that still belong to it


@dataclasses.dataclass(frozen=True)
class Movie:
    """Which movie is reconstructed, and which of its frames are held out.

    "repeat_holdout" (the paper): whole repeats are held out. Every test frame was seen in
    training, in other repeats. "frame_block_holdout": blocks of the movie are held out in
    every repeat of every session, so that test frames were never seen.
    """

    name: str = "natural_movie_one"
    holdout: Literal["repeat_holdout", "frame_block_holdout"] = "repeat_holdout"
    blocks: int = 12  # of the movie, frame_block_holdout
    gap: float = 0.5  # s at the start of a range after one of another part, left out
    lead: float = 0.25  # s of a window before the onset of its frame
    file: str | None = None  # images, where the data set does not have them


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """Presentations that lie, window and all, in one part. R rows.

    Attributes:
      session: (R,) int64. start: (R,) int64, first imaging frame of the window.
      query: (R,) float64, s from the first frame of the window to what is asked for.
      label: (R,) int64, class or movie frame. repeat: (R,) int64, 0 for gratings.
    """

    session: np.ndarray
    start: np.ndarray
    query: np.ndarray
    label: np.ndarray
    repeat: np.ndarray

    def __len__(self) -> int:
        return int(self.session.size)

    def take(self, rows: np.ndarray) -> Shown:
        """Some of the rows."""
        return Shown(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))


# Gratings


def classes(store: Any, gratings: Gratings, index: Sequence[int] | None = None) -> np.ndarray:
    """(C,) the values of the column that were shown in any session, ascending.

    Raises:
      ConfigError: when there are fewer than two.
    """
    found = []
    for i in range(len(store.sessions)) if index is None else index:
        table = _table(store.session(i), gratings.intervals, gratings.column)
        if table is not None:
            found.append(_values(table, gratings.column))
    values = np.unique(np.concatenate(found)) if found else np.zeros(0)
    values = values[np.isfinite(values)]
    if values.size < 2:
        raise ConfigError(
            "no gratings to tell apart",
            where="gratings",
            found=f"{values.size} values of {gratings.intervals}/{gratings.column}",
            expected="presentations with at least two values",
        )
    return values


def gratings_split(
    store: Any, gratings: Gratings, split: config.Split, held_out: Sequence[str] = ()
) -> Splits:
    """Parts by presentation: of each class in each session the fractions of `split`.

    A presentation is one range, with `tail` seconds after it unless the next one begins.
    Sessions without gratings are never trained on.

    Raises:
      SplitError: when a session has fewer than three presentations, or none has any.
    """

    def label(session: Session) -> np.ndarray | None:
        table = _table(session, gratings.intervals, gratings.column)
        if table is None:
            return None
        value = _values(table, gratings.column)
        rng = _random(session, split.seed)
        part = np.full(value.size, -1)
        for v in np.unique(value[np.isfinite(value)]):
            rows = np.flatnonzero(value == v)
            part[rows] = _shares(rows.size, split, rng)
        if not all((part == k).any() for k in range(3)):
            # Few of each class: the fractions are kept over all classes together.
            rows = np.flatnonzero(np.isfinite(value))
            part[rows] = _shares(rows.size, split, rng)
        # A number of its own for every presentation: ranges of neighbours stay apart.
        key = np.where(part >= 0, 3 * np.arange(value.size) + part, -1)
        return _spread(session, table, key, gratings.tail)

    return _made(store, label, held_out, gratings.intervals, separate=True, gap=0.0)


def gratings_shown(
    store: Any, splits: Splits, gratings: Gratings, values: np.ndarray, window: float, part: str
) -> Shown:
    """The presentations of a part: windows in the middle of their range, query in the middle.

    Args:
      values: (C,) of `classes`. window: s.
    """
    rows = []
    for i in splits.training_index:
        session = store.session(i)
        table = _table(session, gratings.intervals, gratings.column)
        value, times = _values(table, gratings.column), session.times
        frames = window_frames(session.rate, window)
        ranges = splits.parts[i][part]
        ranges = ranges[ranges[:, 1] - ranges[:, 0] >= frames]
        middle = (times[ranges[:, 0]] + times[ranges[:, 1] - 1]) / 2
        row = np.searchsorted(table.start, middle, "right") - 1
        start = (ranges[:, 0] + ranges[:, 1] - frames) // 2
        label = np.searchsorted(values, value[row])
        n = len(ranges)
        rows.append((np.full(n, i), start, np.full(n, window / 2), label, np.zeros(n, int)))
    return _shown(rows)


# Movies


def movie_split(
    store: Any, movie: Movie, split: config.Split, held_out: Sequence[str] = ()
) -> Splits:
    """Parts of the stretches in which the movie was shown; see `Movie`.

    Blocks are the same in all sessions: a frame that is held out is held out everywhere.
    Ranges of one part that follow each other are one range.

    Raises:
      SplitError: fewer than three repeats or blocks; a part of a session is empty.
    """
    sessions = [store.session(i) for i in range(len(store.sessions))]
    tables = [_table(s, movie.name, "frame") for s in sessions]
    count = 1 + max((int(t.columns["frame"].max()) for t in tables if t is not None), default=-1)
    blocks = _blocks(count, movie, split) if movie.holdout == "frame_block_holdout" else None

    def label(session: Session) -> np.ndarray | None:
        table = _table(session, movie.name, "frame")
        if table is None:
            return None
        frame = table.columns["frame"]
        if blocks is not None:
            key = np.where(frame >= 0, blocks[np.maximum(frame, 0)], -1)
        else:
            repeat = _repeat(table)
            repeats = int(repeat.max()) + 1
            if repeats < 3:
                raise SplitError(
                    "too few repeats of the movie for three parts",
                    where=f"session {session.session}",
                    found=repeats,
                    expected="at least 3",
                    remedy="Leave the session out, or hold out blocks of frames.",
                )
            part = _shares(repeats, split, _random(session, split.seed))
            key = np.where(frame >= 0, part[repeat], -1)
        return _spread(session, table, key, 0.0)

    return _made(store, label, held_out, movie.name, separate=False, gap=movie.gap)


def movie_shown(store: Any, splits: Splits, movie: Movie, window: float, part: str) -> Shown:
    """The movie frames of a part whose window lies in one range of it.

    The window starts `lead` seconds before the onset of its frame, at the imaging frame then.
    """
    rows = []
    for i in splits.training_index:
        session = store.session(i)
        table = _table(session, movie.name, "frame")
        times, frames = session.times, window_frames(session.rate, window)
        start = np.searchsorted(times, table.start - movie.lead - 1e-9)
        ranges = splits.parts[i][part]
        at = np.searchsorted(ranges[:, 0], start, "right") - 1
        inside = (at >= 0) & (start + frames <= ranges[np.maximum(at, 0), 1])
        inside &= table.columns["frame"] >= 0
        # The frame itself must be shown in the part too, not only its window lie there.
        onset = np.searchsorted(times, table.start - 1e-9)
        inside &= (onset < ranges[np.maximum(at, 0), 1]) & (onset >= ranges[np.maximum(at, 0), 0])
        keep = np.flatnonzero(inside)
        rows.append(
            (
                np.full(keep.size, i),
                start[keep],
                table.start[keep] - times[start[keep]],
                table.columns["frame"][keep],
                _repeat(table)[keep],
            )
        )
    return _shown(rows)


def _blocks(count: int, movie: Movie, split: config.Split) -> np.ndarray:
    """(count,) part 0, 1, 2 of every movie frame."""
    if movie.blocks < 3 or count < movie.blocks:
        raise SplitError(
            "the movie cannot be cut so",
            where="movie.blocks",
            found=f"{movie.blocks} blocks of {count} frames",
            expected="at least 3 blocks",
        )
    part = _shares(movie.blocks, split, np.random.default_rng([split.seed, 900]))
    return part[np.arange(count) * movie.blocks // count]


# Common parts


def window_frames(rate: float, window: float) -> int:
    """Imaging frames of a window of `window` seconds."""
    return max(round(window * rate), 1)


def _table(session: Session, name: str, column: str) -> Intervals | None:
    table = session.intervals.get(name)
    if table is None or column not in table.columns or not len(table.start):
        return None
    order = np.argsort(table.start, kind="stable")
    if (order == np.arange(order.size)).all():
        return table
    columns = {k: v[order] for k, v in table.columns.items()}
    return Intervals(table.start[order], table.stop[order], columns)


def _values(table: Intervals, column: str) -> np.ndarray:
    try:
        return np.asarray(table.columns[column], np.float64)
    except (TypeError, ValueError):
        raise ConfigError(
            "a column of numbers is needed", where=f"gratings.column {column!r}"
        ) from None


def _repeat(table: Intervals) -> np.ndarray:
    """(R,) how many times each row's frame was shown before."""
    if "repeat" in table.columns:
        return np.asarray(table.columns["repeat"], np.int64)
    frame = np.asarray(table.columns["frame"])
    order = np.argsort(frame, kind="stable")
    out = np.empty(frame.size, np.int64)
    out[order] = np.arange(frame.size) - np.searchsorted(frame[order], frame[order])
    return out


def _random(session: Session, seed: int) -> np.random.Generator:
    name = f"{session.animal}\0{session.session}".encode()
    return np.random.default_rng([seed, int.from_bytes(hashlib.sha256(name).digest()[:8], "big")])


def _shares(n: int, split: config.Split, rng: np.random.Generator) -> np.ndarray:
    """(n,) parts 0, 1, 2 in random order; valid and test get at least one each of three."""
    test = max(round(n * split.test), 1) if n >= 3 else 0
    valid = max(round(n * split.valid), 1) if n >= 2 else 0
    part = np.zeros(n, np.int64)
    order = rng.permutation(n)
    part[order[:test]] = 2
    part[order[test : test + valid]] = 1
    return part


def _spread(session: Session, table: Intervals, key: np.ndarray, tail: float) -> np.ndarray:
    """(T,) the key of the row that is shown at each imaging frame, -1 where none is."""
    usual = float(np.median(table.stop - table.start))
    # Rows that follow each other within an imaging frame leave no hole.
    reach = table.stop + max(tail, 0.5 * usual if usual < 3 / session.rate else 0.0)
    row = np.searchsorted(table.start, session.times + 1e-9, "right") - 1
    inside = (row >= 0) & (session.times < reach[np.maximum(row, 0)] - 1e-9)
    return np.where(inside, key[np.maximum(row, 0)], -1)


def _made(
    store: Any, label: Any, held_out: Sequence[str], name: str, *, separate: bool, gap: float
) -> Splits:
    """The Splits of keys per imaging frame: part = key, or key mod 3 where rows are apart."""
    parts, training = [], []
    held_out = tuple(dict.fromkeys(held_out))
    for i, info in enumerate(store.sessions):
        session = store.session(i)
        key = label(session)
        if key is None:
            parts.append(make_split(MemoryStore([session]), config.Split()).parts[0])
            continue
        edge = np.flatnonzero(np.diff(key)) + 1
        start = np.concatenate([[0], edge])
        stop = np.concatenate([edge, [key.size]])
        value = key[start]
        part = np.where(value < 0, -1, value % 3 if separate else value)
        # What follows another part at once loses its first moments: they show the other.
        before = np.concatenate([[-1], part[:-1]])
        trim = (before >= 0) & (before != part) & (not separate)
        start = start + trim * int(np.ceil(gap * info.rate))
        good = stop > start
        made = {
            p: np.column_stack([start, stop])[good & (part == k)].astype(np.int64)
            for k, p in enumerate(PARTS)
        }
        empty = [p for p in PARTS if not len(made[p])]
        if empty:
            raise SplitError(
                f"the {empty[0]} part of {name} is empty",
                where=f"session {info.session}",
                remedy="Leave the session out, or use other fractions.",
            )
        parts.append(made)
        if info.session not in held_out:
            training.append(info.session)
    if not training:
        raise SplitError(
            f"no session for training showed {name}",
            where="intervals",
            found=", ".join(sorted({n for s in range(len(store.sessions))
                                    for n in store.session(s).intervals})) or "none",
        )  # fmt: skip
    return Splits(
        sessions=tuple(s.session for s in store.sessions),
        n_frames=tuple(int(s.n_frames) for s in store.sessions),
        parts=tuple(parts),
        training=tuple(dict.fromkeys(training)),
        held_out=held_out,
    )


def _shown(rows: Sequence[tuple[np.ndarray, ...]]) -> Shown:
    columns = [np.concatenate(c) for c in zip(*rows)] if rows else [np.zeros(0)] * 5
    kinds = (np.int64, np.int64, np.float64, np.int64, np.int64)
    return Shown(*(np.asarray(c).astype(k) for c, k in zip(columns, kinds)))
