"""Pickles read as data: no callable is ever called, whatever the file asks for.

Suite2p keeps its settings and ROI statistics in pickles, which are programs. `loads` walks
their opcodes itself and builds plain values: numbers, text, bytes, lists, tuples,
dictionaries with text keys and numpy arrays. The few names that such files need (numpy
dtypes, arrays and scalars) are recognised by their spelling and rebuilt here, with every size
checked against the bytes that are there; dates and paths become None; any other name is an
error that tells it. Nothing is imported, the depth of nesting costs no recursion, and time
and memory are bounded by the number of opcodes.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from calm_jax.errors import RecordingError

MAX_OPS = 10_000_000  # of a pickle; the ROI statistics of 50,000 neurons
_MAX_BITS = 1024  # of one integer: larger ones make hashing slow

_CORES = ("numpy.core.", "numpy._core.")
_ARRAY = {f"{c}multiarray._reconstruct" for c in _CORES}
_SCALAR = {f"{c}multiarray.scalar" for c in _CORES}
_BUFFER = {f"{c}numeric._frombuffer" for c in _CORES}
_ENCODE = {"_codecs.encode"}
_EMPTY = {"__builtin__.bytes", "builtins.bytes"}  # how protocol 2 writes b""
_NDARRAY = {"numpy.ndarray"}
_DTYPE = {"numpy.dtype"}
_INERT = (
    "datetime.datetime", "datetime.date", "datetime.time", "datetime.timezone",
    "datetime.timedelta", "pathlib.Path", "pathlib.PurePath", "pathlib.PosixPath",
    "pathlib.WindowsPath", "pathlib.PurePosixPath", "pathlib.PureWindowsPath",
    "pathlib._local.PosixPath", "pathlib._local.WindowsPath",
)  # fmt: skip
KNOWN = _ARRAY | _SCALAR | _BUFFER | _ENCODE | _EMPTY | _NDARRAY | _DTYPE | set(_INERT)


class _Name(NamedTuple):
    """A global that the pickle named; never looked up."""

    text: str


class _Dtype:
    """What the pickle says of a dtype: its code, later its byte order."""

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str):
            raise _wrong("a dtype without a code")
        try:
            self.dtype = np.dtype(code) if "," not in code and "(" not in code else None
        except (TypeError, ValueError):
            self.dtype = None
        if self.dtype is None or self.dtype.kind not in "biufcUSO":
            raise _wrong("a dtype that is not plain", repr(code[:40]))

    def order(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "|", "="):
            raise _wrong("a damaged dtype")
        if any(x is not None for x in state[2:5]):
            raise _wrong("a dtype with fields")
        if state[1] in "<>":
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array whose contents come later; `keys` are its places in the memo."""

    def __init__(self) -> None:
        self.keys: list[int] = []


def loads(data: bytes, machine: Machine | None = None) -> Any:
    """The value in a pickle, as plain data.

    An array of Python objects is a list (one axis) or its item (none). Another `machine`
    may know further names, such as the tensors of a checkpoint.

    Raises:
      RecordingError: for a damaged pickle, and for one that names anything but numpy's
        arrays, dtypes and scalars: with the name, which is never imported.
    """
    machine = machine or Machine()
    try:
        for count, (op, arg, _) in enumerate(pickletools.genops(data)):
            if count >= MAX_OPS:
                raise _wrong("a pickle of too many parts", f"more than {MAX_OPS}")
            if op.name == "STOP":
                return machine.result()
            step = _STEPS.get(op.name)
            if step is None:
                raise _wrong("a pickle that is not plain data", f"the opcode {op.name}")
            step(machine, arg)
    except (IndexError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as e:
        raise _wrong("a damaged pickle", str(e)[:120] or type(e).__name__) from e
    raise _wrong("a damaged pickle", "no end")


def _wrong(what: str, found: str | None = None) -> RecordingError:
    return RecordingError(
        what, found=found, expected="numbers, text, lists, dictionaries and numpy arrays"
    )


class Machine:
    """The stack, the marks in it and the memo; a subclass may know more names."""

    known = frozenset(KNOWN)

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def result(self) -> Any:
        if len(self.stack) != 1 or isinstance(self.stack[0], _Name | _Dtype | _Array):
            raise _wrong("a damaged pickle", "no single value at its end")
        return self.stack[0]

    def push(self, value: Any) -> None:
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise _wrong("an integer of too many digits")
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        at = self.marks.pop()
        out = self.stack[at:]
        del self.stack[at:]
        return out

    def pop(self) -> Any:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
            return None
        return self.stack.pop()

    def tuple(self, size: int) -> None:
        if len(self.stack) < size:
            raise IndexError("the stack is empty")
        items = tuple(self.stack[len(self.stack) - size :])
        del self.stack[len(self.stack) - size :]
        self.stack.append(items)

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise TypeError("items for something that is no list")
        self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict) or len(items) % 2:
            raise TypeError("entries for something that is no dictionary")
        self._entries(self.stack[-1], items)

    def new_dict(self, items: list[Any]) -> None:
        self.stack.append({})
        self._entries(self.stack[-1], items)

    @staticmethod
    def _entries(into: dict, items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Other keys can be made to take for ever: tuples of tuples, colliding integers.
            if not isinstance(key, str | bytes):
                raise _wrong("a dictionary with other keys than text", type(key).__name__)
            into[key] = value

    def keep(self, key: int) -> None:
        value = self.stack[-1]
        if isinstance(value, _Array):
            value.keys.append(key)
        self.memo[key] = value

    def name(self, module: Any, name: Any) -> None:
        text = f"{module}.{name}"
        if text not in self.known:
            raise RecordingError(
                "a pickle that names something else than numpy's types",
                found=text[:120],
                expected="arrays, numbers and text",
                remedy="It was not loaded, and nothing in it was run.",
            )
        self.stack.append(_Name(text))

    def reduce(self) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, _Name) or not isinstance(arguments, tuple):
            raise _wrong("a damaged pickle", "a call of something that is no name")
        self.stack.append(self.made(called.text, arguments))

    def made(self, name: str, arguments: tuple) -> Any:
        """What the named constructor would give."""
        return _made(name, arguments)

    def persistent(self) -> None:
        """A reference to something outside the pickle."""
        raise _wrong("a pickle that is not plain data", "a reference to something outside")

    def build(self) -> None:
        state, value = self.stack.pop(), self.stack[-1]
        if isinstance(value, _Dtype):
            value.order(state)
        elif isinstance(value, _Array):
            self.stack[-1] = _filled(state)
            for key in value.keys:
                self.memo[key] = self.stack[-1]
        elif value is not None:  # None stands for a date or a path
            raise _wrong("a damaged pickle", f"a state for {type(value).__name__}")


def _made(name: str, arguments: tuple) -> Any:
    """What the named constructor would give for `arguments`, made without it."""
    if name in _INERT:
        return None
    if name in _DTYPE:
        return _Dtype(*arguments[:1])
    if name in _ARRAY:
        if arguments[:1] != (_Name("numpy.ndarray"),):
            raise _wrong("an array of another class than numpy's")
        return _Array()
    if name in _SCALAR:
        dtype, raw = arguments
        return _numbers(raw, dtype, ()).reshape(())[()]
    if name in _BUFFER:
        raw, dtype, shape, order = arguments
        return _numbers(raw, dtype, shape, order)
    if name in _EMPTY and not arguments:
        return b""
    if name in _ENCODE and len(arguments) == 2 and arguments[1] in ("latin1", "latin-1"):
        return arguments[0].encode("latin-1")
    raise _wrong("a pickle that is not plain data", f"a call of {name}")


def _filled(state: Any) -> Any:
    """The array of a pickled state (version, shape, dtype, fortran, bytes or list)."""
    if not isinstance(state, tuple) or len(state) not in (4, 5):
        raise _wrong("a damaged array")
    shape, dtype, fortran, raw = state[-4:]
    if isinstance(dtype, _Dtype) and dtype.dtype.kind == "O":
        if not isinstance(raw, list) or shape not in ((), (len(raw),)) or (
            shape == () and len(raw) != 1
        ):
            raise _wrong("an array of objects that does not fit its shape", str(shape)[:40])
        return raw if shape else raw[0]
    return _numbers(raw, dtype, shape, "F" if fortran else "C")


def _numbers(raw: Any, dtype: Any, shape: Any, order: str = "C") -> np.ndarray:
    if isinstance(raw, str):  # bytes as Python 2 wrote them
        raw = raw.encode("latin-1")
    if not isinstance(dtype, _Dtype) or dtype.dtype.kind == "O" or order not in ("C", "F"):
        raise _wrong("a damaged array")
    if not isinstance(raw, bytes | bytearray) or not isinstance(shape, tuple):
        raise _wrong("a damaged array")
    if len(shape) > 32 or not all(type(n) is int and n >= 0 for n in shape):
        raise _wrong("an array of an impossible shape", str(shape)[:60])
    size = math.prod(shape)
    if size * dtype.dtype.itemsize != len(raw):
        raise _wrong("an array that does not fit its bytes", f"shape {shape}, {len(raw)} bytes")
    if not size or not dtype.dtype.itemsize:
        return np.zeros(shape, dtype.dtype)
    return np.frombuffer(raw, dtype.dtype).reshape(shape, order=order)


Step = Callable[[Machine, Any], None]


def _push(value: Any) -> Step:
    return lambda m, _: m.stack.append(value)




_STEPS: dict[str, Step] = {
    "PROTO": lambda m, _: None,
    "FRAME": lambda m, _: None,
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "POP": lambda m, _: m.pop() and None,
    "POP_MARK": lambda m, _: m.since_mark() and None,
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "NONE": _push(None),
    "NEWTRUE": _push(True),
    "NEWFALSE": _push(False),
    "EMPTY_TUPLE": _push(()),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "LIST": lambda m, _: m.stack.append(m.since_mark()),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.since_mark())),
    "TUPLE1": lambda m, _: m.tuple(1),
    "TUPLE2": lambda m, _: m.tuple(2),
    "TUPLE3": lambda m, _: m.tuple(3),
    "DICT": lambda m, _: m.new_dict(m.since_mark()),
    "APPEND": lambda m, _: m.extend([m.stack.pop()]),
    "APPENDS": lambda m, _: m.extend(m.since_mark()),
    "SETITEM": lambda m, _: m.update([m.stack.pop(-2), m.stack.pop()]),
    "SETITEMS": lambda m, _: m.update(m.since_mark()),
    "PUT": lambda m, key: m.keep(key),
    "BINPUT": lambda m, key: m.keep(key),
    "LONG_BINPUT": lambda m, key: m.keep(key),
    "MEMOIZE": lambda m, _: m.keep(len(m.memo)),
    "GET": lambda m, key: m.stack.append(m.memo[key]),
    "BINGET": lambda m, key: m.stack.append(m.memo[key]),
    "LONG_BINGET": lambda m, key: m.stack.append(m.memo[key]),
    # The argument is "module name" here.
    "GLOBAL": lambda m, names: m.name(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.name(m.stack.pop(-2), m.stack.pop()),
    "REDUCE": lambda m, _: m.reduce(),
    "NEWOBJ": lambda m, _: m.reduce(),
    "BUILD": lambda m, _: m.build(),
    "BINPERSID": lambda m, _: m.persistent(),
}
for _op in (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
):  # fmt: skip
    _STEPS[_op] = lambda m, value: m.push(value)
