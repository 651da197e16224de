"""What a recording holds, told from its headers: traces of many GB are not read."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats import hdf5_guard, interchange
from calm_jax.recordings.formats.fields import SINGLE
from calm_jax.recordings.formats.located import located

LARGE = 256 << 20  # bytes; `calm-jax info` peeks at larger files


@dataclasses.dataclass(frozen=True)
class Peek:
    """A recording without its samples.

    Attributes:
      session, animal, unit: as in the Session.
      neurons, frames: sizes of the traces.
      rate: Hz.
      trials: how many.
      behavior: names of the channels.
      intervals: name -> how many.
      notes: as in the Session.
    """

    session: str
    animal: str
    unit: str
    neurons: int
    frames: int
    rate: float
    trials: int = 0
    behavior: tuple[str, ...] = ()
    intervals: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def peek_interchange(path: str | Path) -> Peek:
    """What an interchange file (npz or HDF5) holds; reads ids and time stamps alone.

    Raises:
      RecordingError: naming the file and the field.
    """
    path = Path(path)
    with located(path):
        if interchange.magic(path) == interchange.HDF5_MAGIC:
            return _hdf5(path)
        return _npz(path)


def _hdf5(path: Path) -> Peek:
    sizes: dict[str, tuple[int, ...]] = {}

    def note(name: Any, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            text = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
            sizes[text] = item.shape or ()

    hdf5_guard.check(path)
    try:
        with h5py.File(path, "r") as file:
            file.visititems(note)
            return _from_fields(sizes, lambda n: interchange.h5_array(file, n), path)
    except interchange.DAMAGE as e:
        raise interchange.damaged(e) from e


def _npz(path: Path) -> Peek:
    sizes: dict[str, tuple[int, ...]] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for member in archive.zip.namelist():
                if member.endswith(".npy"):
                    sizes[member[:-4]] = _header(archive.zip, member)
            return _from_fields(sizes, lambda n: np.asarray(archive[n]), path)
    except interchange.DAMAGE as e:
        raise interchange.damaged(e) from e


def _header(archive: zipfile.ZipFile, member: str) -> tuple[int, ...]:
    """The shape in the header of an .npy member."""
    with archive.open(member) as f:
        version = np.lib.format.read_magic(f)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        return read(f)[0]


def _from_fields(
    sizes: Mapping[str, tuple[int, ...]], get: Callable[[str], np.ndarray], path: Path
) -> Peek:
    shape = sizes.get("traces")
    if shape is None or len(shape) != 2 or 0 in shape:
        raise RecordingError(
            "no traces",
            where="traces",
            found="no such field" if shape is None else f"shape {shape}",
            expected="(frames, neurons)",
        )
    intervals: dict[str, int] = {}
    for name, size in sizes.items():
        table, _, rest = name.partition("/")
        if table == "intervals" and rest.endswith("/start") and size:
            intervals[rest.removesuffix("/start")] = int(size[0])
    text = lambda name, other: str(get(name).reshape(-1)[0]) if name in sizes else other  # noqa: E731
    left = sorted(n for n in sizes if "/" not in n and n not in SINGLE)
    return Peek(
        session=text("session", path.stem),
        animal=text("animal", "unknown"),
        unit=text("unit", "a.u."),
        frames=int(shape[0]),
        neurons=int(shape[1]),
        rate=_rate(sizes, get),
        trials=int((sizes.get("trial_start") or (0,))[0]),
        behavior=tuple(n.partition("/")[2] for n in sorted(sizes) if n.startswith("behavior/")),
        intervals=intervals,
        notes=(
            *(np.atleast_1d(get("notes")).astype(str).tolist() if "notes" in sizes else ()),
            *(f"unknown field {n!r} was left out" for n in left),
        ),
    )


def _rate(sizes: Mapping[str, tuple[int, ...]], get: Callable[[str], np.ndarray]) -> float:
    """Hz, from `rate` or the median step of `timestamps`."""
    if "rate" in sizes:
        rate = float(get("rate").reshape(-1)[0])
    elif "timestamps" in sizes and sizes["timestamps"] and sizes["timestamps"][0] > 1:
        rate = 1.0 / max(float(np.median(np.diff(get("timestamps")))), 1e-300)
    else:
        raise RecordingError(
            "no frame rate", where="rate", remedy="Give `rate` in Hz or `timestamps` in seconds."
        )
    if not np.isfinite(rate) or rate <= 0:
        raise RecordingError("the frame rate must be positive", where="rate", found=f"{rate} Hz")
    return rate
