"""Where the linear path of the frame read-out starts: the map that least squares gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypedDict

import jax.numpy as jnp
import numpy as np
from jax import Array

from calm_jax import config as configs
from calm_jax.baselines import shared_linear
from calm_jax.baselines import windows as W

_SAMPLES = {"train": 400_000, "valid": 200_000}  # windows x neurons that maps by roughness see
_ALPHAS = tuple(10.0 ** np.arange(-4.0, 2.0))  # of these maps, as `shared_linear.ALPHAS`


class Start(TypedDict):
    """Parameters of the read-out; all but the first are None where the path has none or keeps
    them at 0."""

    linear: dict[str, Array]
    level: dict[str, Array] | None
    rough: dict[str, Array] | None
    rough_level: dict[str, Array] | None


def fitted(config: configs.DualAxis, prepared: Any, patch: int) -> Start:
    """The shared linear map of the training part, its regularisation chosen on validation.

    Recordings too short for the whole context give a map of fewer lags; the older ones are 0
    then, and all of them where not a single code fits. With `linear_level` the map is one of
    levels where that forecasts the validation part better than one of changes from the
    last frame, as traces that return to their mean ask for, and those that drift do not.

    With `linear_knots` ridge regression of what that map leaves gives the maps by roughness, of
    levels too where it is one of levels; alpha is chosen on validation, and where none lowers the
    error there, they stay 0.
    """
    lags, ahead = config.linear_context, config.readout_frames
    splits = prepared.splits
    longest = [splits.ranges(p)[:, 1:] @ [-1, 1] for p in ("train", "valid")]
    room = min(lags, min(int(x.max(initial=0)) for x in longest) - ahead)
    kernel = np.zeros((lags, ahead), np.float32)
    start: Start = {"linear": {}, "level": None, "rough": None, "rough_level": None}
    if room >= patch:
        kinds = (True, False) if config.linear_level else (True,)
        fit = shared_linear.fit(prepared, splits, room, ahead, differences=kinds)
        kernel[lags - room :] = fit.weights[:-1]
        if not fit.difference:
            # W x + c = W (x - x_last) + (sum of W) x_last + c; the anchor adds x_last itself.
            total = kernel.sum(0, keepdims=True) - config.anchor
            start["level"] = {"kernel": jnp.asarray(total), "bias": jnp.asarray(fit.weights[-1])}
        if config.linear_knots:
            start |= _by_roughness(config, prepared, fit, room)
    start["linear"] = {"kernel": jnp.asarray(kernel)}
    return start


def _by_roughness(
    config: configs.DualAxis, prepared: Any, base: shared_linear.SharedLinear, room: int
) -> dict[str, dict[str, Array]]:
    """`rough`, and `rough_level` where `base` is a map of levels; empty where no alpha helps."""
    if base.difference:  # the path has no constant then
        w = np.concatenate([base.weights[:-1], np.zeros_like(base.weights[-1:])])
        base = shared_linear.SharedLinear(w, True, base.alpha, base.error)
    own = _knots(config, prepared, base, room)
    if own is None:
        return {}
    older = np.pad(own[:, :room], ((0, 0), (config.linear_context - room, 0), (0, 0)))
    flat = lambda w: {"kernel": jnp.asarray(w.reshape(-1, w.shape[-1]), jnp.float32)}
    found = {"rough": flat(older)}
    return found if base.difference else found | {"rough_level": flat(own[:, room:])}


def _knots(
    config: configs.DualAxis, prepared: Any, base: shared_linear.SharedLinear, room: int
) -> np.ndarray | None:
    """(knots, features, frames) added to `base`, or None where no alpha helps on validation.

    Features are changes from the last frame; of a map of levels the last frame and 1, too.
    """
    size = len(config.linear_knots) * (room + 2 * (not base.difference))
    gram, cross = np.zeros((size, size)), np.zeros((size, config.readout_frames))
    for x, y in _residuals(config, prepared, base, room, "train"):
        gram += x.T @ x
        cross += x.T @ y
    a, b, least = np.zeros_like(gram), np.zeros_like(cross), 0.0  # of the validation part
    for x, y in _residuals(config, prepared, base, room, "valid"):
        a += x.T @ x
        b += x.T @ y
        least += float(np.square(y).sum())
    scale, found, start = np.trace(gram) / size, None, least
    if not scale > 0:
        return None
    for alpha in _ALPHAS:
        w = np.linalg.solve(gram + alpha * scale * np.eye(size), cross)
        error = start + float((w * (a @ w - 2 * b)).sum())
        if error < least:
            least, found = error, w
    return None if found is None else found.reshape(len(config.linear_knots), -1, cross.shape[1])


def _residuals(
    config: configs.DualAxis, prepared: Any, base: shared_linear.SharedLinear, room: int, part: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Features (n, knots * features) and what `base` leaves (n, frames), session by session, of
    windows that are valid throughout, evenly spread where there are too many."""
    ahead, knots = config.readout_frames, np.asarray(config.linear_knots)
    sessions = prepared.splits.training_index
    for i in sessions:
        keep = np.flatnonzero(~prepared.scalers.constant[i])
        limit = max(1, _SAMPLES[part] // (len(sessions) * max(1, len(keep))))
        stride = W.stride_for(prepared, i, part, room, ahead, limit)
        for z, seen in W.windows(prepared, i, part, room, ahead, stride):
            z, seen = z[..., keep], seen[..., keep]
            x, y = z[:, :room], z[:, room:]
            left = y - base(x, i, seen[:, :room], ahead)
            last = x[:, -1:]
            given = [x - last] if base.difference else [x - last, last, np.ones_like(last)]
            phi = np.stack([np.interp(W.roughness(x), knots, e) for e in np.eye(len(knots))], -1)
            whole = seen.all(1)
            f = np.moveaxis(np.concatenate(given, 1), 1, 2)[whole]
            each = (phi[whole][:, :, None] * f[:, None]).reshape(len(f), -1)
            yield each.astype(np.float64), np.moveaxis(left, 1, 2)[whole].astype(np.float64)
