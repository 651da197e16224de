"""PatchTST (Nie et al. 2023) and iTransformer (Liu et al. 2024) of the package neuralforecast.

Their networks (Apache-2.0, PyTorch) as published there, trained here on the same windows,
scaling and budget as every other method: AdamW on MSE, the learning rate a cosine of the
elapsed share of the time, so that training ends when the time does. neuralforecast's own
trainer would cut windows across trials and knows no time. PatchTST sees one neuron at a
time; iTransformer attends over the neurons of a session, and its weights fit any number of
them: one model for all sessions in both cases. Needs `pip install "calm_jax[neuralforecast]"`.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calm_jax.baselines import windows as W
from calm_jax.errors import ConfigError, RunError
from calm_jax.recordings.batches import Prepared, Windows
from calm_jax.recordings.splits import Splits

INSTALL = 'pip install "calm_jax[neuralforecast]"'
GRID: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "patchtst": (
        {"learning_rate": 1e-3, "hidden_size": 64, "n_heads": 4, "dropout": 0.1},
        {"learning_rate": 3e-4, "hidden_size": 128, "n_heads": 16, "dropout": 0.2},
    ),
    "itransformer": (
        {"learning_rate": 1e-3, "hidden_size": 128, "n_heads": 8, "dropout": 0.1},
        {"learning_rate": 3e-4, "hidden_size": 256, "n_heads": 8, "dropout": 0.3},
    ),
}
_SERIES = 4096  # neurons x windows of a step, about
_TUNING = 0.5  # of the budget, shared by the grid; the rest trains the best point again
_CHECKS = 8  # validations in one training
_VALIDATION = 240  # windows, over all sessions


def missing() -> str | None:
    """One line when the extra is not installed, else None."""
    absent = [m for m in ("torch", "neuralforecast") if importlib.util.find_spec(m) is None]
    return f"{' and '.join(absent)} not installed: {INSTALL}" if absent else None


def _network(name: str, point: Mapping[str, Any], context: int, horizon: int, seed: int) -> Any:
    """The module of a grid point, with weights of the seed."""
    import torch
    from neuralforecast import models

    torch.manual_seed(seed)
    settings = {k: v for k, v in point.items() if k != "learning_rate"}
    common = {"h": horizon, "input_size": context, "random_seed": seed + 1, "max_steps": 1}
    if name == "patchtst":
        length = max(2, context // 6)
        return models.PatchTST(
            **common, patch_len=length, stride=max(1, length // 2), encoder_layers=2,
            linear_hidden_size=2 * settings["hidden_size"], fc_dropout=settings["dropout"],
            **settings,
        )  # fmt: skip
    return models.iTransformer(
        **common, n_series=1, e_layers=2, d_ff=2 * settings["hidden_size"], **settings
    )


def _apply(name: str, net: Any, x: Any) -> Any:
    """Contexts (B, C, N) -> (B, H, N)."""
    b, c, n = x.shape
    if name == "itransformer":
        return net({"insample_y": x})
    y = net({"insample_y": x.permute(0, 2, 1).reshape(b * n, c, 1)})
    return y.reshape(b, n, -1).permute(0, 2, 1)


class _Data:
    """Windows of the training part, by session, and those of the validation part."""

    def __init__(
        self, prepared: Prepared, splits: Splits, context: int, horizon: int, seed: int
    ) -> None:
        self.prepared, self.context, self.horizon = prepared, context, horizon
        self.alive = [np.flatnonzero(~c) for c in prepared.scalers.constant]
        self.sessions = splits.training_index
        size = context + horizon
        ranges = splits.ranges("train", self.sessions)
        ranges = ranges[ranges[:, 2] - ranges[:, 1] >= size]
        self._windows = {}
        for i in self.sessions:
            own = ranges[ranges[:, 0] == i]
            if not len(own):
                raise W.too_short(prepared, i, "train", context, horizon)
            self._windows[i] = Windows(own, size, seed)
        limit = max(_VALIDATION // len(self.sessions), 8)
        self.valid = []
        for i in self.sessions:
            stride = W.stride_for(prepared, i, "valid", context, horizon, limit)
            found = list(W.windows(prepared, i, "valid", context, horizon, stride))
            if not found:
                raise W.too_short(prepared, i, "valid", context, horizon)
            z, mask = (np.concatenate(x)[..., self.alive[i]] for x in zip(*found))
            self.valid.append((z[:, :context], z[:, context:], mask[:, context:]))

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Contexts, targets and their mask of one session: sessions take turns."""
        i = self.sessions[step % len(self.sessions)]
        count = int(np.clip(_SERIES // max(len(self.alive[i]), 1), 4, 64))
        rows = self._windows[i].at(step // len(self.sessions), count, 0, 1)
        z, mask = [], []
        for session, start, stop in zip(*rows):
            a, b = self.prepared.range(int(session), int(start), int(stop))
            z.append(a[:, self.alive[i]])
            mask.append(b[:, self.alive[i]])
        z, mask, c = np.stack(z), np.stack(mask), self.context
        return z[:, :c], z[:, c:], mask[:, c:]


def _error(name: str, net: Any, data: _Data) -> float:
    """MSE on the validation windows, mean over sessions."""
    errors = []
    for x, y, mask in data.valid:
        square = np.square(_predict(name, net, x) - y)
        errors.append(square.mean(where=mask) if mask.any() else 0.0)
    return float(np.mean(errors))


def _predict(name: str, net: Any, x: np.ndarray) -> np.ndarray:
    import torch

    net.eval()
    with torch.no_grad():
        parts = [
            _apply(name, net, torch.from_numpy(np.ascontiguousarray(x[k : k + 16], np.float32)))
            for k in range(0, len(x), 16)
        ]
    return torch.cat(parts).numpy()


def _train(
    name: str, point: Mapping[str, Any], data: _Data, seed: int, until: float
) -> tuple[float, Any, dict]:
    """The best weights on validation, found before the clock shows `until`."""
    import torch

    start = time.monotonic()
    net = _network(name, point, data.context, data.horizon, seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=point["learning_rate"], weight_decay=1e-2)
    best, kept, used, step, checks, check = math.inf, None, 0, 0, 0, 0.0
    pace = 0.0
    while True:
        now = time.monotonic()
        share = min((now - start) / max(until - start, 1e-9), 1.0)
        over = step > 0 and now + pace + check >= until
        if over or share * _CHECKS >= checks + 1:
            checks = int(share * _CHECKS)
            value = _error(name, net, data)
            check = max(check, time.monotonic() - now)
            if value < best:
                best, kept, used = value, copy.deepcopy(net.state_dict()), step
        if over:
            break
        begin = time.monotonic()
        for group in optimizer.param_groups:
            warm = min(1.0, share / 0.05 + 0.02)
            group["lr"] = point["learning_rate"] * warm * 0.5 * (1 + math.cos(math.pi * share))
        net.train()
        x, y, mask = (torch.from_numpy(np.ascontiguousarray(v)) for v in data.batch(step))
        weight = mask.float()
        square = torch.square(_apply(name, net, x.float()) - y.float()) * weight
        loss = square.sum() / weight.sum().clamp(min=1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        step += 1
        pace = 0.7 * pace + 0.3 * (time.monotonic() - begin) if pace else time.monotonic() - begin
    if kept is None:
        raise RunError(
            "the validation error is not finite", where=name, found=str(dict(point))
        )
    net.load_state_dict(kept)
    facts = {**point, "steps": step, "used_step": used, "validation": best}
    return best, net, {**facts, "seconds": round(time.monotonic() - start, 2)}


class Torch:
    """A trained network as a forecaster; longer horizons are rolled out.

    Attributes:
      tuning: one dictionary per training, as `baselines.tuning.Network` has them.
    """

    def __init__(self, name: str, net: Any, data: _Data, tuning: list[dict]) -> None:
        self._name, self._net, self.tuning = name, net, tuning
        self._alive, self._horizon = data.alive, data.horizon

    def __call__(
        self, context: np.ndarray, session: int, mask: np.ndarray, horizon: int
    ) -> np.ndarray:
        """Shapes: context (B, context, N) -> (B, horizon, N); constant neurons stay."""
        alive = self._alive[session]

        def step(x: np.ndarray, _: np.ndarray) -> np.ndarray:
            out = np.repeat(x[:, -1:], self._horizon, 1)
            out[..., alive] = _predict(self._name, self._net, x[..., alive])
            return out

        return W.roll(step, context, mask, self._horizon, horizon)


def fit(
    name: str,
    prepared: Prepared,
    splits: Splits,
    context: int,
    horizon: int,
    *,
    budget_seconds: float = 60.0,
    seed: int = 0,
    folder: Path | None = None,
) -> Torch:
    """Tuned on half of the budget, then the best point trained again on the rest.

    The time begins once PyTorch is loaded. Weights and batches follow the seed; how many
    steps fit the time does not. `folder` is not used: nothing is kept while training.

    Raises:
      ConfigError: when the extra is not installed. RunError: when every training diverges.
      RecordingError: when a session has no window.
    """
    lacking = missing()
    if lacking is not None:
        raise ConfigError(f"{name} needs the extra neuralforecast", where=name, found=lacking)
    import logging

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    _network(name, GRID[name][0], context, horizon, seed)  # imports
    begin = time.monotonic()
    data = _Data(prepared, splits, context, horizon, seed)
    points, record, found = GRID[name], [], []
    end = begin + _TUNING * budget_seconds
    failure: RunError | None = None
    attempts: list[Callable[[], tuple[Mapping[str, Any], float]]] = [
        lambda k=k: (points[k], _until(end, len(points) - k)) for k in range(len(points))
    ]
    attempts.append(lambda: (min(found, key=lambda x: x[0])[3] if found else points[0],
                             begin + budget_seconds))  # fmt: skip
    for attempt in attempts:
        point, until = attempt()
        if found and time.monotonic() >= until:
            record.append({**point, "left_out": "the budget is over"})
            continue
        try:
            value, net, facts = _train(name, point, data, seed, until)
        except RunError as e:
            failure = e
            record.append({**point, "validation": None, "error": e.what})
            continue
        record.append(facts)
        found.append((value, net, facts, point))
    if not found:
        raise failure
    _, net, facts, _ = min(found, key=lambda x: x[0])
    facts["chosen"] = True
    return Torch(name, net, data, record)


def _until(end: float, left: int) -> float:
    """An even share of the time to `end` for each of the trainings left."""
    now = time.monotonic()
    return now + max(end - now, 0.0) / left
