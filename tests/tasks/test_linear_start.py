"""Where the linear path of the read-out starts."""

import dataclasses

import jax
import numpy as np
import pytest

from calm_jax.baselines import shared_linear
from calm_jax.errors import ConfigError
from calm_jax.models.dual_axis import features
from calm_jax.models.forecaster import read_frames
from tests.tasks.test_next_code import QUIET, make, prepared


def test_the_linear_path_starts_at_the_fitted_map():
    """Lags that no range holds beside the horizon are 0, and the fit is not decayed away."""
    config = dataclasses.replace(QUIET, readout_frames=4, linear_context=48, linear_start=True)
    task = make(config)
    params, _ = task.init(jax.random.key(0))
    kernel = np.asarray(params["readout"]["linear"]["kernel"])
    splits = prepared().splits
    longest = min(int(np.ptp(splits.ranges(p)[:, 1:], axis=1).max()) for p in ("train", "valid"))
    lags = min(48, longest - 4)
    fit = shared_linear.fit(prepared(), splits, lags, 4, differences=(True,))
    assert fit.difference and 0 < lags < 48
    np.testing.assert_array_equal(kernel[48 - lags :], fit.weights[:-1])
    assert not kernel[: 48 - lags].any()
    assert not task.decays("readout/linear/kernel") and task.decays("readout/head/kernel")
    assert make(dataclasses.replace(config, linear_start=False)).decays("readout/linear/kernel")


@pytest.mark.parametrize("anchor", [True, False])
def test_the_linear_path_is_the_better_map_of_levels_and_of_changes(monkeypatch, anchor):
    """Untrained, the read-out is the shared map; a level that was not taken is not trained."""
    config = dataclasses.replace(
        QUIET, readout_frames=4, linear_context=8, linear_start=True, linear_level=True,
        anchor=anchor,
    )  # fmt: skip
    for kinds in ((False,), (True,)):
        own = shared_linear.fit
        forced = lambda *a, differences, own=own, kinds=kinds: own(*a, differences=kinds)  # noqa: E731
        monkeypatch.setattr(shared_linear, "fit", forced)
        task = make(config)
        params, extra = task.init(jax.random.key(0))
        assert task.trains("readout/level/kernel") == (kinds == (False,))
        assert not task.decays("readout/level/kernel")
        if kinds == (False,):
            fit = own(prepared(), prepared().splits, 8, 4, differences=kinds)
            net = task.model(params)
            _, tokens, _ = task._inputs(extra, task.batch(0))
            found = read_frames(net, features(net, tokens), tokens)[:, -1]
            frames = tokens.values.swapaxes(1, 2).reshape(*found.shape[:2], -1)[..., -8:]
            given = np.asarray(frames).swapaxes(1, 2)
            wanted = fit(given, 0, np.ones(given.shape, bool), 4).swapaxes(1, 2)
            np.testing.assert_allclose(found, wanted, atol=2e-3)  # the head starts near 0
        else:
            assert not np.any(params["readout"]["level"]["kernel"])
        monkeypatch.undo()
    with pytest.raises(ConfigError, match="linear_level"):
        make(dataclasses.replace(config, linear_start=False))
