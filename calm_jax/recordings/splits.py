"""Which frames are for training, validation and test; refuses a split that leaks.

A session with trials is split by trial, one without into blocks in time with a gap.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calm_jax import config
from calm_jax.errors import SplitError
from calm_jax.files import replacing

PARTS = ("train", "valid", "test")
_VERSION = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Splits:
    """The parts of every session, in the order of the store.

    Attributes:
      sessions: session ids.
      n_frames: frames of each session.
      parts: per session a mapping part -> (S, 2) int64 of frame ranges [start, stop);
        a range is a trial, or lies in one, where the session has trials.
      training: ids of the sessions whose training parts models learn from.
      held_out: ids of the sessions whose frames never train a model; their own
        training parts fit scalers and, when asked for, rows of embeddings.
      gap: frames kept free between blocks of different parts.
    """

    sessions: tuple[str, ...]
    n_frames: tuple[int, ...]
    parts: tuple[Mapping[str, np.ndarray], ...]
    training: tuple[str, ...]
    held_out: tuple[str, ...] = ()
    gap: int = 0

    @property
    def hash(self) -> str:
        """16 hexadecimal digits that stand for the content."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def training_index(self) -> tuple[int, ...]:
        """Indices of the sessions that models learn from."""
        names = set(self.training)
        return tuple(i for i, s in enumerate(self.sessions) if s in names)

    @property
    def held_out_index(self) -> tuple[int, ...]:
        """Indices of the held-out sessions."""
        names = set(self.held_out)
        return tuple(i for i, s in enumerate(self.sessions) if s in names)

    def ranges(self, part: str, index: Sequence[int] | None = None) -> np.ndarray:
        """(R, 3) int64 rows (session, start, stop) of `part`, by session and time.

        `index` = sessions to take; None = those models learn from.
        """
        index = self.training_index if index is None else index
        rows = [
            np.column_stack([np.full(len(r), i), r]) for i in index if len(r := self.parts[i][part])
        ]
        return np.concatenate(rows) if rows else np.zeros((0, 3), np.int64)

    def to_dict(self) -> dict[str, Any]:
        """The content as JSON values."""
        return {
            "version": _VERSION,
            "gap": self.gap,
            "training": list(self.training),
            "held_out": list(self.held_out),
            "sessions": [
                {
                    "session": name,
                    "n_frames": frames,
                    "parts": {p: parts[p].tolist() for p in PARTS},
                }
                for name, frames, parts in zip(
                    self.sessions, self.n_frames, self.parts, strict=True
                )
            ],
        }

    def save(self, path: str | os.PathLike) -> None:
        """Writes JSON with the hash of the content."""
        text = json.dumps({"hash": self.hash, **self.to_dict()})
        with replacing(path) as part:
            part.write_text(text + "\n")

    def check(self, store: Any) -> Splits:
        """Returns the split itself when it fits `store` and does not leak.

        Raises:
          SplitError: it names the session, the ranges and what to do.
        """
        ids = tuple(s.session for s in store.sessions)
        if ids != self.sessions:
            both = zip(ids, self.sessions, strict=False)
            at = next((i for i, (a, b) in enumerate(both) if a != b), None)
            n = f"{len(self.sessions)} sessions, the store has {len(ids)}"
            raise SplitError(
                "the split belongs to other recordings",
                where="split",
                found=n if at is None else f"{self.sessions[at]!r} as session {at}",
                expected=None if at is None else repr(ids[at]),
                remedy="Make the split again from these recordings.",
            )
        self._check_names()
        for i, info in enumerate(store.sessions):
            _check_session(self.parts[i], info.session, self.n_frames[i], info, self.gap)
        return self

    def _check_names(self) -> None:
        known = set(self.sessions)
        for field in ("training", "held_out"):
            for name in getattr(self, field):
                if name not in known:
                    raise SplitError(
                        f"unknown session {name!r}",
                        where=field,
                        expected=f"ids such as {', '.join(sorted(known)[:3])}",
                    )
                if self.held_out and self.sessions.count(name) > 1:
                    raise SplitError(
                        f"session id {name!r} stands for more than one recording",
                        where=field,
                        remedy="Give every recording its own session id.",
                    )
        both = [s for s in self.held_out if s in set(self.training)]
        if both:
            raise SplitError(
                "a held-out session is used for training",
                where=f"session {both[0]}",
                remedy="Remove it from `training` or from `held_out`.",
            )
        if not self.training:
            raise SplitError(
                "no session is left for training",
                where="held_out",
                found=f"all {len(self.sessions)} sessions held out",
                remedy="Hold fewer sessions out.",
            )


def _check_session(
    parts: Mapping[str, np.ndarray], name: str, frames: int, info: Any, gap: int
) -> None:
    """Raises SplitError for one session's ranges."""
    where = f"session {name}"
    if frames != info.n_frames:
        raise SplitError(
            "the split was made for another version of the recording",
            where=where,
            found=f"{frames} frames in the split, {info.n_frames} in the recording",
            remedy="Make the split again.",
        )
    for part in PARTS:
        if not len(parts[part]):
            raise SplitError(
                f"the {part} part is empty",
                where=where,
                remedy="Every session needs frames in train, valid and test.",
            )
    ranges = np.concatenate([parts[p] for p in PARTS])
    label = np.repeat(np.arange(3), [len(parts[p]) for p in PARTS])
    order = np.argsort(ranges[:, 0], kind="stable")
    ranges, label = ranges[order], label[order]

    def say(k: int) -> str:
        return f"{PARTS[label[k]]} [{ranges[k, 0]}, {ranges[k, 1]})"

    bad = np.flatnonzero(
        (ranges[:, 0] < 0) | (ranges[:, 1] > frames) | (ranges[:, 0] >= ranges[:, 1])
    )
    if bad.size:
        raise SplitError(
            "a range is empty or outside the recording",
            where=where,
            found=say(bad[0]),
            expected=f"start < stop within [0, {frames})",
        )
    space = ranges[1:, 0] - ranges[:-1, 1]
    over = np.flatnonzero(space < 0)
    if over.size:
        k = over[0]
        raise SplitError(
            "two ranges share frames",
            where=where,
            found=f"{say(k)} and {say(k + 1)}",
            remedy="Let every frame belong to one range of one part only.",
        )
    if not len(info.trials):
        close = np.flatnonzero((space < gap) & (label[1:] != label[:-1]))
        if close.size:
            k = close[0]
            raise SplitError(
                "two parts are closer than the gap",
                where=where,
                found=f"{say(k)} and {say(k + 1)}",
                expected=f"{gap} frames between them",
                remedy="Shorten one of them, or set a smaller gap.",
            )
        return
    start, stop = np.asarray(info.trials.start), np.asarray(info.trials.stop)
    trial = np.searchsorted(start, ranges[:, 0], "right") - 1
    outside = np.flatnonzero((trial < 0) | (ranges[:, 1] > stop[trial]))
    if outside.size:
        raise SplitError(
            "a range crosses the edge of a trial or lies outside the trials",
            where=where,
            found=say(outside[0]),
            remedy="Where there are trials a range must lie within one of them.",
        )
    shared = np.flatnonzero((trial[1:] == trial[:-1]) & (label[1:] != label[:-1]))
    if shared.size:
        k = shared[0]
        raise SplitError(
            f"trial {trial[k]} is in two parts",
            where=where,
            found=f"{say(k)} and {say(k + 1)}",
            remedy="Put the whole trial into one part.",
        )


def make_split(store: Any, split: config.Split, held_out: Sequence[str] = ()) -> Splits:
    """Train, valid and test ranges of every session; a pure function of its arguments.

    By trial (random permutation, its seed made of `split.seed`, animal and session
    id, so that a session's parts do not depend on the other sessions) where the
    session has trials. Else three blocks, the first `train` fraction of the frames,
    then `valid`, the last `test`; the latter two start `gap` frames later.

    Raises:
      SplitError: fractions that make no sense, a recording too short for three
        parts, unknown held-out sessions.
    """
    fractions = (split.train, split.valid, split.test)
    if min(fractions) <= 0 or sum(fractions) > 1 + 1e-9 or split.gap < 0:
        raise SplitError(
            "wrong fractions or gap",
            where="split",
            found=f"train, valid, test = {fractions}, gap {split.gap}",
            expected="positive fractions that sum to at most 1, gap >= 0 frames",
        )
    infos = list(store.sessions)
    held_out = tuple(dict.fromkeys(held_out))
    return Splits(
        sessions=tuple(s.session for s in infos),
        n_frames=tuple(int(s.n_frames) for s in infos),
        parts=tuple(_by_trial(s, split) if len(s.trials) else _by_block(s, split) for s in infos),
        training=tuple(dict.fromkeys(s.session for s in infos if s.session not in held_out)),
        held_out=held_out,
        gap=split.gap,
    ).check(store)


def _by_trial(info: Any, split: config.Split) -> dict[str, np.ndarray]:
    n = len(info.trials)
    if n < 3:
        raise SplitError(
            "too few trials for three parts",
            where=f"session {info.session}",
            found=n,
            expected="at least 3",
            remedy="Leave the session out, or drop its trials to split it in time.",
        )
    counts = np.array([split.valid, split.test]) * n
    n_valid, n_test = np.maximum(1, np.floor(counts + 0.5)).astype(int)
    while n_valid + n_test > n - 1:  # few trials: each part keeps one
        n_valid, n_test = (n_valid - 1, n_test) if n_valid >= n_test else (n_valid, n_test - 1)
    n_train = n - n_valid - n_test
    if split.train + split.valid + split.test < 1 - 1e-9:  # some are left unused
        n_train = min(n_train, max(1, int(split.train * n + 0.5)))
    name = f"{info.animal}\0{info.session}".encode()
    seed = int.from_bytes(hashlib.sha256(name).digest()[:8], "little")
    order = np.random.default_rng([split.seed, seed]).permutation(n)
    edges = np.column_stack([info.trials.start, info.trials.stop]).astype(np.int64)
    cuts = {
        "train": order[:n_train],
        "valid": order[n_train : n_train + n_valid],
        "test": order[n_train + n_valid : n_train + n_valid + n_test],
    }
    return {part: edges[np.sort(rows)] for part, rows in cuts.items()}


def _by_block(info: Any, split: config.Split) -> dict[str, np.ndarray]:
    n = int(info.n_frames)
    train = int(split.train * n + 1e-9)
    stop = int((split.train + split.valid) * n + 1e-9)
    # Every later block gives up the gap at its start; fractions that sum to less than
    # 1 leave frames unused before the test block.
    test = stop + split.gap
    if split.train + split.valid + split.test < 1 - 1e-9:
        test = max(test, n - int(split.test * n + 1e-9))
    blocks = {
        "train": (0, train),
        "valid": (train + split.gap, stop),
        "test": (test, n),
    }
    for part, (a, b) in blocks.items():
        if a >= b:
            raise SplitError(
                f"too few frames: the {part} part is empty",
                where=f"session {info.session}",
                found=f"{n} frames, gap {split.gap}",
                remedy="Use a longer recording, a smaller gap or other fractions.",
            )
    return {part: np.array([block], np.int64) for part, block in blocks.items()}


def from_dict(data: Mapping[str, Any], store: Any, where: object = "split") -> Splits:
    """A split of the user's own making, checked against `store`.

    Fields as `Splits.to_dict` writes them; `training` may be left out (all sessions
    that are not held out), as may `held_out`, `gap` and `hash`.

    Raises:
      SplitError: a field is missing or wrong, the hash does not fit, or it leaks.
    """
    try:
        rows = list(data["sessions"])
        held_out = tuple(str(s) for s in data.get("held_out", ()))
        ids = tuple(str(r["session"]) for r in rows)
        rest = [s for s in dict.fromkeys(ids) if s not in held_out]
        splits = Splits(
            sessions=ids,
            n_frames=tuple(int(r["n_frames"]) for r in rows),
            parts=tuple({p: _ranges(r["parts"].get(p, ())) for p in PARTS} for r in rows),
            training=tuple(str(s) for s in data.get("training", rest)),
            held_out=held_out,
            gap=int(data.get("gap", 0)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise SplitError(
            "not a split",
            where=where,
            found=f"{type(e).__name__}: {e}",
            expected="sessions: [{session, n_frames, parts: {train: [[start, stop]]}}]",
        ) from e
    if data.get("hash", splits.hash) != splits.hash:
        raise SplitError(
            "the content does not fit its hash: the file was changed or is damaged",
            where=where,
            found=splits.hash,
            expected=data["hash"],
            remedy="Make the split again, or remove `hash` from a split made by hand.",
        )
    return splits.check(store)


def _ranges(values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.size == 0:
        return np.zeros((0, 2), np.int64)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iu":
        raise ValueError("ranges must be pairs [start, stop] of whole numbers")
    return array.astype(np.int64)


def load(path: str | os.PathLike, store: Any) -> Splits:
    """The split saved at `path`, checked against its hash and against `store`.

    Raises:
      SplitError: no such file, not a split, changed, or leaking.
    """
    try:
        data = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise SplitError("no such file", where=path) from None
    except (OSError, ValueError) as e:
        raise SplitError("cannot be read as JSON", where=path, found=str(e)) from e
    if not isinstance(data, dict):
        raise SplitError("not a split", where=path, found=type(data).__name__)
    return from_dict(data, store, where=path)


def read_parts(path: str | os.PathLike, i: int) -> dict[str, np.ndarray]:
    """The ranges of session `i` of the split saved at `path`, by part.

    Raises:
      SplitError: no such file, or not a split.
    """
    try:
        parts = json.loads(Path(path).read_text())["sessions"][i]["parts"]
        return {p: _ranges(parts[p]) for p in PARTS}
    except (OSError, ValueError, KeyError, IndexError, TypeError) as e:
        raise SplitError("not a split, or damaged", where=path, found=str(e)) from e
