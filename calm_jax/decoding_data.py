"""What behaviour is decoded from: recordings, split and scaled as a run does it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from calm_jax import runs, weights
from calm_jax.errors import RunError
from calm_jax.recordings import preprocess, splits
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.build import build
from calm_jax.recordings.conditioning import align_behavior
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.session import Session
from calm_jax.recordings.store import open_store
from calm_jax.runs import Trained
from calm_jax.scoring import check_varying, recordings_of

PARTS = splits.PARTS
Read = Callable[[int, int, int], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Recordings:
    """What is decoded from.

    Attributes:
      sessions: with behaviour on the imaging frames. prepared: their traces.
      table: per session the rows (N,) in the backbone's tables and the session's row, -1
        for the mean rows. notes: what was decided, one line each.
    """

    sessions: tuple[Session, ...]
    prepared: Prepared
    table: tuple[tuple[np.ndarray, int], ...]
    notes: tuple[str, ...]


def recordings(trained: Trained, data: Path | None, options: Sequence[str] = ()) -> Recordings:
    """The recordings at `data`, or those of the run, split and scaled as a run does it.

    A session that trained the run keeps its embeddings; others take the mean embeddings.

    Raises:
      RunError: for a session of the run whose split is another one here: frames that the
        run was trained on would be tested.
      RecordingError: for recordings that cannot be used.
    """
    e, notes = trained.run.experiment, []
    if data is None:
        weights.check_recordings(trained.run)
        store = open_store(build(e.data, Console(stderr=True, highlight=False)))
        prepared = Prepared(store, runs.load_split(trained.run, store), trained.scalers)
        sessions = [store.session(i) for i in range(len(store.sessions))]
    else:
        sessions = recordings_of(Path(data), e, options)
        store = MemoryStore(sessions)
        made = splits.make_split(store, e.split)
        scalers = preprocess.fit(store, made, e.preprocess)
        check_varying(made.sessions, scalers)
        prepared = Prepared(store, made, scalers)
    table, held_out, strangers = [], trained.held_out(), []
    for i, s in enumerate(sessions):
        row = trained.table.find(s.session, s.animal, s.neurons.id)
        if row is not None and not held_out[row]:
            if data is not None:
                _check_split(trained, row, prepared.splits, i)
            own = trained.table.offset[row] + np.arange(s.n_neurons)
            table.append((own.astype(np.int32), int(row)))
        else:
            strangers.append(s.session)
            table.append((np.full(s.n_neurons, -1, np.int32), -1))
    if strangers:
        some = ", ".join(strangers[:3]) + (", ..." if len(strangers) > 3 else "")
        notes.append(
            f"{len(strangers)} of {len(sessions)} sessions never trained the run ({some}): "
            "they take the mean embeddings"
        )
    aligned = tuple(align_behavior(s) for s in sessions)
    return Recordings(aligned, prepared, tuple(table), tuple(notes))


def _check_split(trained: Trained, row: int, made: splits.Splits, i: int) -> None:
    wanted = splits.read_parts(trained.run.path("split.json"), row)
    same = all(np.array_equal(wanted[p], made.parts[i][p]) for p in PARTS)
    if not same:
        raise RunError(
            "a recording of the run is not as it was there: its split would be another one",
            where=f"session {made.sessions[i]}",
            found=f"{made.n_frames[i]} frames",
            remedy="Give the recording that the run was trained on, or a run without it.",
        )


def limited(made: splits.Splits, sessions: Sequence[Session], minutes: float | None) -> Any:
    """The split with the first `minutes` of training frames of each session alone."""
    if minutes is None:
        return made
    parts = []
    for own, s in zip(made.parts, sessions, strict=True):
        left, kept = max(int(minutes * 60 * s.rate), 1), []
        for a, b in own["train"].tolist():
            if left > 0:
                kept.append([a, min(b, a + left)])
                left -= b - a
        parts.append({**own, "train": np.array(kept, np.int64)})
    return dataclasses.replace(made, parts=tuple(parts))


def minutes_of(made: splits.Splits, sessions: Sequence[Session]) -> float:
    """Minutes of the training part, mean over sessions."""
    each = [
        sum(int(b - a) for a, b in parts["train"]) / s.rate / 60
        for parts, s in zip(made.parts, sessions, strict=True)
    ]
    return sum(each) / len(each)


def beginnings(read: Read, made: splits.Splits, hop: int = 1) -> Read:
    """`read` for ranges that begin where a range of the split does and end within it.

    The whole range is read, once for all its beginnings: what a causal reader says of a
    frame does not depend on where the range ends. `hop`: frames of a step.
    """
    whole = {
        (i, int(a)): int(b)
        for i, parts in enumerate(made.parts)
        for part in parts.values()
        for a, b in part
    }

    def beginning(i: int, start: int, stop: int) -> np.ndarray:
        return read(i, start, whole[i, start])[: (stop - start) // hop]

    return beginning


class Told:
    """Says how far a long piece of work is, every half minute; short ones stay silent.

    Args:
      what: is done, such as "features". total: of `unit`.
    """

    def __init__(
        self, what: str, total: int, unit: str, say: Callable[[str], None], every: float = 30.0
    ):
        self._what, self._total, self._unit, self._say = what, total, unit, say
        self._every, self._done, self._last = every, 0, time.monotonic()

    def __call__(self, more: int) -> None:
        """`more` is done."""
        self._done += more
        now = time.monotonic()
        if now - self._last >= self._every:
            self._last = now
            self._say(f"{self._what}: {self._done:,} of {self._total:,} {self._unit}")
