"""What befalls files: bytes lost and flipped, and content made to harm."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

# A pickle that is loaded makes this file (its name is given by the runner).
CANARY = "CALM_JAX_FUZZ_CANARY"
IDS = (
    "../../etc/passwd", "a/b\\c", "наблюдение/1", "\u202egnp.exe", "x\x00y", "😀" * 50, "", " ",
)  # fmt: skip


class Malicious:
    """Unpickled, it writes the canary."""

    def __reduce__(self):
        return (_write_canary, ())


def _write_canary() -> None:
    Path(os.environ[CANARY]).write_text("executed")


# --- bytes -------------------------------------------------------------------------


def _bytes(change: Callable[[bytearray, np.random.Generator], bytearray]):
    def mutate(path: Path, rng: np.random.Generator) -> None:
        data = bytearray(path.read_bytes())
        path.write_bytes(change(data, rng) if data else b"\0")

    mutate.__name__ = change.__name__
    return mutate


@_bytes
def truncated(data, rng):
    return data[: int(rng.integers(0, len(data)))]


@_bytes
def bits_of_the_header(data, rng):
    for i in rng.integers(0, min(len(data), 2048), rng.integers(1, 12)):
        data[i] ^= 1 << int(rng.integers(8))
    return data


@_bytes
def bits_anywhere(data, rng):
    for i in rng.integers(0, len(data), rng.integers(1, 60)):
        data[i] ^= 1 << int(rng.integers(8))
    return data


@_bytes
def a_block_of_noise(data, rng):
    i, n = int(rng.integers(0, len(data))), int(rng.integers(1, 512))
    noise = rng.integers(0, 256, len(data[i : i + n]), np.uint8).tobytes()
    data[i : i + n] = noise if rng.random() < 0.5 else b"\xff" * len(noise)
    return data


@_bytes
def bytes_moved(data, rng):
    i, j = sorted(rng.integers(0, len(data), 2).tolist())
    return data[:i] + data[j:] + data[i:j]


@_bytes
def nothing_left(data, rng):
    return bytearray(b"" if rng.random() < 0.5 else rng.integers(0, 256, 64, np.uint8).tobytes())


BYTES = (truncated, bits_of_the_header, bits_anywhere, a_block_of_noise, bytes_moved, nothing_left)


# --- HDF5 --------------------------------------------------------------------------


def _datasets(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visititems(lambda n, x: names.append(n) if isinstance(x, h5py.Dataset) else None)
    return names


def _one(change: Callable[[h5py.File, str, np.random.Generator], None]):
    """Changes one data set; large ones (the traces) more often than others."""

    def mutate(path: Path, rng: np.random.Generator) -> None:
        with h5py.File(path, "r+") as file:
            names = _datasets(file)
            sizes = np.array([1 + np.log1p(file[n].size or 0) ** 2 for n in names])
            change(file, names[rng.choice(len(names), p=sizes / sizes.sum())], rng)

    mutate.__name__ = change.__name__
    return mutate


def _put(file: h5py.File, name: str, value: object, **options: object) -> None:
    attrs = dict(file[name].attrs)
    del file[name]
    made = file.create_dataset(name, data=value, **options)
    for key, x in attrs.items():
        made.attrs[key] = x


@_one
def another_type(file, name, rng):
    shape = file[name].shape or ()
    kinds = [
        np.zeros(shape, np.complex64),
        np.zeros(shape, [("a", "f4"), ("b", "i2")]),
        np.full(shape, b"text", "S5"),
        np.zeros(shape, np.uint64) - np.uint64(1),
        np.zeros(shape, bool),
        np.zeros(shape, np.float16),
        np.full(shape, 1e300),
    ]
    _put(file, name, kinds[rng.integers(len(kinds))])


@_one
def objects(file, name, rng):
    shape = file[name].shape or ()
    kind = rng.integers(4)
    del file[name]
    if kind == 0:
        made = file.create_dataset(name, shape or (3,), dtype=h5py.ref_dtype)
        made[...] = file.ref
    elif kind == 1:
        file.create_dataset(name, shape or (3,), dtype=h5py.vlen_dtype(np.float64))
    elif kind == 2:
        file.create_dataset(name, shape or (3,), dtype=h5py.string_dtype())
    else:
        file[name] = np.void(pickle.dumps(Malicious()))


@_one
def a_huge_shape(file, name, rng):
    ndim = max(1, len(file[name].shape or ()))
    shape = tuple(int(10 ** rng.uniform(3, 8)) for _ in range(ndim))
    del file[name]
    chunks = tuple(min(s, 64) for s in shape)
    filters = {"compression": "gzip"} if rng.random() < 0.5 else {}
    file.create_dataset(name, shape, np.float32, chunks=chunks, **filters)


@_one
def another_shape(file, name, rng):
    value = np.asarray(file[name][()])
    kinds = [
        value[..., None],
        value.reshape(-1),
        value.T,
        value[:0] if value.ndim else value.reshape(0 if value.size == 0 else 1),
        value[: len(value) // 2] if value.ndim else value,
        np.zeros((0,) * max(1, value.ndim)),
        np.concatenate([value, value]) if value.ndim else value,
    ]
    chosen = kinds[rng.integers(len(kinds))]
    dtype = file[name].dtype if file[name].dtype.hasobject else None
    _put(file, name, chosen, dtype=dtype)


@_one
def nothing_there(file, name, rng):
    if rng.random() < 0.5:
        parent = name.rpartition("/")[0]
        del file[parent if parent and rng.random() < 0.5 else name]
    else:
        del file[name]
        if rng.random() < 0.5:
            file.create_group(name)
        else:
            file[name] = h5py.Empty("f4")


@_one
def links(file, name, rng):
    del file[name]
    kinds = [
        h5py.ExternalLink("/etc/passwd", "/x"),
        h5py.ExternalLink("../../../../proc/self/mem", "data"),
        h5py.ExternalLink(file.filename, name),
        h5py.SoftLink("/" + name),
        h5py.SoftLink("/"),
        h5py.SoftLink("/nowhere"),
    ]
    kind = rng.integers(len(kinds) + 2)
    if kind < len(kinds):
        file[name] = kinds[kind]
    elif kind == len(kinds):
        file.create_dataset(name, (100,), "f4", external=[("/etc/passwd", 0, 400)])
    else:
        layout = h5py.VirtualLayout((10, 3), "f4")
        layout[:] = h5py.VirtualSource("/etc/passwd", "x", (10, 3))
        file.create_virtual_dataset(name, layout)


@_one
def values(file, name, rng):
    value = np.asarray(file[name][()])
    if value.dtype.kind not in "fiu" or not value.size:
        ids(file, name, rng)
        return
    flat = value.reshape(-1).astype(np.float64)
    some = rng.integers(0, flat.size, max(1, flat.size // 10))
    kind = rng.integers(5)
    if kind == 0:
        flat[some] = [np.nan, np.inf, -np.inf][rng.integers(3)]
    elif kind == 1:
        flat = flat[::-1].copy()
    elif kind == 2:
        flat[:] = flat[0]
    elif kind == 3:
        flat[some] = -1e9
    else:
        rng.shuffle(flat)
    with np.errstate(invalid="ignore", over="ignore"):
        kept = value.dtype if kind and rng.random() < 0.7 else np.float64
        _put(file, name, flat.reshape(value.shape).astype(kept))


def ids(file, name, rng):
    """Text with separators, ends of text and directions in it."""
    shape = file[name].shape or ()
    chosen = rng.integers(0, len(IDS), int(np.prod(shape)))
    odd = np.array([IDS[i].replace("\0", "0") for i in chosen], object)
    _put(file, name, odd.reshape(shape), dtype=h5py.string_dtype())


def attributes(path: Path, rng: np.random.Generator) -> None:
    with h5py.File(path, "r+") as file:
        found = [("", file)]
        file.visititems(lambda n, x: found.append((n, x)))
        found = [(n, x) for n, x in found if len(x.attrs)]
        if not found:
            return
        _, item = found[rng.integers(len(found))]
        key = sorted(item.attrs)[rng.integers(len(item.attrs))]
        kinds = [
            np.nan, -1.0, 0, "", "x" * 9999, np.zeros((2, 3)), h5py.Empty("f4"), file.ref,
            b"\xff\xfe",
        ]  # fmt: skip
        value = kinds[rng.integers(len(kinds))]
        del item.attrs[key]
        if rng.random() < 0.8:
            item.attrs[key] = value


def text(path: Path, rng: np.random.Generator) -> None:
    with h5py.File(path, "r+") as file:
        found = [n for n in _datasets(file) if h5py.check_string_dtype(file[n].dtype)]
        if found:
            ids(file, found[rng.integers(len(found))], rng)


HDF5 = (
    another_type, objects, a_huge_shape, another_shape, nothing_there, links, values, attributes,
    text,
)  # fmt: skip


# --- npy, npz, folders, text ---------------------------------------------------------


def _header(shape: object, descr: str = "<f4", extra: str = "") -> bytes:
    head = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, {extra}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head


def _npy(rng: np.random.Generator) -> bytes:
    """An .npy file that is not what it should be."""
    out = io.BytesIO()
    kind = rng.integers(8)
    if kind == 0:
        np.save(out, np.array([Malicious()] * 3, dtype=object), allow_pickle=True)
    elif kind == 1:
        np.save(out, np.array({"fs": Malicious(), "nplanes": 1}, dtype=object), allow_pickle=True)
    elif kind == 2:
        return _header((10**6, 10**7)) + b"\0" * 64
    elif kind == 3:
        return _header((-3, 4)) + b"\0" * 64
    elif kind == 4:
        return _header("(" * 200 + ")" * 200)
    elif kind == 5:
        np.save(out, np.array(["../x", "\u202e"]))
    elif kind == 6:
        np.save(out, rng.normal(size=(3, 4, 5)) + 1j)
    else:
        return _header((5, 5), "|O") + pickle.dumps(Malicious())
    return out.getvalue()


def array_replaced(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(_npy(rng))


def array_values(path: Path, rng: np.random.Generator) -> None:
    try:
        value = np.load(path, allow_pickle=False)
    except ValueError:
        array_replaced(path, rng)
        return
    with np.errstate(all="ignore"):
        kinds = [
            value.T, value[:0], value[..., None], value * np.nan, value.astype("U9"), -value,
            value[:1],
        ]  # fmt: skip
        np.save(path, kinds[rng.integers(len(kinds))])


def member_replaced(path: Path, rng: np.random.Generator) -> None:
    """One member of a zip archive becomes something else, or grows without end."""
    with zipfile.ZipFile(path) as archive:
        members = {n: archive.read(n) for n in archive.namelist()}
    name = sorted(members)[rng.integers(len(members))]
    kind = rng.integers(5)
    if kind < 2:
        members[name] = _npy(rng)
    elif kind == 2:
        members[name] = b"not an array"
    elif kind == 3:
        members[name] = _header((1 << 20, 16)) + bytes(1 << 26)  # 64 MiB of zeros
    else:
        members["../../evil.npy"] = members.pop(name)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for n, data in members.items():
            archive.writestr(n, data)


def table_text(path: Path, rng: np.random.Generator) -> None:
    lines = path.read_text().splitlines()
    i = int(rng.integers(len(lines)))
    line = lines[i]
    kinds = ["", "a,b,c", "nan," * 9, line + ",1", "1e999,-1e999,nan", "\x00\ufeff", '"' + line]
    lines[i] = kinds[rng.integers(len(kinds))]
    path.write_bytes("\n".join(lines).encode("utf-8" if rng.random() < 0.7 else "utf-16"))


def in_folder(mutate: Callable, names: tuple[str, ...] = ()) -> Callable:
    """The mutation on one file of a folder."""

    def inside(path: Path, rng: np.random.Generator) -> None:
        files = sorted(p for p in path.rglob("*") if p.is_file() and (not names or p.name in names))
        mutate(files[rng.integers(len(files))], rng)

    inside.__name__ = mutate.__name__
    return inside


def file_lost(path: Path, rng: np.random.Generator) -> None:
    files = sorted(p for p in path.rglob("*") if p.is_file())
    chosen = files[rng.integers(len(files))]
    if rng.random() < 0.5:
        chosen.unlink()
    else:
        shutil.copy(files[rng.integers(len(files))], f"{chosen}.copy")
        os.replace(f"{chosen}.copy", chosen)
