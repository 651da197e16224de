"""Checkpoints in the layout of `torch.save`, written without PyTorch."""

from __future__ import annotations

import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np

_KINDS = {"f4": "Float", "f8": "Double", "f2": "Half", "i8": "Long", "i4": "Int", "b1": "Bool"}


class Tensor:
    """An array to be stored as a tensor; `strides` in elements."""

    def __init__(self, array, shape=None, strides=None, offset=0, key=None, count=None):
        self.array = np.asarray(array)
        flat = np.ascontiguousarray(array)
        self.shape = self.array.shape if shape is None else shape
        self.strides = tuple(s // flat.itemsize for s in flat.strides[: self.array.ndim])
        self.strides = self.strides if strides is None else strides
        self.offset, self.key, self.count = offset, key, count


def save(path: Path, content, *, compression=zipfile.ZIP_STORED, extra=()) -> Path:
    """Writes `content`, with Tensors in it, as `torch.save` does."""
    made = {name: types.ModuleType(name) for name in ("torch", "torch._utils")}

    def _rebuild_tensor_v2(*args):
        raise AssertionError("called")

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    made["torch._utils"]._rebuild_tensor_v2 = _rebuild_tensor_v2
    for kind in _KINDS.values():
        cls = type(f"{kind}Storage", (), {"__module__": "torch"})
        setattr(made["torch"], f"{kind}Storage", cls)
    storages: list[bytes] = []

    class Storage:
        def __init__(self, tensor):
            self.tensor = tensor

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if not isinstance(value, Storage):
                return None
            tensor = value.tensor
            array = tensor.array
            key = str(len(storages)) if tensor.key is None else tensor.key
            storages.append(np.ascontiguousarray(array).tobytes())
            kind = getattr(made["torch"], _KINDS[array.dtype.str[1:]] + "Storage")
            count = array.size if tensor.count is None else tensor.count
            return ("storage", kind, key, "cpu", count)

        def reducer_override(self, value):
            if not isinstance(value, Tensor):
                return NotImplemented
            whole = (Storage(value), value.offset, value.shape, value.strides, False, OrderedDict())
            return _rebuild_tensor_v2, whole

    before = {name: sys.modules.get(name) for name in made}
    sys.modules.update(made)
    try:
        out = io.BytesIO()
        Pickler(out, protocol=2).dump(content)
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", out.getvalue())
        file.writestr("archive/byteorder", "little")
        for i, raw in enumerate(storages):
            file.writestr(f"archive/data/{i}", raw)
        file.writestr("archive/version", "3\n")
        for name, raw in extra:
            file.writestr(name, raw)
    return path
