"""Where the linear path of the read-out starts."""

import dataclasses

import jax
import numpy as np
import pytest

from calm_jax.baselines import shared_linear, windows
from calm_jax.baselines.windows import roughness
from calm_jax.errors import ConfigError
from calm_jax.models.dual_axis import features
from calm_jax.models.forecaster import read_frames
from calm_jax.tasks import linear_start
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


def _windows(part):
    """Contexts of 8 frames, the next 4, and the session of each; of all sessions."""
    for i in range(len(prepared().store.sessions)):
        keep = ~prepared().scalers.constant[i]
        for z, seen in windows.windows(prepared(), i, part, 8, 4):
            yield i, z[:, :8], seen[:, :8], z[:, 8:], seen.all(1) & keep


@pytest.mark.parametrize("difference", [True, False])
def test_maps_by_roughness_against_plain_least_squares(monkeypatch, difference):
    """What is added to the shared map is the ridge regression of what it leaves, and the
    untrained read-out is both; where validation sees no gain the maps stay 0 and untrained."""
    knots = (0.2, 0.9, 2.0)
    config = dataclasses.replace(
        QUIET, readout_frames=4, linear_context=8, linear_start=True, linear_level=True,
        linear_knots=knots,
    )  # fmt: skip
    monkeypatch.setattr(linear_start, "_ALPHAS", (0.01,))
    own = shared_linear.fit
    forced = lambda *a, differences: own(*a, differences=(difference,))
    monkeypatch.setattr(shared_linear, "fit", forced)
    base = own(prepared(), prepared().splits, 8, 4, differences=(difference,))
    if difference:
        base.weights[-1] = 0  # the path of changes has no constant

    def design(x):
        """(W, N, knots * features)"""
        given = [x - x[:, -1:]] if difference else [x - x[:, -1:], x[:, -1:], 0 * x[:, -1:] + 1]
        phi = np.stack([np.interp(roughness(x), knots, e) for e in np.eye(3)], -1)
        each = phi[..., None] * np.moveaxis(np.concatenate(given, 1), 1, 2)[:, :, None]
        return each.reshape(*x[:, 0].shape, -1)

    rows = {"train": [], "valid": []}
    for part, found in rows.items():
        for i, x, seen, y, ok in _windows(part):
            left = np.moveaxis(y - base(x, i, seen, 4), 1, 2)
            found.append((design(x)[ok], left[ok]))
    (a, b), (c, d) = (map(np.concatenate, zip(*found, strict=True)) for found in rows.values())
    a, b = a.astype(np.float64), b.astype(np.float64)
    gram = a.T @ a
    w = np.linalg.solve(gram + 0.01 * np.trace(gram) / len(gram) * np.eye(len(gram)), a.T @ b)
    helps = np.square(d - c @ w).sum() < np.square(d).sum()
    task = make(config)
    params, extra = task.init(jax.random.key(0))
    kernel = np.asarray(params["readout"]["rough"]["kernel"])
    levels = np.asarray(params["readout"]["rough_level"]["kernel"])
    assert helps == kernel.any() == task.trains("readout/rough/kernel")
    assert (helps and not difference) == levels.any() == task.trains("readout/rough_level/kernel")
    assert not task.decays("readout/rough/kernel")
    monkeypatch.setattr(linear_start, "_knots", lambda *a: w.reshape(3, -1, 4))
    task = make(config)
    params, extra = task.init(jax.random.key(0))
    net = task.model(params)
    _, tokens, _ = task._inputs(extra, task.batch(0))
    found = read_frames(net, features(net, tokens), tokens)[:, -1]
    frames = tokens.values.swapaxes(1, 2).reshape(*found.shape[:2], -1)[..., -8:]
    given = np.asarray(frames).swapaxes(1, 2)
    wanted = base(given, 0, np.ones(given.shape, bool), 4).swapaxes(1, 2) + design(given) @ w
    np.testing.assert_allclose(found, wanted, atol=2e-3)  # the head starts near 0
    if helps:
        wanted = w.reshape(3, -1, 4)[:, :8].reshape(-1, 4)
        np.testing.assert_allclose(kernel, wanted, rtol=1e-3, atol=1e-5)


def test_maps_by_roughness_are_left_out_where_they_do_not_help(monkeypatch):
    config = dataclasses.replace(
        QUIET, readout_frames=4, linear_context=8, linear_start=True, linear_knots=(0.2, 2.0)
    )
    monkeypatch.setattr(linear_start, "_knots", lambda *a: None)
    task = make(config)
    params, _ = task.init(jax.random.key(0))
    assert not np.any(params["readout"]["rough"]["kernel"])
    assert not task.trains("readout/rough/kernel") and task.trains("readout/linear/kernel")
    for change, words in (
        ({"linear_start": False}, "linear_start"), ({"linear_knots": (1.0, 0.2)}, "ascending"),
        ({"linear_knots": (1.0,)}, "at least two"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            make(dataclasses.replace(config, **change))
