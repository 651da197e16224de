"""The pooled decoder: behaviour by ridge regressions with a shared prior (`pooled_ridge`).

What a neuron gives at frame t, all of it from frames up to t + look-ahead:

  trace    z_t
  bands    e_{tau_k} - e_{tau_{k+1}} of causal exponential means of z, tau = 0, 2, ..., 32
           frames: the trace split by time scale, its slow level left out
  latents  the features of the backbone at t, every frame the end of a token

Per target: directions by rounds of empirical Bayes over all sessions; the number of
rounds by the mean error over the validation parts, the penalty of each session by its
own. Outputs are then calibrated on the validation part (`pooled_calibration`).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.signal import lfilter
from threadpoolctl import threadpool_limits

from calm_jax import config, pooled_ridge
from calm_jax.errors import ConfigError, RecordingError
from calm_jax.pooled_calibration import calibrated
from calm_jax.pooled_ridge import ALPHAS, Fit, Labels
from calm_jax.recordings.splits import Splits
from calm_jax.recordings.targets import Target

TAUS = (2, 4, 8, 16, 32)  # frames
# Shares of trace, bands and latents in the prior variance to begin with; validation chooses.
SHARES = ((0.2, 0.3, 0.5), (0.45, 0.5, 0.05))
ROUNDS = 1  # at most; a second one lowers the error it is chosen by, and no other
_LEARN = 1000  # frames of a session that directions are learned from
_PIECE = 1024  # frames whose features are held at once
_MOST = 6000  # frames of a session that rows are fitted to: kernels are (T, T)

Read = Callable[[int, int, int], np.ndarray]


class Solution(NamedTuple):
    """What decodes one target.

    directions (K, R); rows (N, R, O) of the neurons of all sessions, bias (S, O);
    alpha (S,) penalties, for the record. Outputs are calibrated.
    """

    directions: np.ndarray
    rows: np.ndarray
    bias: np.ndarray
    alpha: np.ndarray


def bands(z: np.ndarray) -> np.ndarray:
    """(T, N, 1 + len(TAUS)): the trace and its bands. Shapes: z (T, N).

    Means begin at the first frame, as if it had stood there for ever.
    """
    means = [z.astype(np.float64)]
    for tau in TAUS:
        keep = np.exp(-1.0 / tau)
        out, _ = lfilter([1 - keep], [1, -keep], means[0], axis=0, zi=keep * means[0][:1])
        means.append(out)
    parts = [a - b for a, b in itertools.pairwise(means)]
    return np.stack([z, *parts], -1).astype(np.float32)


def start(x: Sequence[np.ndarray], shares: Sequence[float] = SHARES[0]) -> np.ndarray:
    """(K, K) directions to begin with: the blocks of features scaled to their shares.

    Shapes: x of each session (T, N, K), of training frames.
    """
    spread = np.mean([np.square(v - v.mean(0)).mean((0, 1)) for v in x], axis=0)
    edges = (0, 1, 1 + len(TAUS), x[0].shape[2])
    scale = np.zeros(edges[-1])
    for share, a, b in zip(shares, edges, edges[1:], strict=False):
        scale[a:b] = np.sqrt(share / max(float(spread[a:b].sum()), 1e-12))
    return np.diag(scale).astype(np.float32)


class PooledDecoder:
    """Fits and applies the pooled decoder of `targets`.

    Args:
      traces, latents: (session, start, stop) -> (T, N) scaled, (T, N, D) of a whole range.
      offset: (S + 1,) first row of each session's neurons.
      rank: directions kept after a round. look_ahead: frames.
    """

    def __init__(
        self,
        traces: Read,
        latents: Read,
        splits: Splits,
        offset: np.ndarray,
        targets: Sequence[Target],
        settings: config.Decoding,
    ):
        self._traces, self._latents, self._splits = traces, latents, splits
        self.offset, self.targets, self._settings = offset, tuple(targets), settings
        self.solutions: list[Solution] = []
        self.notes: list[str] = []

    @property
    def _sessions(self) -> range:
        return range(len(self.offset) - 1)

    def features(
        self,
        i: int,
        start: int,
        stop: int,
        index: np.ndarray | None = None,
        directions: np.ndarray | None = None,
    ) -> np.ndarray:
        """(T, N, K) of the frames `index` of a whole range of session `i`, None = all; with
        directions (K, R) the projection (T, N * R), made a piece at a time."""
        own = bands(self._traces(i, start, stop))
        h = self._latents(i, start, stop)
        index = np.arange(stop - start) if index is None else index
        index = np.minimum(index + self._settings.look_ahead, stop - start - 1)
        made = []
        for at in range(0, max(len(index), 1), _PIECE):
            part = index[at : at + _PIECE]
            x = np.concatenate([own[part], h[part].astype(np.float32)], -1)
            made.append(x if directions is None else pooled_ridge.project(x, directions))
        return np.concatenate(made)

    # -- fitting -------------------------------------------------------------------

    def fit(self, given: Sequence[np.ndarray] | None = None) -> None:
        """Finds `solutions`, one per target.

        Args:
          given: directions (K, R) of each target to begin with; kept with `rows_only`.

        Raises:
          RecordingError: for a target without labels in the validation part.
        """
        self.solutions, self.notes = [], []
        for k, target in enumerate(self.targets):
            known = [i for i in self._sessions if self._any(target, i, "train")]
            judged = [i for i in known if self._any(target, i, "valid")]
            if not judged:
                raise RecordingError(
                    "no label in the validation part",
                    where=f"--target {target.name}",
                    expected="labels to choose the penalty with",
                    remedy="Give recordings with labels there, or decode another target.",
                )
            missing = len(self._sessions) - len(known)
            if missing:
                self.notes.append(
                    f"{target.name}: {missing} sessions without labels in the training part; "
                    "there it says the same at every frame"
                )
            begin = None if given is None else given[k]
            # Many small decompositions: threads of BLAS wait for each other longer than they work.
            with threadpool_limits(1, "blas"):
                self.solutions.append(self._solve(target, known, judged, begin))

    def _any(self, target: Target, i: int, part: str) -> bool:
        return any(target.known[i][a:b].any() for a, b in self._splits.parts[i][part])

    def _solve(
        self, target: Target, known: list[int], judged: list[int], given: np.ndarray | None
    ) -> Solution:
        rounds = 0 if given is not None and self._settings.rows_only else ROUNDS
        if given is not None:
            begins = [given]
        else:
            x = [self._frames(target, i, "train", None, _LEARN) for i in known]
            begins = [start(x, shares) for shares in SHARES]
            del x
        if rounds == 0:
            return self._rows(target, known, judged, begins[0])
        best: tuple[float, int, int, np.ndarray] = (np.inf, 0, 0, begins[0])
        for number, directions in enumerate(begins):
            for at in range(rounds + 1):
                error, sharper = self._round(target, known, judged, directions)
                if error < best[0]:
                    best = (error, number, at, directions)
                directions = sharper
        told = "" if given is not None else f"start {SHARES[best[1]]}, "
        self.notes.append(
            f"{target.name}: {told}{best[2]} of {rounds} rounds of the shared prior "
            f"(validation error {best[0]:.3f} of that of the mean)"
        )
        return self._rows(target, known, judged, best[3])

    def _round(
        self, target: Target, known: list[int], judged: list[int], directions: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """(mean error on validation, the directions after one more round)."""
        data = {i: self._data(target, i, directions, _LEARN) for i in known}
        unit = np.mean([pooled_ridge.energy(d[0]) for d in data.values()])
        paths = {i: pooled_ridge.path(d[0], d[1], ALPHAS, unit) for i, d in data.items()}
        errors = _errors({i: data[i] for i in judged}, paths)
        chosen = _chosen(errors, known)
        fits = [_fit(paths[i][chosen[i]], self._count(i), target.outputs) for i in known]
        sharper = pooled_ridge.sharpen(directions, fits, self._settings.rank)
        return float(np.mean([e.min() for e in errors.values()])), sharper

    def _rows(
        self, target: Target, known: list[int], judged: list[int], directions: np.ndarray
    ) -> Solution:
        """Rows and biases for given directions, calibrated."""
        rank, outputs = directions.shape[1], target.outputs
        rows = np.zeros((int(self.offset[-1]), rank, outputs), np.float32)
        bias = np.zeros((len(self.offset) - 1, outputs), np.float32)
        alpha = np.full(len(self.offset) - 1, np.nan, np.float32)
        unit = np.mean(
            [
                pooled_ridge.energy(self._frames(target, i, "train", directions, _LEARN))
                for i in known
            ]
        )
        kept, errors, valid = {}, {}, {}
        for i in known:
            data = self._data(target, i, directions, _MOST)
            kept[i] = pooled_ridge.path(data[0], data[1], ALPHAS, unit)
            if i in judged:
                errors |= _errors({i: data}, kept)
                valid[i] = data[2:]
        chosen = _chosen(errors, known)
        for i in known:
            found = _fit(kept[i][chosen[i]], self._count(i), outputs)
            scale, shift = 1.0, np.zeros(outputs)
            if i in judged:
                weights, level = kept[i][chosen[i]]
                scale, shift = calibrated(
                    valid[i][0] @ weights + level, valid[i][1], target.classes is not None
                )
            own = slice(self.offset[i], self.offset[i + 1])
            rows[own], bias[i] = scale * found.rows, scale * found.bias + shift
            alpha[i] = ALPHAS[chosen[i]]
        return Solution(directions, rows, bias, alpha)

    def _count(self, i: int) -> int:
        return int(self.offset[i + 1] - self.offset[i])

    # -- labelled frames -----------------------------------------------------------

    def _data(
        self, target: Target, i: int, directions: np.ndarray, most: int
    ) -> tuple[np.ndarray, Labels, np.ndarray, Labels]:
        """Projected features and labels of the training and the validation part."""
        out: list = []
        for part, limit in (("train", most), ("valid", _MOST)):
            out.append(self._frames(target, i, part, directions, limit))
            out.append(self._labels(target, i, part, limit))
        return tuple(out)

    def _index(self, target: Target, i: int, part: str, most: int) -> list[np.ndarray]:
        """Labelled frames of every range from its start, evenly spaced where there are more."""
        ranges = self._splits.parts[i][part].tolist()
        known = [np.flatnonzero(target.known[i][a:b]) for a, b in ranges]
        step = -(-sum(map(len, known)) // most) or 1
        return [k[::step] for k in known]

    def _frames(
        self, target: Target, i: int, part: str, directions: np.ndarray | None, most: int
    ) -> np.ndarray:
        """Features (T, N, K) of labelled frames; with directions (T, N * R)."""
        made = []
        ranges = self._splits.parts[i][part].tolist()
        for (a, b), index in zip(ranges, self._index(target, i, part, most)):
            if len(index):
                made.append(self.features(i, a, b, index, directions))
        if made:
            return np.concatenate(made)
        return np.zeros((0, self._count(i) * directions.shape[1]), np.float32)

    def _labels(self, target: Target, i: int, part: str, most: int) -> Labels:
        """Scaled numbers, or one-hot classes about 1 / C with the weights of classes."""
        ranges = self._splits.parts[i][part].tolist()
        index = self._index(target, i, part, most)
        values = np.concatenate([target.values[i][a:b][k] for (a, b), k in zip(ranges, index)])
        if target.classes is None:
            return Labels(values[:, None].astype(np.float64), np.ones(len(values)))
        size = len(target.classes)
        labels = values.astype(int)
        y = np.eye(size)[labels] - 1 / size
        if not self._settings.balanced:
            return Labels(y, np.ones(len(labels)))
        train = np.concatenate(
            [
                target.values[i][a:b][target.known[i][a:b]]
                for a, b in self._splits.parts[i]["train"].tolist()
            ]
        )
        count = np.bincount(train.astype(int), minlength=size)
        weight = np.where(count > 0, len(train) / np.maximum(count, 1) / (count > 0).sum(), 0)
        return Labels(y, weight[labels])

    # -- decoding ------------------------------------------------------------------

    def predict(self, i: int, start: int, stop: int) -> np.ndarray:
        """(stop - start, outputs of all targets) of a whole range of session `i`."""
        own = slice(self.offset[i], self.offset[i + 1])
        parts = []
        for s in self.solutions:
            q = self.features(i, start, stop, None, s.directions)
            parts.append(q @ s.rows[own].reshape(q.shape[1], -1) + s.bias[i])
        return np.concatenate(parts, 1)

    def arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """The solutions to be saved, by the number of the target."""
        return {str(k): s._asdict() for k, s in enumerate(self.solutions)}


def settled(settings: config.Decoding) -> config.Decoding:
    """The settings as the pooled head needs them; those of other heads as they are.

    Raises:
      ConfigError: when the backbone is to be tuned below it.
    """
    if settings.head != "pooled":
        return settings
    if settings.fine_tune:
        raise ConfigError(
            "the pooled head is solved in closed form, on features that stay",
            where="--fine-tune",
            remedy="Train it with --head gated or --head linear.",
        )
    # It reads the trace itself, beside the features of every frame.
    return dataclasses.replace(settings, every_frame=True, traces=False)


def _fit(one: tuple[np.ndarray, np.ndarray], neurons: int, outputs: int) -> Fit:
    return Fit(one[0].reshape(neurons, -1, outputs), one[1])


def _errors(data: dict[int, tuple], paths: dict[int, list]) -> dict[int, np.ndarray]:
    """Per session the weighted squared error on validation for every penalty, over that of
    the mean of the training labels: sessions that are hard weigh no more."""
    out = {}
    for i, (_, train, q, labels) in data.items():
        w = labels.weight[:, None]
        level = (train.weight[:, None] * train.y).sum(0) / train.weight.sum()
        base = max(float((w * np.square(labels.y - level)).sum()), 1e-12)
        out[i] = np.array(
            [(w * np.square(q @ a + b - labels.y)).sum() / base for a, b in paths[i]]
        )
    return out


def _chosen(errors: dict[int, np.ndarray], known: list[int]) -> dict[int, int]:
    """The penalty of each session: the best on its validation part; without labels there,
    the median of the others' (one session with hardly a label would rule their mean)."""
    best = {i: int(e.argmin()) for i, e in errors.items()}
    middle = int(np.median(list(best.values())))
    return {i: best.get(i, middle) for i in known}
