"""Writing a store: what lies beside the records, session by session.

A builder writes the side of each session into a small HDF5 file of its own as soon as
it is read (`write_side`), and gathers them into `sessions.h5` at the end (`StoreWriter`).
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats.interchange import write_group
from calm_jax.recordings.session import Session
from calm_jax.recordings.store import CHUNK, INDEX, SIDE_FILE, VERSION


def record_edges(session: Session) -> np.ndarray:
    """(R + 1,) int64 frames between records: at every trial edge and at most CHUNK apart."""
    cuts = [np.array([0, session.n_frames]), session.trials.start, session.trials.stop]
    edges = np.unique(np.concatenate(cuts))
    parts = [np.arange(a, b, CHUNK) for a, b in itertools.pairwise(edges)]
    return np.append(np.concatenate(parts), session.n_frames).astype(np.int64)


def records(session: Session, number: int) -> Iterator[dict[str, Any]]:
    """The records of a session in order; `number` is its place in the store."""
    valid = session.valid
    for a, b in itertools.pairwise(record_edges(session).tolist()):
        part = np.zeros(0, bool) if valid is None else valid[a:b].reshape(-1)
        yield {"session": number, "start": a, "traces": session.traces[a:b], "valid": part}


def write_side(group: h5py.Group, session: Session) -> None:
    """Writes all of a session but its traces: itself, the edges of its records, its row."""
    write_group(group.create_group("session"), session, traces=False)
    group["edges"] = record_edges(session)
    group["constant"] = constant_traces(session)
    group.attrs["row"] = json.dumps(
        {
            "session": session.session,
            "animal": session.animal,
            "unit": session.unit,
            "rate": session.rate,
            "n_frames": session.n_frames,
            "n_neurons": session.n_neurons,
            "n_trials": len(session.trials),
            "masked": session.valid is not None,
        }
    )


class StoreWriter:
    """Writes `sessions.h5` from the sides of the sessions.

    Raises:
      RecordingError: for two recordings of one animal with the same session id.
    """

    def __init__(self, folder: str | Path) -> None:
        self._file = h5py.File(Path(folder) / SIDE_FILE, "w", libver="latest")
        self._rows: list[dict[str, Any]] = []
        self._records = 0
        self._seen: set[tuple[str, str]] = set()

    def add(self, side: h5py.Group) -> None:
        """Takes over what `write_side` wrote, as the next session."""
        row = json.loads(side.attrs["row"])
        key = (row["animal"], row["session"])
        if key in self._seen:
            raise twice(*key)
        self._seen.add(key)
        i = len(self._rows)
        side.copy("session", self._file, f"sessions/{i}")
        side.copy("edges", self._file, f"records/{i}/edges")
        side.copy("constant", self._file, f"records/{i}/constant")
        self._rows.append(row | {"first_record": self._records})
        self._records += side["edges"].size - 1

    def close(self, shards: Sequence[Path]) -> None:
        """Writes the index, last of all; a file without it is no store."""
        columns = {name: [row[name] for row in self._rows] for name in INDEX}
        # A session id that two animals share is told apart by the animal.
        ids = collections.Counter(columns["session"])
        columns["session"] = [
            s if ids[s] == 1 else f"{a}/{s}"
            for s, a in zip(columns["session"], columns["animal"])
        ]
        text = h5py.string_dtype("utf-8")
        for name, values in columns.items():
            kind = text if name in INDEX[:3] else None
            self._file.create_dataset(f"index/{name}", data=values, dtype=kind)
        self._file.create_dataset("shards/name", data=[s.name for s in shards], dtype=text)
        self._file["shards/bytes"] = [s.stat().st_size for s in shards]
        self._file.attrs["calm_jax_store"] = VERSION
        self._file.close()

    def abandon(self) -> None:
        """Closes the file after a failure, which may make closing fail too."""
        with contextlib.suppress(OSError, RuntimeError):
            self._file.close()


def twice(animal: str, session: str, where: str = "session") -> RecordingError:
    """The error for two recordings (`where`) with the same ids."""
    return RecordingError(
        f"two recordings of animal {animal!r} have the session id {session!r}",
        where=where,
        remedy="Give each its own `session`, or leave one of the files out.",
    )


def constant_traces(session: Session) -> np.ndarray:
    """(N,) bool, True where all valid samples of a trace are equal (or none is valid)."""
    low = np.full(session.n_neurons, np.inf, np.float32)
    high = -low
    step = max(1, (1 << 22) // session.n_neurons)
    for a in range(0, session.n_frames, step):
        x = session.traces[a : a + step]
        if session.valid is None:
            least, most = x, x
        else:
            mask = session.mask[a : a + step]
            least, most = np.where(mask, x, np.inf), np.where(mask, x, -np.inf)
        np.minimum(low, least.min(0), out=low)
        np.maximum(high, most.max(0), out=high)
    return ~(high > low)
