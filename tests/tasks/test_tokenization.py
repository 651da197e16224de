"""The tokenization task: eq. 9 by hand, events, batches as functions, metrics."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from calm_jax import config
from calm_jax.errors import ConfigError
from calm_jax.models import tokenizer as tokenizers
from calm_jax.recordings import preprocess
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.session import Session, Trials
from calm_jax.recordings.splits import make_split
from calm_jax.tasks import tokenization
from calm_jax.tasks.tokenization import Tokenization
from calm_jax.training.state import named
from calm_jax.training.task import Task

SMALL = config.Tokenizer(
    width=8, layers=1, heads=2, ffn=1, dropout=0.0, codes=6, code_width=3,
    autoregressive_layers=1, warmup_fraction=0.1, revive_every=0.05, recluster_every=0.3,
)  # fmt: skip
TRAINING = config.Training(batch=8, eval_batches=2)


@functools.cache
def _prepared(constant=False):
    rng = np.random.default_rng(0)
    sessions = []
    for s, (trials, frames, neurons) in enumerate([(12, 22, 5), (10, 18, 3)]):
        traces = np.cumsum(rng.normal(size=(trials * frames, neurons)), 0)
        traces[:, 1] = 3.0  # never drawn
        if constant:
            traces[:] = 3.0
        valid = rng.random(traces.shape) < 0.96
        start = np.arange(trials) * frames
        edges = Trials(start, start + frames)
        sessions.append(
            Session(traces, rate=10.0, valid=valid, session=f"s{s}", animal="a", trials=edges)
        )
    store = MemoryStore(sessions)
    split = make_split(store, config.Split())
    return Prepared(store, split, preprocess.fit(store, split, config.Preprocess()))


def _task(cfg=SMALL, steps=100, **changes):
    training = dataclasses.replace(TRAINING, **changes)
    return Tokenization(cfg, training, _prepared(), seed=1, steps=steps)


@functools.cache
def _ready():
    """A task with its jitted loss and a state after k-means."""
    task = _task()
    params, extra = task.init(jax.random.key(0))
    params, extra = task.event(task.warm_steps)(params, extra)
    return task, jax.jit(jax.value_and_grad(task.loss, has_aux=True)), params, extra


def test_is_a_task():
    assert isinstance(_task(), Task)


def test_bfloat16_needs_no_implicit_promotion():
    # GPUs compute in it by default, and tests have strict types.
    whole, half = _task(precision="float32"), _task(precision="bfloat16")
    params, extra = whole.init(jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, whole.batch(0))
    value = lambda task: task.loss(params, extra, batch, jax.random.key(1), jnp.int32(0))[0]
    np.testing.assert_allclose(value(half), value(whole), rtol=0.05)


def test_eq_9_equals_hand_computed_terms():
    task, loss, params, extra = _ready()
    batch = task.batch(0)
    # At the lowest temperature the draw is the nearest code, so all terms can be followed.
    step = jnp.int32(99)
    (value, (_, metrics)), _ = loss(params, extra, batch, jax.random.key(0), step)
    tok = task.model(params, extra)
    book = np.asarray(extra["quantizer"]["codebook"], float)
    x, mask = batch["traces"].astype(float), batch["mask"]
    z = np.asarray(jax.jit(tokenizers.latents)(tok, batch["traces"]), float)
    square = ((z[:, :, None] - book) ** 2).sum(-1)
    codes = square.argmin(-1)
    y = np.asarray(jax.jit(tokenizers.decode)(tok, codes), float)
    valid = mask.reshape(8, -1, 4).all(-1)
    assert 0 < valid.sum() < valid.size

    mse = ((y - x)[mask] ** 2).mean()
    r = []
    for b in range(8):
        cov = np.cov(y[b][mask[b]], x[b][mask[b]], bias=True) + 1e-6 * np.eye(2)
        r.append(cov[0, 1] / np.sqrt(cov[0, 0] * cov[1, 1]))
    commitment = ((z - book[codes])[valid] ** 2).mean()
    soft = np.exp(-(square - square.min(-1, keepdims=True)) / 3**0.5 / 0.01)
    p = (soft / soft.sum(-1, keepdims=True))[valid].mean(0)
    entropy = -(p[p > 0] * np.log2(p[p > 0])).sum()
    orthogonal = np.abs(book @ book.T - np.eye(6)).sum()
    logits = np.asarray(jax.jit(lambda t, z: t.predictor(z))(tok, z.astype(np.float32)), float)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    ahead = 0.0
    for k in (1, 2, 3, 4):
        bits = []
        for b, t in np.ndindex(codes.shape):
            if t + k < codes.shape[1] and valid[b, t] and valid[b, t + k]:
                row = logp[b, t, k - 1]
                bits.append(-(0.95 * row[codes[b, t + k]] + 0.05 * row.mean()) / np.log(2))
        ahead += np.mean(bits)
    assert_allclose(metrics["mse"], mse, rtol=1e-3)
    assert_allclose(metrics["pearson"], np.mean(r), rtol=1e-3, atol=1e-3)
    assert_allclose(metrics["commitment"], commitment, rtol=1e-3)
    assert_allclose(metrics["entropy"], entropy, rtol=2e-3, atol=2e-3)
    assert_allclose(metrics["orthogonality"], orthogonal, rtol=1e-3)
    assert_allclose(metrics["autoregressive"], ahead, rtol=1e-3)
    total = (
        mse + 0.5 * (1 - np.mean(r)) + 0.5 * commitment - 0.5 * entropy
        + 5e-6 * orthogonal + 0.5 * ahead
    )  # fmt: skip
    assert_allclose(value, total, rtol=1e-3, atol=2e-3)


def test_before_k_means_only_the_reconstruction_is_trained():
    task, loss, params, extra = _ready()
    batch = task.batch(0)
    (value, (after, metrics)), grads = loss(
        params, extra, batch, jax.random.key(0), jnp.int32(task.warm_steps - 1)
    )
    assert_allclose(value, metrics["mse"] + 0.5 * (1 - metrics["pearson"]), rtol=1e-5)
    jax.tree.map(assert_array_equal, after, extra)
    assert all(not np.any(g) for name, g in named(grads).items() if "predictor" in name)
    assert any(np.any(g) for name, g in named(grads).items() if "encoder" in name)


def test_gradient_passes_the_quantiser_and_the_codebook_follows():
    task, loss, params, extra = _ready()
    batch = task.batch(0)
    silent = dataclasses.replace(
        SMALL, commitment_weight=0.0, entropy_weight=0.0, autoregressive_weight=0.0
    )
    plain = _task(silent)
    own, _ = plain.init(jax.random.key(0))
    _, grads = jax.jit(jax.value_and_grad(plain.loss, has_aux=True))(
        own, extra, batch, jax.random.key(0), jnp.int32(20)
    )
    # With L_r alone, what reaches the encoder has come through the drawn codes.
    names = [n for n in named(grads) if n.startswith(("encoder", "down", "into"))]
    assert len(names) > 8
    assert all(np.abs(named(grads)[n]).max() > 1e-8 for n in names)
    (_, (after, _)), _ = loss(params, extra, batch, jax.random.key(0), jnp.int32(20))
    old, new = extra["quantizer"], after["quantizer"]
    tokens = tokenizers.token_mask(batch["mask"], 4).sum()
    assert_allclose(new["counts"].sum(), 0.99 * old["counts"].sum() + 0.01 * tokens, rtol=1e-4)
    assert not np.allclose(new["codebook"], old["codebook"], atol=1e-6)


def test_temperature_is_exponential_to_its_end():
    task = _task()
    steps = jnp.asarray([0, 40, 80, 99])
    expected = [2.5, (2.5 * 0.01) ** 0.5, 0.01, 0.01]
    assert_allclose(task.temperature(steps), expected, rtol=1e-4)


def test_events_come_when_the_schedule_says():
    task = _task()
    with_event = [s for s in range(100) if task.event(s) is not None]
    assert with_event == list(range(10, 80, 5))
    none = dataclasses.replace(SMALL, warmup_fraction=0.0)
    assert _task(none, steps=4).event(0) is not None


def test_k_means_start_puts_codes_on_the_latents():
    task, _, params, extra = _ready()
    own = extra["quantizer"]
    z = np.concatenate([
        np.asarray(z)[np.asarray(w) > 0]
        for z, w in (task._latents(params, extra, task.batch(i)) for i in range(4))
    ])  # fmt: skip
    near = ((z[:, None] - np.asarray(own["codebook"])) ** 2).sum(-1).min(1).mean()
    assert near < 0.5 * z.var(0).sum()
    # Counts are on the scale of one batch, sums agree with the codebook.
    tokens = np.mean([tokenizers.token_mask(task.batch(i)["mask"], 4).sum() for i in range(8)])
    assert_allclose(own["counts"].sum(), tokens, rtol=0.1)
    assert_allclose(own["sums"], own["codebook"] * own["counts"][:, None], rtol=1e-4, atol=1e-5)
    again = task.event(task.warm_steps)(*task.init(jax.random.key(0)))
    jax.tree.map(assert_array_equal, again, (params, extra))


@pytest.mark.parametrize("kind", ["ema", "gradient"])
def test_revival_moves_dead_codes_alone(kind):
    task = _task(dataclasses.replace(SMALL, codebook=kind))
    params, extra = task.init(jax.random.key(0))
    own = extra["quantizer"] | {"counts": jnp.asarray([9.0, 0.0, 8.0, 7.0, 0.1, 9.0])}
    new_params, new = task.event(15)(params, extra | {"quantizer": own})
    holder = (params, new_params) if kind == "gradient" else (extra, new)
    before, after = (h["quantizer"]["codebook"] for h in holder)
    moved = np.any(np.asarray(before) != np.asarray(after), axis=1)
    assert_array_equal(moved, [False, True, False, False, True, False])
    same = lambda a, b: jax.tree.map(np.shape, a) == jax.tree.map(np.shape, b)
    assert same(params, new_params) and same(extra, new)


def test_learned_codebook_gets_gradient_from_the_embedding_term():
    task = _task(dataclasses.replace(SMALL, codebook="gradient", orthogonal_weight=0.0))
    params, extra = task.init(jax.random.key(0))
    grads = jax.jit(jax.grad(lambda *a: task.loss(*a)[0]))(
        params, extra, task.batch(0), jax.random.key(0), jnp.int32(30)
    )
    assert np.abs(grads["quantizer"]["codebook"]).max() > 0
    assert not task.decays("quantizer/codebook") and task.decays("into/kernel")
    assert not task.decays("into/bias") and not task.decays("encoder/norm/scale")


def test_batches_are_functions_of_the_step_and_split_into_parts():
    task = _task(batch=40)
    whole = task.batch(3)
    jax.tree.map(assert_array_equal, _task(batch=40).batch(3), whole)
    parts = [task.batch(3, i, 4) for i in range(4)]
    for name, array in whole.items():
        assert_array_equal(np.concatenate([p[name] for p in parts]), array)
    assert not np.array_equal(task.batch(4)["traces"], whole["traces"])
    assert whole["traces"].shape == whole["mask"].shape == (40, 20)
    assert not whole["traces"][~whole["mask"]].any()
    # Every row is one neuron that varies: constant ones are never drawn.
    assert (np.ptp(whole["traces"], axis=1) > 0).all()


def test_metrics_equal_a_loop():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 6, 20)).astype(np.float32)
    mask, codes = rng.random((6, 20)) < 0.8, rng.integers(0, 4, (6, 5))
    valid = mask.reshape(6, 5, 4).all(-1)
    halves = [
        jax.device_get(tokenization.sums(*(a[s] for a in (y, x, mask, codes, valid)), 7))
        for s in (slice(0, 2), slice(2, 6))
    ]
    found = tokenization.summarise(jax.tree.map(np.add, *halves), 0.5)
    r = np.mean([np.corrcoef(x[i][mask[i]], y[i][mask[i]])[0, 1] for i in range(6)])
    mse = ((x - y)[mask] ** 2).mean()
    total = sum(((x[i] - x[i][mask[i]].mean())[mask[i]] ** 2).sum() for i in range(6))
    p = np.bincount(codes[valid], minlength=7) / valid.sum()
    p = p[p > 0]
    expected = {
        "loss": mse + 0.5 * (1 - r),
        "mse": mse,
        "pearson": r,
        "r2": 1 - ((x - y)[mask] ** 2).sum() / total,
        "codes_used": len(p),
        "perplexity": np.exp(-(p * np.log(p)).sum()),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_allclose(found[name], value, rtol=1e-4, err_msg=name)


def test_evaluation_is_deterministic_and_compiles_once():
    task, _, params, extra = _ready()
    first = task.evaluate(params, extra)
    assert first == task.evaluate(params, extra)
    assert np.isfinite(list(first.values())).all()
    assert task._score._cache_size() == 1


def test_errors_name_the_field():
    with pytest.raises(ConfigError, match="tokenizer_training.window"):
        _task(window=3)
    with pytest.raises(ConfigError, match="constant"):
        Tokenization(SMALL, TRAINING, _prepared(constant=True), seed=0, steps=10)
