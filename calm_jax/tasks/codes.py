"""The tokenized data set: codes of every range of every session, in one HDF5 file.

    codes.h5            attributes: version, identity, patch, codes (K), segment
      sessions/<i>/     attribute: session (id)
        ranges (R, 2)   frames [start, stop) of each range, of all parts, held-out included
        part (R,)       index into train, valid, test
        first (R + 1,)  columns first[r] : first[r + 1] below are those of range r
        codes (N, C)    smallest unsigned integer that holds K
        valid (N, C)    True where all frames of a code are valid; absent when all are

Sessions are encoded one at a time into files of their own, so an interrupted export goes
on where it stopped; `codes.h5` appears only when it is complete.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np
from flax import nnx

from calm_jax.errors import RunError, writing
from calm_jax.files import replacing
from calm_jax.models import tokenizer as tokenizers
from calm_jax.recordings.batches import bucket
from calm_jax.recordings.splits import PARTS

VERSION = 1
ROWS = 256  # single-neuron segments encoded at a time
LENGTHS = 8  # different lengths encoded, at most: one compilation each


def identity(tok: tokenizers.Tokenizer, prepared: Any) -> str:
    """16 hexadecimal digits for the weights, the split and the scaling that codes depend on."""
    digest = hashlib.sha256(prepared.splits.hash.encode())
    digest.update(repr(tok.config).encode())
    for leaf in jax.tree.leaves(nnx.state(tok)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    for i in range(len(prepared.splits.sessions)):
        digest.update(np.ascontiguousarray(prepared.scalers.mean[i]).tobytes())
        digest.update(np.ascontiguousarray(prepared.scalers.sd[i]).tobytes())
    return digest.hexdigest()[:16]


def code_dtype(codes: int) -> np.dtype:
    """The smallest unsigned integer type that holds codes 0 .. `codes` - 1."""
    return np.min_scalar_type(codes - 1)


def export(
    tok: tokenizers.Tokenizer,
    prepared: Any,
    path: str | Path,
    *,
    segment: int,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes the codes of every range of every session to `path`.

    Args:
      segment: frames encoded together. A longer range is encoded in consecutive segments,
        each from its own start, as the tokenizer saw windows in training; rounded down to
        whole patches.
      progress: called with (sessions done, sessions) after each session.

    Returns:
      `path`. A complete file of the same tokenizer, split and scaling is left as it is.

    Raises:
      RunError: when the disk is full or the folder cannot be written to.
    """
    path, patch = Path(path), tok.config.patch
    segment = max(segment // patch, 1) * patch
    attributes = {
        "version": VERSION,
        "identity": identity(tok, prepared),
        "patch": patch,
        "codes": tok.config.codes,
        "segment": segment,
    }
    if _matches(path, attributes):
        return path
    sessions = prepared.splits.sessions
    lengths = _lengths(prepared.splits.parts, patch, segment)
    graph, state = nnx.split(tok)
    encode = jax.jit(lambda s, x: tokenizers.encode(nnx.merge(graph, s), x))
    encode = functools.partial(encode, jax.device_put(state))
    folder = path.with_name(f"{path.name}.parts")
    for i, name in enumerate(sessions):
        part = folder / f"{i}.h5"
        if not _matches(part, attributes):
            with replacing(part) as file:
                _write_session(file, name, i, prepared, encode, lengths, attributes)
        if progress is not None:
            progress(i + 1, len(sessions))
    with replacing(path) as file, h5py.File(file, "w") as out:
        out.attrs.update(attributes)
        for i in range(len(sessions)):
            with h5py.File(folder / f"{i}.h5", "r") as one:
                one.copy("session", out, f"sessions/{i}")
    with writing(folder):
        shutil.rmtree(folder)
    return path


def _matches(path: Path, attributes: dict[str, Any]) -> bool:
    """Whether `path` is a complete file with these attributes."""
    try:
        with h5py.File(path, "r") as file:
            return all(file.attrs.get(k) == v for k, v in attributes.items())
    except OSError:
        return False


def _lengths(parts: Any, patch: int, segment: int) -> list[int]:
    """At most `LENGTHS` padded segment lengths (frames), spread as the real ones are."""
    real = []
    for ranges in (r for p in parts for r in p.values()):
        for frames in (ranges[:, 1] - ranges[:, 0]) // patch * patch:
            whole, rest = divmod(int(frames), segment)
            real += [segment] * whole + [rest] * (rest > 0)
    if len(set(real)) <= LENGTHS:
        return sorted(set(real))
    shares = np.arange(1, LENGTHS + 1) / LENGTHS
    return sorted({int(x) for x in np.quantile(real, shares, method="higher")})


def _write_session(
    path: Path,
    name: str,
    i: int,
    prepared: Any,
    encode: Callable,
    lengths: list[int],
    attributes: dict[str, Any],
) -> None:
    """The file of one session; its ranges are encoded and written one after another."""
    patch, parts = attributes["patch"], prepared.splits.parts[i]
    ranges = np.concatenate([parts[p] for p in PARTS]).reshape(-1, 2)
    which = np.repeat(np.arange(len(PARTS), dtype=np.uint8), [len(parts[p]) for p in PARTS])
    order = np.argsort(ranges[:, 0], kind="stable")
    ranges, which = ranges[order], which[order]
    first = np.concatenate([[0], np.cumsum((ranges[:, 1] - ranges[:, 0]) // patch)])
    neurons, columns = len(prepared.scalers.mean[i]), int(first[-1])
    with h5py.File(path, "w") as file:
        group = file.create_group("session")
        group.attrs["session"] = name
        group["ranges"], group["part"], group["first"] = ranges, which, first
        shape = (neurons, columns)
        tile = (max(neurons, 1), max(min(columns, 64), 1)) if columns else None
        dtype = code_dtype(attributes["codes"])
        codes = group.create_dataset("codes", shape, dtype, chunks=tile)
        valid = None
        for r, (start, stop) in enumerate(ranges):
            a, b = int(first[r]), int(first[r + 1])
            if a == b:
                continue
            z, mask = prepared.range(i, int(start), int(stop))
            codes[:, a:b] = _encode_range(z.T, encode, lengths, patch, attributes["segment"])
            real = mask.T[:, : (b - a) * patch].reshape(neurons, b - a, patch).all(-1)
            if not real.all():
                if valid is None:
                    valid = group.create_dataset(
                        "valid", shape, bool, chunks=tile, fillvalue=True, compression="gzip"
                    )
                valid[:, a:b] = real
        # Last, so that an incomplete file never matches.
        file.attrs.update(attributes)


def _encode_range(
    traces: np.ndarray, encode: Callable, lengths: list[int], patch: int, segment: int
) -> np.ndarray:
    """Codes (N, T // patch) of one range (N, T), segment by segment.

    Segments are padded at their end to one of `lengths`: the encoder is causal, so the
    padding changes no code that is kept.
    """
    neurons, frames = traces.shape[0], traces.shape[1] // patch * patch
    cut = frames // segment * segment
    pieces = [traces[:, :cut].reshape(-1, segment), traces[:, cut:frames]]
    out = []
    for rows in pieces:
        if not rows.size:
            continue
        width, found = rows.shape[1], []
        padded = np.zeros((ROWS, bucket(width, lengths)), np.float32)
        for a in range(0, len(rows), ROWS):
            n = len(rows[a : a + ROWS])
            padded[:n, :width] = rows[a : a + ROWS]
            found.append(np.asarray(encode(padded))[:n, : width // patch])
        out.append(np.concatenate(found).reshape(neurons, -1))
    return np.concatenate(out, axis=1)


class Codes:
    """The tokenized data set, read range by range; safe to use from several threads.

    Attributes:
      identity: of the tokenizer, split and scaling (`identity`).
      patch: frames per code. codes: K. segment: frames encoded together.
      sessions: session ids.

    Raises:
      RunError: when the file is missing, damaged or of another version.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self._file = h5py.File(self.path, "r")
            version = self._file.attrs.get("version")
            if version != VERSION:
                raise RunError(
                    "not a tokenized data set of this version",
                    where=self.path,
                    found=f"version {version}",
                    expected=f"version {VERSION}",
                    remedy="Remove this file and give the same `calm-jax pretrain` command again.",
                )
            attrs, groups = self._file.attrs, self._file["sessions"]
            self.identity = str(attrs["identity"])
            self.patch, self.codes = int(attrs["patch"]), int(attrs["codes"])
            self.segment = int(attrs["segment"])
            self._groups = [groups[str(i)] for i in range(len(groups))]
            self.sessions = tuple(str(g.attrs["session"]) for g in self._groups)
        except (OSError, KeyError) as e:
            raise RunError(
                "not a tokenized data set",
                where=self.path,
                found=str(e),
                remedy="Remove this file and give the same `calm-jax pretrain` command again: "
                "it makes only what is missing.",
            ) from e
        self._index: dict[int, dict[tuple[int, int], tuple[int, int]]] = {}

    def ranges(self, i: int, part: str) -> np.ndarray:
        """(R, 2) int64 frames [start, stop) of a part of session `i`, by time."""
        group = self._groups[i]
        return group["ranges"][()][group["part"][()] == PARTS.index(part)]

    def range(self, i: int, start: int, stop: int) -> np.ndarray:
        """Codes (N, (stop - start) // patch) of the range [start, stop) of session `i`.

        Raises:
          RunError: when there is no such range.
        """
        a, b = self._columns(i, start, stop)
        return self._groups[i]["codes"][:, a:b]

    def mask(self, i: int, start: int, stop: int) -> np.ndarray:
        """True where all frames of a code are valid; shape and errors as of `range`."""
        a, b = self._columns(i, start, stop)
        group = self._groups[i]
        if "valid" not in group:
            return np.ones((group["codes"].shape[0], b - a), bool)
        return group["valid"][:, a:b]

    def usage(self, part: str = "train") -> np.ndarray:
        """How often each code stands at a valid place of a part, (K,) int64."""
        count = np.zeros(self.codes, np.int64)
        for i in range(len(self._groups)):
            for start, stop in self.ranges(i, part):
                kept = self.range(i, start, stop)[self.mask(i, start, stop)]
                count += np.bincount(kept, minlength=self.codes)
        return count

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _columns(self, i: int, start: int, stop: int) -> tuple[int, int]:
        if i not in self._index:
            group = self._groups[i]
            first = group["first"][()].tolist()
            pairs = map(tuple, group["ranges"][()].tolist())
            self._index[i] = dict(zip(pairs, itertools.pairwise(first)))
        try:
            return self._index[i][int(start), int(stop)]
        except KeyError:
            raise RunError(
                "no codes for this range",
                where=f"{self.path}, session {self.sessions[i]}",
                found=f"frames [{start}, {stop})",
                remedy="Codes are kept for the ranges of the split they were exported with.",
            ) from None
