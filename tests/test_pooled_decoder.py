"""The pooled decoder: closed forms against scikit-learn, causality, what a shared prior buys."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from calm_jax import config, pooled_decoder, pooled_ridge
from calm_jax.decoding_scores import continuous
from calm_jax.errors import ConfigError, RecordingError
from calm_jax.pooled_calibration import numbers
from calm_jax.pooled_decoder import PooledDecoder
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.parts import Channel
from calm_jax.recordings.session import Session
from calm_jax.recordings.splits import make_split
from calm_jax.recordings.targets import make_targets

COUNTS, FRAMES, WIDTH = (5, 7, 6, 8), 300, 6


def latents(x: np.ndarray) -> np.ndarray:
    """(T, N, WIDTH) made of the present and the frame before alone."""
    before = np.concatenate([x[:1], x[:-1]])
    mix = np.random.default_rng(5).normal(size=(2, WIDTH))
    return np.tanh(np.stack([x, before], -1) @ mix).astype(np.float16)


def problem(seed: int = 0, shuffle: bool = False, frames: int = FRAMES, **change):
    """Sessions whose `speed` weighs the third latent of every neuron, and its sign."""
    rng = np.random.default_rng(seed)
    sessions = []
    for i, n in enumerate(COUNTS):
        x = np.zeros((frames, n), np.float32)
        for t in range(1, frames):
            x[t] = 0.8 * x[t - 1] + rng.normal(size=n)
        signal = latents(x)[..., 2].astype(np.float64) @ rng.normal(size=n)
        speed = signal + signal.std() * rng.normal(size=frames)
        speed = np.roll(speed, frames // 2) if shuffle else speed
        channels = {
            "speed": Channel(speed.astype(np.float32)),
            "state": Channel((speed > 0).astype(np.float32)),
        }
        sessions.append(Session(x, rate=10.0, session=f"s{i}", behavior=channels))
    splits = make_split(MemoryStore(sessions), config.Split())
    targets, _ = make_targets(sessions, splits, ["speed", "state"], ["state"])
    return sessions, splits, targets, dataclasses.replace(config.Decoding(), **change)


def decoder(sessions, splits, targets, settings) -> PooledDecoder:
    offset = np.concatenate([[0], np.cumsum([s.n_neurons for s in sessions])])
    read = lambda i, a, b: sessions[i].traces[a:b]  # noqa: E731
    features = lambda i, a, b: latents(sessions[i].traces[a:b])  # noqa: E731
    return PooledDecoder(read, features, splits, offset, targets, settings)


def skill(made: PooledDecoder) -> tuple[float, float]:
    """(mean r of speed, mean balanced accuracy of state) on the test parts."""
    r, right = [], []
    for i, parts in enumerate(made._splits.parts):
        [[a, b]] = parts["test"].tolist()
        p, (speed, state) = made.predict(i, a, b), (t.values[i][a:b] for t in made.targets)
        r.append(continuous(p[:, 0], speed)["r"])
        hit = p[:, 1:].argmax(1) == state
        right.append((hit[state == 0].mean() + hit[state == 1].mean()) / 2)
    return float(np.mean(r)), float(np.mean(right))


@pytest.mark.parametrize("shape", [(40, 70), (90, 20)])
def test_the_path_is_ridge_regression_with_weighted_frames(shape):
    rng = np.random.default_rng(1)
    q, y = rng.normal(size=shape).astype(np.float32) + 3, rng.normal(size=(shape[0], 2)) - 1
    weight = rng.uniform(0.5, 1.5, shape[0])
    unit = pooled_ridge.energy(q)
    found = pooled_ridge.path(q, pooled_ridge.Labels(y, weight), (1e-2, 1.0), unit)
    for alpha, (w, b) in zip((1e-2, 1.0), found, strict=True):
        oracle = Ridge(alpha=alpha * unit * len(q)).fit(q, y, sample_weight=weight)
        np.testing.assert_allclose(q @ w + b, oracle.predict(q), atol=2e-2 * alpha + 1e-3)


def test_bands_add_up_to_the_trace_and_read_nothing_ahead():
    z = np.random.default_rng(2).normal(size=(80, 3)).astype(np.float32)
    x = pooled_decoder.bands(z)
    assert x.shape == (80, 3, 1 + len(pooled_decoder.TAUS)) and (x[0, :, 1:] == 0).all()
    first = np.zeros_like(z)  # the first exponential mean, frame after frame
    first[0], keep = z[0], np.exp(-1 / pooled_decoder.TAUS[0])
    for t in range(1, 80):
        first[t] = keep * first[t - 1] + (1 - keep) * z[t]
    np.testing.assert_allclose(x[..., 1], z - first, atol=1e-5)
    other = z.copy()
    other[50:] += 9
    np.testing.assert_array_equal(pooled_decoder.bands(other)[:50], x[:50])


@pytest.mark.parametrize("look_ahead", [0, 3])
def test_a_changed_future_moves_nothing_before_it(look_ahead):
    sessions, *rest, settings = problem(look_ahead=look_ahead)
    made = decoder(sessions, *rest, settings)
    made.fit()
    before = made.predict(0, 0, 200)
    sessions[0] = sessions[0].replace(
        traces=np.where(np.arange(FRAMES)[:, None] >= 120, 5, sessions[0].traces)
    )
    after = made.predict(0, 0, 200)
    edge = 120 - look_ahead
    np.testing.assert_array_equal(after[:edge], before[:edge])
    assert (after[edge] != before[edge]).any()


def test_what_neurons_share_is_learned_and_handed_on():
    """One informative direction of twelve: the shared prior finds it and a new session with
    few labels gains from it."""
    made = decoder(*problem())
    made.fit()
    r, right = skill(made)
    assert r > 0.55 and right > 0.65
    sharp = made.solutions[0].directions
    top = sharp[:, 0] / np.abs(sharp[:, 0]).max()
    assert np.abs(top[len(pooled_decoder.TAUS) + 1 + 2]) > 0.5
    few = problem(seed=9, rows_only=True)
    short = [{**p, "train": p["train"][:, :1] + [[0, 50]]} for p in few[1].parts]
    few = (few[0], dataclasses.replace(few[1], parts=tuple(short)), *few[2:])
    plain, handed = decoder(*few), decoder(*few)
    plain.fit([pooled_decoder.start([plain.features(i, 0, 50) for i in range(4)])] * 2)
    handed.fit([s.directions for s in made.solutions])
    np.testing.assert_array_equal(handed.solutions[0].directions, sharp)
    assert skill(handed)[0] > skill(plain)[0]


def test_shuffled_labels_are_not_decoded():
    found = []
    for seed in range(4):
        made = decoder(*problem(seed, shuffle=True))
        made.fit()
        found.append(skill(made))
    r, right = np.mean(found, 0)
    assert abs(r) < 0.15 and abs(right - 0.5) < 0.08


def test_what_cannot_be_fitted_is_one_line():
    sessions, splits, targets, settings = problem()
    none = [{**p, "valid": p["valid"][:0]} for p in splits.parts]
    made = decoder(sessions, dataclasses.replace(splits, parts=tuple(none)), targets, settings)
    with pytest.raises(RecordingError, match="no label in the validation part"):
        made.fit()
    with pytest.raises(ConfigError, match="closed form"):
        pooled_decoder.settled(dataclasses.replace(settings, fine_tune=True))


def test_numbers_are_shifted_where_both_halves_agree():
    rng = np.random.default_rng(3)
    y = rng.normal(size=400)
    p = 2 * y + rng.normal(size=400)
    assert numbers(p, y) == pytest.approx((p @ y / (p @ p), 0.0))
    # One offset throughout: a least-squares line.
    slope, level = np.polyfit(p - 3, y, 1)
    assert numbers(p - 3, y) == pytest.approx((slope, level))
    # Offsets that cancel, or too few frames, are not taken for one.
    both = p + np.where(np.arange(400) < 200, 4.0, -4.0)
    assert numbers(both, y)[1] == 0 and numbers(p[:15] - 3, y[:15])[1] == 0
    # What points the other way is left out, what is too small is not blown up.
    assert numbers(-p, y)[0] == 0 and numbers(y / 10, y)[0] == 1
