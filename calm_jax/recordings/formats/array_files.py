"""What lies in files of plain arrays: names, shapes, and the values when they are asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats import hdf5, mat5
from calm_jax.recordings.formats.interchange import DAMAGE, HDF5_MAGIC, ZIP_MAGIC, magic
from calm_jax.recordings.formats.npy import header_of, is_npy, open_npy

_RATIO = 1100  # deflate packs at most 1032 to 1
_BLOCK = 1 << 24  # bytes read at a time
ZARR = ("zarr.json", ".zarray", ".zgroup")


@dataclasses.dataclass(frozen=True)
class Variable:
    """One array of a file, not read yet.

    Attributes:
      shape: as its user sees it (for MATLAB, as MATLAB shows it).
      numeric: True for real numbers.
      load: transposed -> the array or, for a matrix, its transpose; as float32 where it has
        more than one row and column (vectors may be times, and stay exact).
    """

    shape: tuple[int, ...]
    numeric: bool
    load: Callable[[bool], np.ndarray]


def kind_of(path: Path) -> str:
    """"npy", "npz", "mat", "mat73", "zarr" or ""; by content; never raises."""
    try:
        if path.is_dir():
            return "zarr" if any((path / name).is_file() for name in ZARR) else ""
        start = magic(path)
        if is_npy(path):
            return "npy"
        if start.startswith(ZIP_MAGIC):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
            return "npz" if names and all(n.endswith(".npy") for n in names) else ""
        if start.startswith(b"MATLAB"):
            with open(path, "rb") as file:
                return "mat73" if file.read(128).startswith(b"MATLAB 7.3") else "mat"
        if path.suffix == ".mat" and start and start != HDF5_MAGIC:
            return "mat"  # MATLAB 4 starts with nothing of its own
    except (*DAMAGE, NotImplementedError):
        pass
    return ""


@contextlib.contextmanager
def variables(path: Path, kind: str) -> Iterator[dict[str, Variable]]:
    """The arrays of a file, for as long as it is open.

    Raises:
      RecordingError: for a damaged file, and for zarr where zarr is not installed.
    """
    if kind == "npy":
        array = open_npy(path)
        yield {"": Variable(array.shape, True, lambda t: _plain(array, t))}
    elif kind == "npz":
        yield _npz(path)
    elif kind == "mat":
        yield _mat(path)
    elif kind == "mat73":
        with hdf5.opened(path) as file:
            yield _mat73(file)
    else:
        yield _zarr(path)


def _plain(array: np.ndarray, transposed: bool) -> np.ndarray:
    """The array in memory; see `Variable.load`."""
    if array.ndim != 2 or min(array.shape) <= 1:
        return np.array(array.T if transposed else array)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array(array.T if transposed else array, np.float32, order="C")


def _npz(path: Path) -> dict[str, Variable]:
    out = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                with archive.open(info) as file:
                    dtype, shape, _, offset = header_of(file)
                needed = math.prod(shape) * dtype.itemsize
                if not dtype.hasobject and (
                    needed > info.file_size - offset
                    or info.file_size > _RATIO * info.compress_size + 1024
                ):
                    raise RecordingError(
                        "the file is cut short, or its header is damaged",
                        where=name,
                        found=f"{info.compress_size} bytes for {dtype} of shape {shape}",
                    )
                out[name] = Variable(shape, dtype.kind in "biuf", _member(path, name))
    except DAMAGE as e:
        raise hdf5.damaged(e) from e
    return out


def _member(path: Path, name: str) -> Callable[[bool], np.ndarray]:
    def load(transposed: bool) -> np.ndarray:
        try:
            with np.load(path, allow_pickle=False) as archive:
                return _plain(archive[name], transposed)
        except DAMAGE as e:
            raise hdf5.damaged(e, name) from e

    return load


def _mat(path: Path) -> dict[str, Variable]:
    """MATLAB 5 to 7 by `mat5`, MATLAB 4 by scipy."""
    try:
        if mat5.is_mat5(path):
            return {
                name: Variable(m.shape, m.numeric, lambda t, n=name, m=m: mat5.load(path, n, m, t))
                for name, m in mat5.matrices(path).items()
            }
    except DAMAGE as e:
        raise hdf5.damaged(e) from e
    import scipy.io

    most = path.stat().st_size

    def load(name: str, shape: tuple[int, ...], transposed: bool) -> np.ndarray:
        if math.prod(shape) > most:
            raise RecordingError("the values are not in the file", where=name, found=f"{shape}")
        try:
            value = scipy.io.loadmat(path, variable_names=[name])[name]
        except Exception as e:  # scipy's reader fails in many ways on damaged files
            raise hdf5.damaged(e, name) from e
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
            raise RecordingError("not a full matrix of real numbers", where=name)
        return _plain(value, transposed)

    try:
        found = scipy.io.whosmat(path)
    except Exception as e:  # see above
        raise hdf5.damaged(e) from e
    return {
        name: Variable(
            tuple(shape), kind == "double", lambda t, n=name, s=tuple(shape): load(n, s, t)
        )
        for name, shape, kind in found
    }


def _mat73(file: h5py.File) -> dict[str, Variable]:
    """MATLAB 7.3: an HDF5 file whose axes are the other way round."""

    def load(data: h5py.Dataset, transposed: bool) -> np.ndarray:
        where = data.name.lstrip("/")
        if data.ndim == 2 and min(data.shape) > 1:
            return hdf5.read_traces(data, where, transposed=not transposed)
        values = hdf5.read_array(data, where)
        return values if transposed else values.T

    return {
        path.lstrip("/"): Variable(
            tuple(data.shape[::-1]),
            data.dtype.kind in "biuf",
            lambda t, d=data: load(d, t),
        )
        for path, data in hdf5.walk(file)
        if isinstance(data, h5py.Dataset) and data.shape and not path.startswith("/#")
    }


def _zarr(path: Path) -> dict[str, Variable]:
    try:
        import zarr
    except ImportError:
        raise RecordingError(
            "zarr is not installed", remedy="pip install 'calm-jax[arrays]', or pip install zarr."
        ) from None
    try:
        node = zarr.open(str(path), mode="r")
        found = {"": node} if hasattr(node, "shape") else dict(node.arrays())
    except Exception as e:  # zarr and its codecs fail in many ways on damaged files
        raise hdf5.damaged(e) from e
    return {
        name: Variable(
            tuple(a.shape), a.dtype.kind in "biuf", lambda t, a=a, n=name: _zarr_values(a, n, t)
        )
        for name, a in found.items()
    }


def _zarr_values(array: Any, name: str, transposed: bool) -> np.ndarray:
    """The values, read in rows of whole chunks; chunks that are absent are no values."""
    where = name or "the array"
    shape = tuple(array.shape)
    size = math.prod(shape) * max(4, array.dtype.itemsize)
    chunk = math.prod(array.chunks) * array.dtype.itemsize
    if max(size, chunk) > hdf5.SMALL:
        stored = array.nbytes_stored()
        stored = int(stored.split()[0]) if isinstance(stored, str) else int(stored)
        if max(size, chunk) > min(hdf5.RATIO * stored, hdf5.memory()):
            raise RecordingError(
                "the values are not in the file, or more than this machine can hold",
                where=where,
                found=f"shape {shape} declared, {stored} bytes stored",
            )
    try:
        if len(shape) != 2 or min(shape) <= 1:
            return _plain(np.asarray(array[...]), transposed)
        out = np.empty(shape[::-1] if transposed else shape, np.float32)
        rows = array.chunks[0] * max(1, _BLOCK // max(1, array.chunks[0] * shape[1] * 4))
        for a in range(0, shape[0], rows):
            block = np.asarray(array[a : a + rows])
            if transposed:
                out[:, a : a + rows] = block.T
            else:
                out[a : a + rows] = block
        return out
    except MemoryError as e:
        raise RecordingError("it does not fit into memory", where=where) from e
    except Exception as e:  # see `_zarr`
        raise hdf5.damaged(e, where) from e
