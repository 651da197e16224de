"""The store: many sessions on disk, opened at once and read piece by piece.

A store is a folder that a tensorflow-datasets builder of `data/` wrote: ArrayRecord
files with one record per trial or chunk, and beside them one HDF5 file, `sessions.h5`:

    index/      one row per session: ids, rate, sizes, first record, first neuron
    sessions/i  everything of session i but the traces, as in an interchange file
    records/i   `edges` (R + 1,) frames between the records; `constant` (N,) bool

Opening reads the index alone. Traces are read when they are asked for, and kept in a
bounded cache.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import functools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats.interchange import read_group
from calm_jax.recordings.formats.located import located
from calm_jax.recordings.session import Session, Trials

SIDE_FILE = "sessions.h5"
SPLIT = "recordings"  # the one split of the data set; parts are made later, by splits.py
VERSION = 1
CHUNK = 1024  # frames, the longest record
INDEX = (
    "session", "animal", "unit", "rate", "n_frames", "n_neurons", "n_trials",
    "first_record", "masked",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class SessionInfo:
    """What is known of a session without reading its traces.

    Attributes:
      session, animal, unit: as in the Session; `session` is unique in the store.
      rate: Hz.
      n_frames, n_neurons, n_trials: sizes.
      masked: True where some sample is missing.
    """

    session: str
    animal: str
    unit: str
    rate: float
    n_frames: int
    n_neurons: int
    n_trials: int
    masked: bool
    _file: Path = dataclasses.field(repr=False)
    _group: int = dataclasses.field(repr=False)

    @functools.cached_property
    def trials(self) -> Trials:
        """The trials with their columns; read when first asked for."""
        none = np.zeros(0, np.int64)
        if not self.n_trials:
            return Trials(none, none)
        with _open(self._file) as file:
            group = file[f"sessions/{self._group}"]
            columns = {}
            for name, data in group.get("trial", {}).items():
                text = h5py.check_string_dtype(data.dtype) and data.dtype.kind == "O"
                columns[name] = data.asstr()[()].astype(str) if text else data[()]
            return Trials(group["trial_start"][()], group["trial_stop"][()], columns)

    @functools.cached_property
    def constant(self) -> np.ndarray:
        """(N,) bool, True for traces that never change over the whole recording."""
        with _open(self._file) as file:
            return file[f"records/{self._group}/constant"][()]

    @functools.cached_property
    def edges(self) -> np.ndarray:
        """(R + 1,) int64, the frames between which the records lie."""
        with _open(self._file) as file:
            return file[f"records/{self._group}/edges"][()]


class _Sessions(Sequence[SessionInfo]):
    """The sessions of a store; infos are made when they are asked for, the last ones kept."""

    def __init__(self, file: Path, index: dict[str, np.ndarray]) -> None:
        self._file, self._index = file, index
        self._kept: collections.OrderedDict[int, SessionInfo] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._index["session"])

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        if i not in self._kept:
            row = {k: self._index[k][i] for k in INDEX if k != "first_record"}
            self._kept[i] = SessionInfo(
                **{k: v.item() if hasattr(v, "item") else v for k, v in row.items()},
                _file=self._file,
                _group=i,
            )
        info = self._kept.pop(i)
        self._kept[i] = info
        while len(self._kept) > 4096:
            self._kept.popitem(last=False)
        return info


class Store:
    """Sessions on disk, read by frame range.

    Attributes:
      folder: where it lies.
      sessions: sequence of SessionInfo, in the order they were built in.
      n_neurons: neurons of all sessions together.
    """

    def __init__(self, folder: Path, index: dict[str, np.ndarray], cache_bytes: int) -> None:
        self.folder = folder
        self.sessions: Sequence[SessionInfo] = _Sessions(folder / SIDE_FILE, index)
        self._first_record = index["first_record"]
        self._offsets = np.concatenate([[0], np.cumsum(index["n_neurons"])])
        self._cache_bytes, self._held = cache_bytes, 0
        self._cache: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Without the lock, the cache and open files: workers make their own."""
        state = {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_records")}
        return state | {"_cache": collections.OrderedDict(), "_held": 0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    @property
    def n_neurons(self) -> int:
        return int(self._offsets[-1])

    def neuron_offset(self, i: int) -> int:
        """The first row of session `i` in a table of the neurons of all sessions."""
        return int(self._offsets[range(len(self.sessions))[i]])

    def neuron_ids(self, i: int) -> np.ndarray:
        """(N,) text, the ids of the neurons of session `i`."""
        with _open(self.folder / SIDE_FILE) as file:
            ids = file[f"sessions/{range(len(self.sessions))[i]}/neuron/id"]
            return ids.asstr()[()].astype(str)

    def index_of(self, session: str) -> int:
        """The place of the session with this id.

        Raises:
          RecordingError: when there is none, with the nearest id.
        """
        ids = self.sessions._index["session"]
        found = np.flatnonzero(ids == session)
        if not found.size:
            near = difflib.get_close_matches(session, ids.tolist(), 1)
            raise RecordingError(
                f"no session {session!r}",
                where=self.folder,
                remedy=f"Did you mean {near[0]!r}?" if near else None,
            )
        return int(found[0])

    def read(self, i: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames [start, stop) of session `i`: traces (T, N) float32, mask (T, N) bool.

        Raises:
          RecordingError: when the range is empty or leaves the recording.
        """
        info = self.sessions[i]
        if not 0 <= start < stop <= info.n_frames:
            raise RecordingError(
                "no such range of frames",
                where=f"session {info.session}",
                found=f"[{start}, {stop})",
                expected=f"a range within [0, {info.n_frames})",
            )
        traces = np.empty((stop - start, info.n_neurons), np.float32)
        mask = np.empty(traces.shape, bool)
        first = int(np.searchsorted(info.edges, start, "right")) - 1
        last = int(np.searchsorted(info.edges, stop, "left"))
        base = int(self._first_record[range(len(self.sessions))[i]])
        for k in range(first, last):
            left = int(info.edges[k])
            a, b = max(start, left), min(stop, int(info.edges[k + 1]))
            values, valid = self._record(base + k)
            traces[a - start : b - start] = values[a - left : b - left]
            mask[a - start : b - start] = valid[a - left : b - left]
        return traces, mask

    def session(self, i: int) -> Session:
        """The whole session `i`, as it was built."""
        i = range(len(self.sessions))[i]
        info = self.sessions[i]
        traces, mask = self.read(i, 0, info.n_frames)
        with _open(self.folder / SIDE_FILE) as file:
            out = read_group(
                file[f"sessions/{i}"], traces=traces, valid=mask if info.masked else None
            )
        return out if out.session == info.session else out.replace(session=info.session)

    @functools.cached_property
    def _records(self) -> Any:
        import tensorflow_datasets as tfds  # seconds to import: only where traces are read

        return tfds.builder_from_directory(self.folder).as_data_source(SPLIT)

    def _record(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Traces and mask of one record."""
        with self._lock:
            if number in self._cache:
                self._cache.move_to_end(number)
                return self._cache[number]
            try:
                record = self._records[number]
            except Exception as e:  # whatever the file holds: one line instead of a traceback
                raise RecordingError(
                    f"record {number} of the store cannot be read",
                    where=self.folder,
                    found=str(e) or type(e).__name__,
                    remedy="Delete the folder and build it again.",
                ) from e
            traces, valid = record["traces"], record["valid"]
            valid = valid.reshape(traces.shape[0], -1) if valid.size else np.ones((1, 1), bool)
            out = traces, np.broadcast_to(valid, traces.shape)
            self._cache[number] = out
            self._held += out[0].nbytes
            while self._held > self._cache_bytes:
                _, old = self._cache.popitem(last=False)
                self._held -= old[0].nbytes
            return out


def open_store(folder: str | Path, cache_bytes: int = 256 << 20) -> Store:
    """Opens a built store: reads the index, no traces; memory does not grow with the traces.

    Args:
      folder: the folder with `sessions.h5`, as `build` returns it.
      cache_bytes: records kept in memory after they were read.

    Raises:
      RecordingError: when the folder is missing, no store, of another version or incomplete.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RecordingError(
            "no such store", where=folder, remedy="Build it: make data NAME=... [SOURCE=...]"
        )
    if not (folder / SIDE_FILE).is_file():
        inside = sorted(p.parent for p in folder.glob(f"*/**/{SIDE_FILE}"))
        raise RecordingError(
            "not a store",
            where=folder,
            expected=f"a folder with {SIDE_FILE}",
            remedy=f"Did you mean {inside[0]}?"
            if inside
            else "Build it: make data NAME=... [SOURCE=...]",
        )
    with _open(folder / SIDE_FILE) as file:
        if file.attrs.get("calm_jax_store") != VERSION:
            raise RecordingError(
                "a store of another version",
                where=folder,
                found=file.attrs.get("calm_jax_store"),
                expected=VERSION,
                remedy="Delete the folder and build it again.",
            )
        index = {k: file[f"index/{k}"][()] for k in INDEX if k not in INDEX[:3]}
        index |= {k: file[f"index/{k}"].asstr()[()] for k in INDEX[:3]}
        shards = file["shards/name"].asstr()[()].tolist()
        sizes = file["shards/bytes"][()].tolist()
    wanted = {"dataset_info.json": None, "features.json": None} | dict(zip(shards, sizes))
    for name, size in wanted.items():
        path = folder / name
        if not path.is_file() or size not in (None, path.stat().st_size):
            raise RecordingError(
                "the store is incomplete",
                where=path,
                found=f"{path.stat().st_size} bytes" if path.is_file() else "no file",
                expected=f"{size} bytes" if size is not None else "the file",
                remedy="Delete the folder and build it again.",
            )
    return Store(folder, index, cache_bytes)


def _open(path: Path) -> h5py.File:
    with located(path):
        try:
            return h5py.File(path, "r")
        except (OSError, RuntimeError) as e:
            raise RecordingError(
                "the index of the store cannot be read",
                found=str(e),
                remedy="Delete the folder and build it again.",
            ) from e
