"""Where the linear path of the frame read-out starts: the map that least squares gives."""

from __future__ import annotations

from typing import Any, TypedDict

import jax.numpy as jnp
import numpy as np
from jax import Array

from calm_jax import config as configs
from calm_jax.baselines import shared_linear


class Start(TypedDict):
    """Parameters of the read-out; `level` is None where the path has none or keeps it at 0."""

    linear: dict[str, Array]
    level: dict[str, Array] | None


def fitted(config: configs.DualAxis, prepared: Any, patch: int) -> Start:
    """The shared linear map of the training part, its regularisation chosen on validation.

    Recordings too short for the whole context give a map of fewer lags; the older ones are 0
    then, and all of them where not a single code fits. With `linear_level` the map is one of
    levels where that forecasts the validation part better than one of changes from the
    last frame, as traces that return to their mean ask for, and those that drift do not.
    """
    lags, ahead = config.linear_context, config.readout_frames
    splits = prepared.splits
    longest = [splits.ranges(p)[:, 1:] @ [-1, 1] for p in ("train", "valid")]
    room = min(lags, min(int(x.max(initial=0)) for x in longest) - ahead)
    kernel, level = np.zeros((lags, ahead), np.float32), None
    if room >= patch:
        kinds = (True, False) if config.linear_level else (True,)
        fit = shared_linear.fit(prepared, splits, room, ahead, differences=kinds)
        kernel[lags - room :] = fit.weights[:-1]
        if not fit.difference:
            # W x + c = W (x - x_last) + (sum of W) x_last + c; the anchor adds x_last itself.
            total = kernel.sum(0, keepdims=True) - config.anchor
            level = {"kernel": jnp.asarray(total), "bias": jnp.asarray(fit.weights[-1])}
    return {"linear": {"kernel": jnp.asarray(kernel)}, "level": level}
