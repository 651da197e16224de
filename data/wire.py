"""Records as bytes without the copies of the general way: tf.train.Example, by hand.

tensorflow-datasets copies the traces of a record four times on the way to the file (encoded,
put into a message, serialised, written). Here they are put into the bytes once. The bytes are
those of its own serializer, fields in order of their names; `tests/data` compares the two.

    Example  { 1: Features { 1: repeated entry { 1: name, 2: Feature } } }
    Feature  { 1: BytesList { 1: bytes } }  or  { 3: Int64List { 1: packed varints } }

Source: the protocol buffer wire format, and tensorflow/core/example/feature.proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

BYTES, INTEGERS = 1, 3  # fields of Feature


def record(fields: Mapping[str, Any]) -> bytes:
    """A record of `store_writer.records` as tensorflow-datasets writes it.

    Args:
      fields: `session`, `start` (int >= 0), `traces` (frames, neurons) float32, `valid` (n,) bool.
    """
    traces = np.ascontiguousarray(fields["traces"], "<f4")
    valid = np.ascontiguousarray(fields["valid"], bool)
    parts: list[Any] = []
    for name, kind, value in (
        ("session", INTEGERS, _varint(fields["session"])),
        ("start", INTEGERS, _varint(fields["start"])),
        ("traces/shape", INTEGERS, b"".join(map(_varint, traces.shape))),
        ("traces/value", BYTES, traces.reshape(-1).view(np.uint8).data),
        ("valid", BYTES, valid.view(np.uint8).data),
    ):
        held = _head(1, len(value))
        feature = _head(kind, len(held) + len(value)) + held
        key = _head(1, len(name)) + name.encode()
        entry = key + _head(2, len(feature) + len(value)) + feature
        parts += [_head(1, len(entry) + len(value)) + entry, value]
    return b"".join([_head(1, sum(map(len, parts))), *parts])


def _head(field: int, size: int) -> bytes:
    """Number of a field with a length (wire type 2), and the length."""
    return _varint(field << 3 | 2) + _varint(size)


def _varint(value: int) -> bytes:
    """An integer >= 0, seven bits to a byte, the lowest first."""
    value, out = int(value), bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
