"""PyTorch checkpoints read without PyTorch, and without executing their pickles.

`torch.save` writes a zip: `NAME/data.pkl`, a pickle that names tensors, and `NAME/data/KEY`,
their bytes. The pickle is walked by the reader of `recordings.formats.pickles`, which calls
nothing; the few names of a state dict (tensors, parameters, storages, ordered dictionaries)
are recognised by their spelling and rebuilt here. Any other name is an error.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from calm_jax.errors import RecordingError, WeightsError
from calm_jax.recordings.formats import pickles

MAX_PICKLE = 256 << 20  # bytes; the names of a million tensors
_STORAGES = {
    "torch.FloatStorage": np.dtype("<f4"), "torch.DoubleStorage": np.dtype("<f8"),
    "torch.HalfStorage": np.dtype("<f2"), "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"), "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"), "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
}  # fmt: skip
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_ORDERED = "collections.OrderedDict"
_NAMES = {*_STORAGES, _TENSOR, _PARAMETER, _ORDERED}


class _Storage(NamedTuple):
    """The bytes of a tensor."""

    numbers: np.ndarray


class _Checkpoint(pickles.Machine):
    """The pickle of a checkpoint; `storage(key)` gives the bytes of an entry of the zip."""

    known = frozenset(pickles.KNOWN | _NAMES)

    def __init__(self, storage: Any) -> None:
        super().__init__()
        self._storage = storage

    def persistent(self) -> None:
        """A storage: ("storage", type, key, device, number of elements)."""
        told = self.stack.pop()
        if not isinstance(told, tuple) or len(told) != 5 or told[0] != "storage":
            raise ValueError("a reference that is no storage")
        _, kind, key, _, count = told
        dtype = _STORAGES.get(getattr(kind, "text", ""))
        if dtype is None or not isinstance(key, str) or type(count) is not int or count < 0:
            raise ValueError("a damaged storage")
        raw = self._storage(key)
        if len(raw) != count * dtype.itemsize:
            raise ValueError(f"storage {key[:40]} of {len(raw)} bytes for {count} elements")
        self.stack.append(_Storage(np.frombuffer(raw, dtype)))

    def made(self, name: str, arguments: tuple) -> Any:
        if name == _ORDERED:
            if arguments not in ((), ([],)):
                raise ValueError("an ordered dictionary with contents of another form")
            return {}
        if name == _PARAMETER:
            return arguments[0]
        if name == _TENSOR:
            return _tensor(*arguments[:4])
        if name in _STORAGES:
            raise ValueError("a storage that is called")
        return super().made(name, arguments)

    def build(self) -> None:
        # A state dict carries its versions as an attribute of the dictionary.
        if len(self.stack) > 1 and isinstance(self.stack[-2], dict):
            if not isinstance(self.stack.pop(), dict):
                raise ValueError("a damaged dictionary")
            return
        super().build()


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> np.ndarray:
    """The view of a storage, checked against its end; no memory is taken."""
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor without storage")
    for part in (shape, strides):
        if not isinstance(part, tuple) or not all(type(n) is int and n >= 0 for n in part):
            raise ValueError("a tensor of an impossible shape")
    if len(shape) != len(strides) or len(shape) > 16 or type(offset) is not int or offset < 0:
        raise ValueError("a tensor of an impossible shape")
    numbers, size = storage.numbers, math.prod(shape)
    if size == 0:
        return np.zeros(shape, numbers.dtype)
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides))
    if size > numbers.size or last >= numbers.size:
        raise ValueError(f"a tensor of shape {shape} beyond its {numbers.size} elements")
    step = numbers.dtype.itemsize
    return np.lib.stride_tricks.as_strided(
        numbers[offset:], shape, [s * step for s in strides], writeable=False
    )


def load(path: str | os.PathLike) -> Any:
    """What `torch.save` wrote: dictionaries, lists, numbers, text, and tensors as arrays.

    Tensors are read-only views of the file's bytes; half-precision ones keep their type.

    Raises:
      WeightsError: for a file that is no such zip, is damaged, or whose pickle names
        anything but tensors and plain values: nothing in it is run.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as file:
            return _read(file, path)
    except FileNotFoundError:
        raise WeightsError("no such file", where=path) from None
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError) as e:
        raise WeightsError(
            "not a PyTorch checkpoint of the zip format",
            where=path,
            found=str(e)[:120],
            remedy="Files of PyTorch before 1.6 must be saved again by a newer one.",
        ) from e


def _read(file: zipfile.ZipFile, path: Path) -> Any:
    entries = {e.filename: e for e in file.infolist()}
    pickled = [n for n in entries if n.count("/") == 1 and n.endswith("/data.pkl")]
    if len(pickled) != 1 or len(entries) != len(file.infolist()):
        raise WeightsError(
            "not a PyTorch checkpoint", where=path, expected="one entry NAME/data.pkl"
        )
    root = pickled[0].removesuffix("data.pkl")

    def raw(name: str, most: int | None = None) -> bytes:
        entry = entries.get(root + name)
        if entry is None:
            raise ValueError(f"no entry {name[:60]}")
        # torch.save stores without compression: what unfolds from little is not its work.
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise ValueError(f"entry {name[:60]} is compressed or encrypted")
        if most is not None and entry.file_size > most:
            raise ValueError(f"entry {name[:60]} of {entry.file_size} bytes")
        return file.read(entry)

    kept: dict[str, bytes] = {}

    def storage(key: str) -> bytes:
        if key not in kept:
            kept[key] = raw(f"data/{key}")
        return kept[key]

    try:
        if f"{root}byteorder" in entries and raw("byteorder", 16) != b"little":
            raise ValueError("big-endian numbers")
        return pickles.loads(raw("data.pkl", MAX_PICKLE), _Checkpoint(storage))
    except RecordingError as e:
        raise WeightsError(
            e.what,
            where=path,
            found=e.found,
            expected="tensors, dictionaries, numbers and text",
            remedy="Save the state dict alone: torch.save(model.state_dict(), path).",
        ) from e
    except ValueError as e:
        raise WeightsError("a damaged checkpoint", where=path, found=str(e)[:160]) from e


class StateDict(NamedTuple):
    """A state dict: arrays by name, and the vocabularies of its embeddings.

    Attributes:
      arrays: name -> array.
      vocabularies: "unit_emb", "session_emb" -> ids in the order of their rows, "NA" first.
    """

    arrays: dict[str, np.ndarray]
    vocabularies: dict[str, tuple[str, ...]]


def state_dict(path: str | os.PathLike) -> StateDict:
    """The state dict in a checkpoint: the file itself, or its entry "state_dict".

    A common prefix "model." (training wrappers) is taken off.

    Raises:
      WeightsError: as `load`; and when there is no state dict in it.
    """
    found = load(path)
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not any(isinstance(x, np.ndarray) for x in found.values()):
        raise WeightsError("no state dict", where=path, expected="names and tensors")
    if all(str(k).startswith("model.") for k in found):
        found = {k.removeprefix("model."): v for k, v in found.items()}
    arrays, vocabularies = {}, {}
    for name, value in found.items():
        if isinstance(value, np.ndarray):
            narrow = value.dtype == ml_dtypes.bfloat16
            arrays[str(name)] = value.astype(np.float32) if narrow else value
        elif str(name).endswith(".vocab"):
            vocabularies[str(name).removesuffix(".vocab")] = _vocabulary(value, path, name)
        else:
            raise WeightsError(
                "an entry that is neither tensor nor vocabulary", where=path, found=str(name)[:80]
            )
    return StateDict(arrays, vocabularies)


def _vocabulary(value: Any, path: object, name: str) -> tuple[str, ...]:
    rows = value if isinstance(value, Mapping) else {}
    ordered = sorted((r, k) for k, r in rows.items() if type(r) is int and isinstance(k, str))
    if not rows or [r for r, _ in ordered] != list(range(len(rows))):
        raise WeightsError("a damaged vocabulary", where=path, found=name)
    return tuple(k for _, k in ordered)
