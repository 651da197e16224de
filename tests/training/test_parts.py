"""The parts of training against closed forms: schedule, average, checkpoints, logs, batches."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import math
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from calm_jax import compilation
from calm_jax.config import Training
from calm_jax.errors import RunError
from calm_jax.layers.basic import FeedForward
from calm_jax.training import checkpoint as checkpoints
from calm_jax.training.checkpoint import Checkpoints
from calm_jax.training.log import Log
from calm_jax.training.optimizers import learning_rate, make_optimizer, update_average
from calm_jax.training.precision import compute_dtype
from calm_jax.training.prefetch import Prefetch
from calm_jax.training.state import named, trained, with_leaves
from calm_jax.training.step import all_finite


@given(
    steps=st.integers(1, 2000),
    warmup=st.floats(0.0, 1.0),
    peak=st.floats(1e-5, 1e-1),
    share=st.floats(1e-6, 1.0),
)
def test_the_schedule_rises_then_falls(steps, warmup, peak, share):
    training = Training(
        learning_rate=peak, final_learning_rate=peak * share, warmup_fraction=warmup
    )
    all_steps = learning_rate(np.arange(2000), training, steps)  # one shape, one compilation
    rates = np.asarray(all_steps, np.float64)[:steps]
    warm = round(warmup * steps)
    assert (rates > 0).all()
    assert (np.diff(rates[:warm]) > 0).all()
    assert (np.diff(rates[warm:]) <= peak * 1e-6).all()
    np.testing.assert_allclose(rates.max(), peak, rtol=1e-5)
    if steps > warm + 1:
        np.testing.assert_allclose(rates[-1], peak * share, rtol=1e-5, atol=peak * 1e-6)


def test_the_schedule_at_three_points():
    training = Training(learning_rate=1.0, final_learning_rate=0.2, warmup_fraction=0.1)
    rates = [float(learning_rate(s, training, 111)) for s in (0, 9, 11, 60, 61, 110)]
    half = [0.2 + 0.4 * (1 + math.cos(math.pi * k / 99)) for k in (49, 50)]
    np.testing.assert_allclose(rates, [1 / 11, 10 / 11, 1.0, *half, 0.2], rtol=1e-5)


def test_weight_decay_only_where_wanted():
    # No gradient: Adam moves nothing, so only the decay does, by lr * weight_decay.
    training = Training(
        learning_rate=0.5, warmup_fraction=0.0, weight_decay=0.1, clip=None
    )
    optimizer = make_optimizer(training, 10, lambda path: path == "up/kernel")
    params = {"up/kernel": jnp.ones(3), "norm/scale": jnp.ones(3)}
    zero = jax.tree.map(jnp.zeros_like, params)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(zero, optimizer.init(params), params)
    np.testing.assert_allclose(updates["up/kernel"], -0.05)
    np.testing.assert_array_equal(updates["norm/scale"], 0.0)


@given(
    shapes=st.lists(
        st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=5
    ),
    clip=st.sampled_from([None, 0.5]),
)
@settings(max_examples=10)
def test_one_vector_for_all_parameters_changes_no_number(shapes, clip):
    """Against optax with an optimiser state per parameter, three steps."""
    training = Training(learning_rate=0.1, warmup_fraction=0.0, weight_decay=0.2, clip=clip)
    rng = np.random.default_rng(len(shapes))
    draw = lambda: {f"{i}/k": jnp.float32(rng.normal(size=x)) for i, x in enumerate(shapes)}
    decays = lambda path: path.startswith(("0", "3"))
    ours = make_optimizer(training, 10, decays)
    each = optax.chain(
        *([] if clip is None else [optax.clip_by_global_norm(clip)]),
        optax.adamw(
            lambda step: learning_rate(step, training, 10), weight_decay=0.2,
            mask=lambda params: {k: decays(k) for k in params},
        ),
    )  # fmt: skip
    with jax.numpy_dtype_promotion("standard"):
        params = draw()
        states = [o.init(params) for o in (ours, each)]
        vectors = [x for x in jax.tree.leaves(states[0]) if jnp.ndim(x)]
        assert len(vectors) == 2 * len({decays(k) for k in params})  # moments of each group
        for _ in range(3):
            grads = draw()
            (a, states[0]), (b, states[1]) = (
                o.update(grads, state, params) for o, state in zip((ours, each), states)
            )
            assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in params.items()}
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), a, b)
            params = optax.apply_updates(params, a)


def test_what_is_not_finite_is_found():
    leaves = [jnp.ones(3), jnp.int32(2), jnp.ones((2, 2), jnp.bfloat16)]
    assert all_finite(leaves)
    for bad in (jnp.nan, jnp.inf):
        assert not all_finite([*leaves, jnp.float32(bad)[None]])
    assert not all_finite([jnp.bfloat16(jnp.nan)])


def test_flags_of_quick_compilation(monkeypatch):
    triton, emitters = "--xla_gpu_enable_triton_gemm", "--xla_cpu_use_fusion_emitters=false"
    found = {}
    for version in ("0.10.2", "0.11.0"):
        monkeypatch.setattr(compilation.jaxlib, "__version__", version)
        found[version] = {"XLA_FLAGS": f"--xla_dump_to=x {triton}=true"}
        compilation.prepare("quick", found[version])
        assert found[version]["XLA_FLAGS"].startswith(f"--xla_dump_to=x {triton}=true ")
        assert found[version]["XLA_FLAGS"].count(triton) == 1  # the user's stays
        untouched = {}
        compilation.prepare("thorough", untouched)
        assert untouched == {}
    assert emitters in found["0.10.2"]["XLA_FLAGS"]
    assert "emitters" not in found["0.11.0"]["XLA_FLAGS"]  # jaxlib 0.11 ends the process at it


def test_the_first_step_of_adam_ignores_scale_and_clip_bounds_it():
    training = Training(learning_rate=0.5, warmup_fraction=0.0, weight_decay=0.0, clip=1.0)
    optimizer = make_optimizer(training, 10, lambda path: True)
    params = {"a": jnp.zeros(2)}
    with jax.numpy_dtype_promotion("standard"):
        grads = {"a": jnp.float32([300, -400])}
        updates, state = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"], [-0.5, 0.5], rtol=1e-5)
    mu = next(v for k, v in named(state).items() if "mu" in k)
    np.testing.assert_allclose(mu, [0.1 * 0.6, -0.1 * 0.8], rtol=1e-5)  # clipped to norm 1


def test_the_average_is_the_weighted_sum_of_its_past():
    rng = np.random.default_rng(0)
    values, decay = rng.normal(size=40), 0.8
    average = {"a": jnp.float32(values[0])}
    for step, value in enumerate(values[1:]):
        average = update_average(average, {"a": jnp.float32(value)}, step, decay)
    d = np.array([min(decay, (1 + s) / (10 + s)) for s in range(39)])
    weights = np.r_[1.0, 1 - d] * np.r_[np.cumprod(d[::-1])[::-1], 1.0]
    np.testing.assert_allclose(weights.sum(), 1.0)
    np.testing.assert_allclose(average["a"], weights @ values, rtol=1e-5)


def test_paths_of_flax_modules():
    module = FeedForward(2, 3, rngs=nnx.Rngs(0))
    assert set(named(module)) == {"up/kernel", "down/kernel"}
    assert set(trained(module, lambda path: path != "up/kernel")) == {"down/kernel"}
    new = with_leaves(module, {"up/kernel": jnp.full((2, 3), 7.0)})
    assert isinstance(new, FeedForward) and float(new.up.kernel[...].mean()) == 7.0
    assert float(module.up.kernel[...].mean()) != 7.0
    np.testing.assert_array_equal(new.down.kernel[...], module.down.kernel[...])


def test_integers_are_not_trained():
    assert set(trained({"a": jnp.ones(2), "n": jnp.int32(3)}, lambda path: True)) == {"a"}


def test_precision(monkeypatch):
    assert compute_dtype("bfloat16") == jnp.bfloat16 and compute_dtype("float32") == jnp.float32
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert compute_dtype("auto") == jnp.float32
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compute_dtype("auto") == jnp.bfloat16


# Checkpoints

ARRAYS = {"params/w": np.arange(6.0, dtype=np.float32).reshape(2, 3), "step": np.int32(4)}


def on_device(arrays):
    return {k: jnp.asarray(v) for k, v in arrays.items()}


def test_checkpoints_keep_the_newest_and_the_best(tmp_path):
    points = Checkpoints(tmp_path / "c", keep=2)
    assert points.newest() is None
    for step in (1, 2, 3, 4, 5):
        points.save(step, on_device(ARRAYS), {"at": step}, best=min(step, 2))
    assert points.steps() == [2, 4, 5] and points.newest() == 5
    assert points.meta(2) == {"at": 2}
    found = points.restore(5, ARRAYS)
    assert all(np.array_equal(found[k], v) and found[k].dtype == v.dtype for k, v in ARRAYS.items())


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest", "empty"])
def test_a_damaged_step_is_told_from_a_whole_one(tmp_path, damage):
    notes = []
    points = Checkpoints(tmp_path, notify=notes.append)
    for step in (1, 2):
        points.save(step, on_device(ARRAYS), {})
    folder = points.path(2)
    file = next(p for p in folder.rglob("d/*") if p.is_file())
    if damage == "flip":
        raw = bytearray(file.read_bytes())
        raw[-1] ^= 4
        file.write_bytes(raw)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "remove":
        file.unlink()
    elif damage == "manifest":
        (folder / checkpoints.MANIFEST).write_text('{"meta.json"')
    else:
        points.path(3).mkdir()
    assert points.newest() == (2 if damage == "empty" else 1)
    assert len(notes) == 1 and "is skipped" in notes[0]


def test_remains_of_a_killed_save_are_ignored_and_removed(tmp_path):
    points = Checkpoints(tmp_path)
    points.save(1, on_device(ARRAYS), {})
    (tmp_path / "tmp-00000002" / "arrays").mkdir(parents=True)
    assert points.newest() == 1
    points.save(3, on_device(ARRAYS), {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000001", "00000003"]


def test_another_model_is_refused(tmp_path):
    points = Checkpoints(tmp_path)
    points.save(1, on_device(ARRAYS), {})
    with pytest.raises(RunError, match="another model.*params/v"):
        points.restore(1, {"params/v": ARRAYS["params/w"], "step": np.int32(0)})
    with pytest.raises(RunError, match=r"params/w has another shape.*\(2, 3\).*\(2, 4\)"):
        points.restore(1, {**ARRAYS, "params/w": np.zeros((2, 4), np.float32)})


@pytest.mark.parametrize(
    "error, words",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk is full"),
        (ValueError("RESOURCE_EXHAUSTED: writing d/1: No space left on device"), "disk is full"),
        (OSError(errno.EACCES, "Permission denied"), "no permission"),
    ],
)
@pytest.mark.parametrize("where", ["arrays", "manifest"])
def test_a_full_disk_leaves_earlier_checkpoints(tmp_path, monkeypatch, error, words, where):
    points = Checkpoints(tmp_path, keep=1)
    points.save(1, on_device(ARRAYS), {})

    def fails(*a, **k):
        raise error

    with monkeypatch.context() as m:
        if where == "arrays":
            m.setattr(points._arrays, "save", fails)
        else:
            m.setattr(checkpoints, "_flush", fails)
        with pytest.raises(RunError, match=words):
            points.save(2, on_device(ARRAYS), {})
    assert points.steps() == [1] and points.newest() == 1
    assert [p.name for p in tmp_path.iterdir()] == ["00000001"]
    points.save(2, on_device(ARRAYS), {})
    assert points.newest() == 2


# Logs and batches


def test_lines_of_an_interrupted_run_are_not_repeated(tmp_path):
    other = Log(tmp_path, stage="other", shown=False, tensorboard=False)
    other.start(0, 9)
    other.train(9, {"loss": 1.0})
    other.finish()
    for _ in range(2):
        log = Log(tmp_path, stage="a", shown=False, tensorboard=False)
        log.start(4, 8, evaluated=3)
        for step in (4, 5, 6) if _ == 0 else (5,):
            log.train(step, {"loss": float("inf")})
            log.evaluation(step, {"loss": 2.0}, better=False)
        log.finish()
        with open(tmp_path / "metrics.jsonl", "a") as f:
            f.write('{"stage": "a", "st')  # killed in the middle of a line
    log.start(5, 8)
    log.finish()
    read = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = [(x["stage"], x["split"], x["step"], x["loss"]) for x in read]
    assert found == [
        ("other", "train", 9, 1.0),
        ("a", "train", 4, None),
        ("a", "train", 5, None),
        ("a", "valid", 5, 2.0),
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_what_people_read(tmp_path, terminal):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=200, highlight=False)
    log = Log(tmp_path, stage="tokenizer", console=console)
    log.start(0, 100)
    log.train(10, {"loss": 0.5})
    log._last = (log._last[0] - 2.0, 10)
    log._printed = -math.inf
    log.train(20, {"loss": 0.25})
    log.evaluation(20, {"loss": 0.3}, better=True)
    log.finish()
    text = out.getvalue()
    assert "loss 0.25" in text and "5 steps/s  ETA 0:1" in text and "best so far" in text
    assert ("\x1b" in text) == terminal
    assert len(list((tmp_path / "tensorboard" / "tokenizer").glob("events*"))) == 1


def test_a_silent_log_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    log = Log.silent()
    log.start(0, 2)
    log.train(1, {"loss": 1.0})
    log.note("x")
    log.finish()
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr() == ("", "")


def test_prefetch_keeps_the_order_and_hands_on_errors():
    def make(step):
        if step == 7:
            raise KeyError("seven")
        return step * step

    with Prefetch(make, 3, 10) as batches:
        assert [batches.next(s) for s in range(3, 7)] == [9, 16, 25, 36]
        with pytest.raises(KeyError, match="seven"):
            batches.next(7)
    with Prefetch(make, 0, 7):  # left early, with the worker waiting for room
        pass
    assert not any(t.name == "prefetch" for t in threading.enumerate())


def test_the_compilation_cache_can_be_placed_and_turned_off(tmp_path):
    kept = jax.config.jax_compilation_cache_dir
    try:
        assert compilation.enable({"CALM_JAX_CACHE": "off"}) is None
        folder = compilation.enable({"CALM_JAX_CACHE": str(tmp_path)})
        assert folder.parent == tmp_path and folder.is_dir()
        (tmp_path / "file").touch()
        assert compilation.enable({"CALM_JAX_CACHE": str(tmp_path / "file")}) is None
    finally:
        jax.config.update("jax_compilation_cache_dir", kept)


def test_a_config_holds_what_the_loop_reads():
    names = {f.name for f in dataclasses.fields(Training)}
    from calm_jax.training.loop import _HARMLESS

    assert set(_HARMLESS) <= names
