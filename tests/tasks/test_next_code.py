"""Training on codes: loss against loops, noise, scheduled sampling, batches."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calm_jax import config as configs
from calm_jax.errors import ConfigError
from calm_jax.models import tokenizer
from calm_jax.models.dual_axis import Tokens, code_logits, features
from calm_jax.models.forecaster import read_frames
from calm_jax.recordings import preprocess
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.session import Session, Trials
from calm_jax.recordings.splits import make_split
from calm_jax.tasks.next_code import NextCode
from calm_jax.tasks.transformer_checks import check
from calm_jax.training.mesh import make_mesh, replicate, shard_batch
from calm_jax.training.optimizers import make_optimizer
from calm_jax.training.state import create, named
from calm_jax.training.step import make_step

PATCH, K, SEED = 4, 16, 7
pytestmark = pytest.mark.usefixtures("quick_compilation")
QUIET = configs.DualAxis(
    width=8, layers=1, heads=2, ffn=12, dropout=0.0, mixing="signed", mixing_heads=2,
    mixing_rank=3, values="difference", readout_frames=8, linear_context=8, tokens="encoded",
    noise_probability=0.0, scheduled_probability=0.0, readout_weight=2.0, code_weight=0.5,
)
LOUD = dataclasses.replace(
    QUIET, dropout=0.2, noise_probability=0.3, scheduled_probability=0.9, scheduled_block=2,
    neurons_per_trial=4,
)
TRAINING = configs.Training(batch=4, window=16, eval_batches=2, learning_rate=1e-2, ema=0.9)


@functools.cache
def prepared():
    """Ragged trials of 4 neurons, and 6 neurons without trials, with missing frames."""
    rng = np.random.default_rng(0)
    lengths = np.tile([10, 24, 17, 31], 6)
    edges = np.concatenate([[0], np.cumsum(lengths)])
    walk = lambda t, n: np.cumsum(rng.normal(size=(t, n)), 0)
    one = Session(
        walk(edges[-1], 4), rate=10, session="one", trials=Trials(edges[:-1], edges[1:])
    )
    two = Session(walk(301, 6), rate=10, session="two", valid=rng.random((301, 6)) < 0.95)
    store = MemoryStore([one, two])
    split = make_split(store, configs.Split())
    return Prepared(store, split, preprocess.fit(store, split, configs.Preprocess()))


@functools.cache
def tok():
    cfg = configs.Tokenizer(
        width=8, layers=1, heads=2, codes=K, code_width=4, autoregressive_weight=0.0
    )
    return tokenizer.init(cfg, jax.random.key(1))


class Exported:
    """Codes of whole ranges, as the exported data set gives them."""

    def __init__(self):
        self.encode = jax.jit(tokenizer.encode)

    @functools.cache  # noqa: B019
    def range(self, i, start, stop):
        z, _ = prepared().range(i, start, stop)
        length = -(-len(z) // 64) * 64  # few shapes; the tokenizer is causal
        padded = np.zeros((z.shape[1], length), np.float32)
        padded[:, : len(z)] = z.T
        return np.asarray(self.encode(tok(), padded))[:, : len(z) // PATCH].astype(np.uint8)


def make(config, training=TRAINING, codes=None):
    return NextCode(config, training, prepared(), tok(), codes, seed=SEED, steps=20)


@functools.cache
def quiet():
    """A task, its parameters of order 1 and its extra."""
    task = make(QUIET)
    params, extra = task.init(jax.random.key(0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.4, a.dtype), params)
    return task, params, extra, jax.jit(task.loss)


def tokens_of(batch, codes):
    b, t, n = batch["traces"].shape
    split = lambda x: x.reshape(b, t // PATCH, PATCH, n).swapaxes(2, 3)
    x = Tokens(
        jnp.asarray(codes), batch["neuron"], batch["session"], batch["real"],
        split(batch["traces"]),
    )
    return x, split(batch["mask"])


def test_loss_equals_a_loop_over_what_is_valid():
    task, params, extra, loss = quiet()
    batch = task.batch(1)
    assert not batch["real"].all()  # padded neurons; the trials are ragged, frames missing
    codes = jax.jit(tokenizer.encode)(tok(), batch["traces"].swapaxes(1, 2)).swapaxes(1, 2)
    x, mask = tokens_of(batch, codes)

    @jax.jit
    def outputs(net, x):
        h = features(net, x)
        return jax.nn.log_softmax(code_logits(net, h)), read_frames(net, h, x)

    logp, read = map(np.asarray, outputs(task.model(params), x))
    b, steps, n, _ = x.values.shape
    frames, seen = batch["traces"], batch["mask"]
    nll, hits, squares, copies = [], [], [], []
    for i in range(b):
        for s in range(steps):
            for j in range(n):
                if s + 1 < steps and mask[i, s + 1, j].all():
                    code = int(codes[i, s + 1, j])
                    nll.append(-logp[i, s, j, code])
                    hits.append(logp[i, s, j].argmax() == code)
                for f in range(QUIET.readout_frames):
                    at = (s + 1) * PATCH + f
                    if at < steps * PATCH and seen[i, at, j]:
                        squares.append((read[i, s, j, f] - frames[i, at, j]) ** 2)
                        last = frames[i, (s + 1) * PATCH - 1, j]
                        copies.append((last - frames[i, at, j]) ** 2)
    assert 0 < len(squares) < b * n * steps * QUIET.readout_frames * 0.7
    value, (same, metrics) = loss(params, extra, batch, jax.random.key(0), 0)
    expected = {
        "nll": np.mean(nll), "accuracy": np.mean(hits), "mse": np.mean(squares),
        "mse_copy": np.mean(copies),
    }
    for name, number in expected.items():
        np.testing.assert_allclose(metrics[name], number, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(value, 0.5 * expected["nll"] + 2 * expected["mse"], rtol=1e-4)
    assert jax.tree.structure(same) == jax.tree.structure(extra)


def test_padding_and_unscored_frames_do_not_reach_the_loss():
    task, params, extra, loss = quiet()
    batch = next(b for b in map(task.batch, range(9)) if not b["real"].all())
    a, _ = loss(params, extra, batch, jax.random.key(0), 0)
    hidden = ~batch["real"][:, None] & np.ones_like(batch["mask"])
    other = batch | {"traces": np.where(hidden, np.float32(9), batch["traces"])}
    b, _ = loss(params, extra, other, jax.random.key(0), 0)
    assert a == b
    # Frames behind the end of a short trial are inputs of nothing that is scored.
    ends = ~batch["mask"].any(2, keepdims=True) & np.ones_like(batch["mask"])
    other = batch | {"traces": np.where(ends, np.float32(9), batch["traces"])}
    c, _ = loss(params, extra, other, jax.random.key(0), 0)
    np.testing.assert_allclose(c, a, rtol=1e-6)


def test_nothing_valid_is_a_loss_of_zero():
    task, params, extra, loss = quiet()
    batch = task.batch(0) | {"mask": np.zeros_like(task.batch(0)["mask"])}
    assert loss(params, extra, batch, jax.random.key(0), 0)[0] == 0


def test_noise_replaces_the_asked_share_by_near_codes():
    task = make(dataclasses.replace(QUIET, noise_probability=0.1, noise_neighbours=3))
    codes = jnp.asarray(np.random.default_rng(0).integers(0, K, (8, 50, 40)))
    noisy = np.asarray(jax.jit(task._noisy)(tok(), codes, jax.random.key(0)))
    codes = np.asarray(codes)
    changed = noisy != codes
    # Never its own neighbour, so the share changed is p: SD .0024 of 16,000 tokens.
    assert abs(changed.mean() - 0.1) < 0.01
    book = np.asarray(tok().quantizer.codebook[...], np.float64)
    distance = ((book[:, None] - book) ** 2).sum(-1)
    near = np.argsort(distance, 1)[:, 1:4]
    member = (near[codes] == noisy[..., None]).any(-1)
    assert member[changed].all()
    which = (near[codes] == noisy[..., None])[changed].mean(0)
    assert (np.abs(which - 1 / 3) < 0.06).all()  # each about as often
    # More neighbours asked for than there are other codes.
    few = make(dataclasses.replace(QUIET, noise_probability=1.0, noise_neighbours=99))
    assert (np.asarray(few._noisy(tok(), jnp.asarray(codes), jax.random.key(0))) != codes).all()


@pytest.mark.parametrize("steps, block", [(7, 3), (2, 6)])
def test_scheduled_sampling_replaces_one_block_by_own_predictions(steps, block):
    task, params, _, _ = quiet()
    task = make(dataclasses.replace(QUIET, scheduled_probability=0.6, scheduled_block=block))
    rng = np.random.default_rng(0)
    b, n = 64, 3
    x = Tokens(
        jnp.asarray(rng.integers(0, K, (b, steps, n))), jnp.zeros((b, n), int),
        jnp.zeros(b, int), jnp.ones((b, n), bool),
        jnp.asarray(rng.normal(size=(b, steps, n, PATCH)), jnp.float32),
    )
    net = task.model(params)

    @jax.jit
    def run(net, x, key):
        own = jnp.argmax(code_logits(net, features(net, x)), -1)
        return task._scheduled(tok(), net, x, key), own

    y, own = run(net, x, jax.random.key(5))
    values_changed = np.asarray(y.values != x.values).any((2, 3))
    rows = values_changed.any(1)
    assert 0.4 < rows.mean() < 0.8  # 64 draws with p = .6, SD .06
    starts = set()
    for i in range(b):
        steps_changed = np.flatnonzero(values_changed[i])
        if rows[i]:
            first = steps_changed[0]
            size = min(block, steps - 1)
            np.testing.assert_array_equal(steps_changed, np.arange(first, first + size))
            assert first >= 1  # nothing predicts the first step
            np.testing.assert_array_equal(
                y.codes[i, first : first + size], own[i, first - 1 : first + size - 1]
            )
            starts.add(int(first))
        kept = ~values_changed[i]
        np.testing.assert_array_equal(np.asarray(y.codes)[i, kept], np.asarray(x.codes)[i, kept])
        np.testing.assert_array_equal(np.asarray(y.values)[i, kept], np.asarray(x.values)[i, kept])
    assert starts == set(range(1, steps - min(block, steps - 1) + 1))  # both edges are drawn
    frames = jax.jit(tokenizer.decode)(tok(), y.codes.swapaxes(1, 2))
    frames = np.asarray(frames).reshape(b, n, steps, PATCH).swapaxes(1, 2)
    np.testing.assert_allclose(
        np.asarray(y.values)[values_changed], frames[values_changed], atol=1e-5
    )


def test_exported_codes_are_those_of_the_window_and_windows_stay_in_their_range():
    codes = Exported()
    task = make(dataclasses.replace(QUIET, tokens="exported"), codes=codes)
    moved = 0
    for step in range(12):
        for which in ("train", "valid"):
            session, start, stop = task._windows[which].at(step, 4)
            a, z = task._on_codes(session, start, stop)
            moved += int((a != start).sum())
            batch = task._rows(which, step, 0, 1)
            for row, i in enumerate(session):
                first, last = prepared().range_of(int(i), int(start[row]))
                assert first <= a[row] < z[row] <= last and (a[row] - first) % PATCH == 0
                assert z[row] - a[row] == stop[row] - start[row]
                real = batch["real"][row]
                own = batch["neuron"][row][real] - prepared().store.neuron_offset(int(i))
                whole = (z[row] - a[row]) // PATCH
                k = (a[row] - first) // PATCH
                np.testing.assert_array_equal(
                    batch["codes"][row][:whole][:, real],
                    codes.range(int(i), first, last)[own, k : k + whole].T,
                )
                frames, _ = prepared().range(int(i), first, last)
                np.testing.assert_array_equal(
                    batch["traces"][row, : z[row] - a[row]][:, real],
                    frames[a[row] - first : z[row] - first][:, own],
                )
    assert moved > 5


def test_batches_are_shared_and_of_one_shape():
    task = make(LOUD)
    shapes = set()
    for step in range(6):
        whole = task.batch(step)
        parts = [task.batch(step, p, 2) for p in range(2)]
        for name, rows in whole.items():
            np.testing.assert_array_equal(rows, np.concatenate([p[name] for p in parts]))
            np.testing.assert_array_equal(rows, task.batch(step)[name])
        shapes.add(tuple((k, v.shape, v.dtype.str) for k, v in whole.items()))
        for row in range(4):  # a random subset, without repeats
            mine = whole["neuron"][row][whole["real"][row]]
            assert len(set(mine.tolist())) == len(mine) == 4
    assert len(shapes) == 1 and whole["traces"].shape == (4, 16, 4)


def copy_error(batch):
    """Mean squared error of the last frame of each code against the frames after it."""
    x, m = batch["traces"], batch["mask"]
    total = count = 0.0
    for last in range(PATCH - 1, x.shape[1], PATCH):
        ahead = slice(last + 1, last + 1 + LOUD.readout_frames)
        error = (x[:, ahead] - x[:, last : last + 1]) ** 2
        total, count = total + error[m[:, ahead]].sum(), count + m[:, ahead].sum()
    return total / count


def test_the_training_step_compiles_once_and_moves_every_parameter():
    task, steps = make(LOUD), 20
    mesh = make_mesh()
    params, extra = task.init(jax.random.key(0))
    optimizer = make_optimizer(TRAINING, steps, task.decays)
    state = create(params, extra, optimizer, task.trains, average=True)
    leaves, treedef = jax.tree.flatten(state)
    leaves = replicate(leaves, mesh)
    step = make_step(task, TRAINING, steps, jax.random.key(1), mesh, treedef)
    for s in range(4):  # trials of four lengths, with and without missing frames
        batch = shard_batch(task.batch(s), mesh)
        flags = shard_batch({"flag": np.zeros(mesh.size, np.int32)}, mesh)["flag"]
        leaves, metrics = step(leaves, batch, flags)
        assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])
        # Targets stay the true frames, whatever scheduled sampling puts in their place.
        np.testing.assert_allclose(metrics["mse_copy"], copy_error(task.batch(s)), rtol=1e-4)
    assert step._cache_size() == 1
    after = jax.tree.unflatten(treedef, leaves)
    before = named(params)
    for name, leaf in named(after.params).items():
        assert not np.array_equal(leaf, before[name]), f"{name} does not train"
    for name, leaf in named(after.extra).items():  # the tokenizer is frozen
        np.testing.assert_array_equal(leaf, named(extra)[name])


def test_bfloat16_loss_and_gradient_are_near_float32():
    task, params, extra, _ = quiet()
    narrow = make(QUIET, dataclasses.replace(TRAINING, precision="bfloat16"))
    batch = task.batch(0)

    def grad(t):
        f = lambda p: t.loss(p, extra, batch, jax.random.key(0), 0)[0]
        return jax.jit(jax.value_and_grad(f))(params)

    (a, g), (b, h) = grad(task), grad(narrow)
    np.testing.assert_allclose(b, a, rtol=0.05)
    g, h = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (g, h))
    assert np.isfinite(h).all() and h.dtype == np.float32
    assert g @ h / np.linalg.norm(g) / np.linalg.norm(h) > 0.99


def test_evaluation_is_the_mean_over_validation_batches():
    task, params, extra, loss = quiet()
    got = task.evaluate(params, extra)
    expected = [
        loss(params, extra, task._rows("valid", i, 0, 1), jax.random.key(i), i)[0]
        for i in range(TRAINING.eval_batches)
    ]
    np.testing.assert_allclose(got["loss"], np.mean(expected), rtol=1e-5)
    assert got == task.evaluate(params, extra)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"heads": 3}, "even multiple of the heads"),
        ({"heads": 8}, "even multiple of the heads"),
        ({"mixing_heads": 3}, "multiple of the mixing heads"),
        ({"readout_frames": 6}, "whole number of codes"),
        ({"linear_context": 6}, "whole number of codes"),
        ({"readout_frames": 0}, "needs a read-out"),
        ({"readout_frames": -4}, "too small"),
        ({"layers": 0}, "too small"),
        ({"mixing_rank": 0}, "too small"),
        ({"noise_neighbours": 0}, "too small"),
        ({"dropout": 1.0}, "dropout"),
        ({"noise_probability": 1.5}, "probability"),
        ({"neuron_embedding": False, "session_embedding": False}, "there are none"),
    ],
)
def test_check_refuses(changes, words):
    check(QUIET, PATCH)
    with pytest.raises(ConfigError, match=words) as e:
        check(dataclasses.replace(QUIET, **changes), PATCH)
    assert "transformer." in str(e.value) and "\n" not in str(e.value)


def test_what_a_task_refuses():
    with pytest.raises(ConfigError, match="two codes"):
        make(QUIET, dataclasses.replace(TRAINING, window=7))
    with pytest.raises(ConfigError, match="exported"):
        make(dataclasses.replace(QUIET, tokens="exported"))


def test_weight_decay_is_for_matrices():
    _, params, _, _ = quiet()
    task = make(QUIET)
    decayed = {name for name in named(params) if task.decays(name)}
    assert decayed and all(name.endswith("kernel") for name in decayed)
    assert not any("embedding" in name or "scale" in name for name in decayed)
    assert isinstance(task.model(params), nnx.Module)


def test_a_read_out_that_has_seen_too_little_does_not_count():
    """With readout_after, changing the frames before it changes targets that do not count."""
    config = dataclasses.replace(
        QUIET, readout_frames=4, readout_after=8, code_weight=0.0, values="none", linear_context=0
    )
    task = make(config)
    params, extra = task.init(jax.random.key(0))
    batch = task.batch(0)
    found = lambda after, b: make(dataclasses.replace(config, readout_after=after)).loss(
        params, extra, b, jax.random.key(1), jnp.int32(0)
    )[1][1]
    # Step 1 (frames 0-3) forecasts frames 4-7 and does not count; step 2 sees up to frame 7.
    moved = dict(batch, traces=batch["traces"].copy())
    moved["traces"][:, 4:7] += 5.0  # the anchor, frame 7, stays
    copy = lambda after, b: float(found(after, b)["mse_copy"])
    assert copy(8, moved) == copy(8, batch) and copy(0, moved) != copy(0, batch)
    assert copy(99, batch) > 0  # a window of 16 frames: the step at 12 counts
