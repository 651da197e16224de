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
from calm_jax.stack_weights import roughness

_SAMPLES = {"train": 400_000, "valid": 200_000}  # windows x neurons that maps by roughness see
_ALPHAS = tuple(10.0 ** np.arange(-4.0, 2.0))  # of these maps, as `shared_linear.ALPHAS`


class Start(TypedDict):
    """Parameters of the read-out; `level` and `rough` are None where the path has none or keeps
    them at 0."""

    linear: dict[str, Array]
    level: dict[str, Array] | None
    rough: dict[str, Array] | None


def fitted(config: configs.DualAxis, prepared: Any, patch: int) -> Start:
    """The shared linear map of the training part, its regularisation chosen on validation.

    Recordings too short for the whole context give a map of fewer lags; the older ones are 0
    then, and all of them where not a single code fits. With `linear_level` the map is one of
    levels where that forecasts the validation part better than one of changes from the
    last frame, as traces that return to their mean ask for, and those that drift do not.

    With `linear_knots` ridge regression of what that map leaves gives the maps by roughness;
    alpha is chosen on validation, too, and where none lowers the error there, they stay 0.
    """
    lags, ahead = config.linear_context, config.readout_frames
    splits = prepared.splits
    longest = [splits.ranges(p)[:, 1:] @ [-1, 1] for p in ("train", "valid")]
    room = min(lags, min(int(x.max(initial=0)) for x in longest) - ahead)
    kernel, level, rough = np.zeros((lags, ahead), np.float32), None, None
    if room >= patch:
        kinds = (True, False) if config.linear_level else (True,)
        fit = shared_linear.fit(prepared, splits, room, ahead, differences=kinds)
        kernel[lags - room :] = fit.weights[:-1]
        if not fit.difference:
            # W x + c = W (x - x_last) + (sum of W) x_last + c; the anchor adds x_last itself.
            total = kernel.sum(0, keepdims=True) - config.anchor
            level = {"kernel": jnp.asarray(total), "bias": jnp.asarray(fit.weights[-1])}
        if config.linear_knots:
            if fit.difference:  # the path has no constant then
                w = np.concatenate([fit.weights[:-1], np.zeros_like(fit.weights[-1:])])
                fit = shared_linear.SharedLinear(w, True, fit.alpha, fit.error)
            own = _by_roughness(config, prepared, fit, room)
            if own is not None:
                rough = {"kernel": jnp.asarray(_padded(own, config, room))}
    return {"linear": {"kernel": jnp.asarray(kernel)}, "level": level, "rough": rough}


def _padded(own: np.ndarray, config: configs.DualAxis, room: int) -> np.ndarray:
    """(knots * features, frames) for the whole context from (knots, features, frames) of
    `room` lags: the older ones are 0."""
    older = ((0, 0), (config.linear_context - room, 0), (0, 0))
    return np.pad(own, older).reshape(-1, own.shape[-1]).astype(np.float32)


def _by_roughness(
    config: configs.DualAxis, prepared: Any, base: shared_linear.SharedLinear, room: int
) -> np.ndarray | None:
    """(knots, features, frames) added to `base`, or None where no alpha helps on validation.

    Features are changes from the last frame, and with `linear_level` the last frame and 1.
    """
    size = len(config.linear_knots) * (room + 2 * config.linear_level)
    gram, cross = np.zeros((size, size)), np.zeros((size, config.readout_frames))
    for x, y in _residuals(config, prepared, base, room, "train"):
        gram += x.T @ x
        cross += x.T @ y
    moments = [np.zeros_like(gram), np.zeros_like(cross), 0.0]
    for x, y in _residuals(config, prepared, base, room, "valid"):
        moments = [moments[0] + x.T @ x, moments[1] + x.T @ y, moments[2] + float((y**2).sum())]
    scale = np.trace(gram) / size
    if not scale > 0:
        return None
    best, found = moments[2], None
    for alpha in _ALPHAS:
        w = np.linalg.solve(gram + alpha * scale * np.eye(size), cross)
        error = moments[2] - 2 * float((w * moments[1]).sum()) + float((w * (moments[0] @ w)).sum())
        if error < best:
            best, found = error, w
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
            given = [x - last, *((last, np.ones_like(last)) if config.linear_level else ())]
            phi = np.stack([np.interp(roughness(x), knots, e) for e in np.eye(len(knots))], -1)
            whole = seen.all(1)
            f = np.moveaxis(np.concatenate(given, 1), 1, 2)[whole]
            each = (phi[whole][:, :, None] * f[:, None]).reshape(len(f), -1)
            yield each.astype(np.float64), np.moveaxis(left, 1, 2)[whole].astype(np.float64)
