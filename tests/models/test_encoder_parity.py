"""The population encoder beside torch_brain's: stages, gradients, optimiser steps, modules.

Needs CALM_JAX_PARITY, the folder with capoyo_parity.npz; an oracle of our own is in
test_population_encoder.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import enable_x64

from calm_jax.layers import perceiver
from calm_jax.models import population_encoder as pe
from calm_jax.models import torch_names
from calm_jax.recordings import population_tokens as tokens
from calm_jax.training import lamb
from calm_jax.training.state import named, with_leaves
from tests.models import parity

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def reference_codes(monkeypatch):
    """Rotary codes with the float32 angles of the reference (ours are made in float64)."""
    monkeypatch.setattr(tokens, "rotary_code", parity.reference_code)


def encoder(dtype):
    return torch_names.to_encoder(parity.under("w/"), parity.TASKS, dtype=dtype)


def near(ours, theirs, tolerance):
    np.testing.assert_allclose(np.asarray(ours, np.float64), theirs, atol=tolerance, rtol=0)


def stages(model, batch):
    out = {"input_tokens": pe.embed(model, batch["values"], batch["units"])}
    out["latent_tokens"] = z = pe.latent_tokens(model, 2)
    code = pe.latent_code(model)
    reader = model.encoder
    out["enc_atn"] = z + reader.attention(
        z, out["input_tokens"], code, batch["code"], batch["mask"]
    )
    out["enc_ffn"] = z = pe.encode(model, batch)
    for i, block in enumerate(model.blocks):
        out[f"proc_{i}"] = z = block(z, code)
    out["output_queries"] = q = pe.queries(model, batch)
    reader = model.decoder
    out["dec_atn"] = q + reader.attention(q, z, batch["query_code"], code)
    out["dec_ffn"] = pe.decode(model, z, batch)
    return out


def test_every_stage_in_float32(reference_codes):
    model = encoder(jnp.float32)
    batch = parity.batch("in", np.array(model.omega))
    for name, value in jax.device_get(jax.jit(stages)(model, batch)).items():
        near(value, parity.load()[f"mid/{name}"], 2e-5)
    codes = {"input": batch["code"], "output": batch["query_code"]}
    codes["latent"] = np.broadcast_to(pe.latent_code(model), (2, 32, 2, 4))
    for name, code in codes.items():
        cos, sin = (np.repeat(code[:, :, i], 2, -1) for i in range(2))
        theirs = parity.load()[f"mid/rotary_{name}"]
        near(cos, theirs[..., :8], 1e-6)
        near(sin, theirs[..., 16:24], 1e-6)
        assert (theirs[..., 8:16] == 1).all() and (theirs[..., 24:] == 0).all()


def test_float32_with_exact_angles():
    """Against the outputs in float64: better than the reference's own float32."""
    model = encoder(jnp.float32)
    batch = parity.batch("in", np.array(model.omega))
    for name, value in jax.device_get(jax.jit(pe.outputs)(model, batch)).items():
        own = batch["tasks"] == parity.TASKS[name]
        near(value[own], parity.load()[f"out64/{name}"], 2e-6)
        near(value[own], parity.load()[f"out/{name}"], 2e-4)
        near(value[own], parity.load()[f"outt64/{name}"], 2e-4)
    for name, value in jax.device_get(jax.jit(stages)(model, batch)).items():
        theirs = parity.load()[f"mid/{name}"]
        near(value, theirs, 2e-4 * max(1.0, np.abs(theirs).max()))


def test_outputs_in_float64():
    with enable_x64(True):
        model = encoder(jnp.float64)
        batch = parity.batch("in", np.array(model.omega), np.float64)
        for name, value in jax.device_get(jax.jit(pe.outputs)(model, batch)).items():
            own = batch["tasks"] == parity.TASKS[name]
            near(value[own], parity.load()[f"out64/{name}"], 1e-12)


def grown(array, shape):
    out = np.zeros(shape, array.dtype)
    out[tuple(slice(0, n) for n in array.shape)] = array
    return out


def test_loss_gradients_and_three_steps(reference_codes):
    model = encoder(jnp.float32)
    graph, state = nnx.split(model)
    tree = nnx.to_pure_dict(state)
    params = named(tree)

    def loss(params, batch):
        own = nnx.merge(graph, nnx.State(with_leaves(tree, params)))
        total, each = pe.loss(own, pe.outputs(own, batch), batch)
        return total * batch["factor"], each

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    batches = [parity.batch(which, np.array(model.omega)) for which in ("in", "in2")]
    # One shape for both, so that one program is compiled: the single window of "in2" gets
    # an empty one beside it, and the mean over windows is put right by a factor.
    batches[1] = {k: grown(v, batches[0][k].shape) for k, v in batches[1].items()}
    for batch, factor in zip(batches, (1, 2)):
        batch["factor"] = np.float32(factor)
    (total, each), grads = gradient(params, batches[0])
    near(total, parity.load()["loss/total"], 1e-6)
    for name, value in each.items():
        near(value, parity.load()[f"loss/{name}"], 1e-6)
    theirs = torch_names.by_path(parity.under("grad/"))
    assert set(theirs) == set(grads)
    for path, value in theirs.items():
        near(grads[path], value, 2e-6)
    meta = {"rate": 2e-3, "weight_decay": 1e-4, "sparse": lamb.sparse_path}
    optimizer = lamb.lamb(**meta)
    moments = optimizer.init(params)
    before = params
    for step, which in enumerate((0, 1, 0), 1):
        _, grads = gradient(params, batches[which])
        updates, moments = optimizer.update(grads, moments, params)
        params = optax.apply_updates(params, updates)
        theirs = torch_names.by_path(parity.under(f"opt{step}/"))
        for path, value in theirs.items():
            near(params[path], value, 2e-5)
        if step == 2:  # the absent task and the absent units stayed where they were
            name = "readouts/drifting_gratings_temporal_frequency/bias"
            np.testing.assert_array_equal(params[name], before[name])
            np.testing.assert_array_equal(
                params["units/table"][:8], before["units/table"][:8]
            )
        before = params


def test_schedules():
    lr, beta1 = lamb.one_cycle(np.arange(40), 40, 2e-3)
    near(lr, parity.load()["sched/lr"], 1e-8)
    near(beta1, parity.load()["sched/beta1"], 1e-6)


def test_samples_windows_and_unit_dropout():
    grid = tokens.latent_grid(1.0, 0.125, 4)
    near(grid[0], parity.load()["tok/linspace_index"], 0)
    near(grid[1], parity.load()["tok/linspace_timestamps"], 1e-15)
    windows = tokens.sequential_windows([[0.0, 3.3], [10.0, 12.0]], 1.0, 0.5)
    near(windows[:, 0], parity.load()["smp/sequential_start"], 1e-9)
    near(windows[:, 1], parity.load()["smp/sequential_end"], 1e-9)
    x = parity.load()["smp/unit_dropout_x"]
    theirs = parity.load()["smp/unit_dropout_density"]
    ours = tokens.kept_density(x)
    # At the minimum itself (10) both are 1; below it nothing is kept.
    near(ours, theirs, 1e-12)
    omega = tokens.frequencies(16)
    near(omega / parity.load()["w/rotary_emb.omega"][:4], 1.0, 1e-6)


def part(prefix, cls, **sizes):
    """A module of ours with the weights of a module of theirs."""
    made = cls(**sizes, rngs=nnx.Rngs(0))
    given = parity.under(f"{prefix}/w/")
    graph, state = nnx.split(made)
    tree = nnx.to_pure_dict(state)
    leaves = {}
    for name, value in given.items():
        path = torch_names._INSIDE.get(name) or torch_names._INSIDE["1." + name]
        leaves[path] = jnp.asarray(value.T if path.endswith("kernel") else value)
    missing = set(named(tree)) - set(leaves)
    assert all("norm" in path for path in missing)
    return nnx.merge(graph, nnx.State(with_leaves(tree, leaves)))


def code_of(times):
    return parity.reference_code(times, parity.load()["mod/rope/w/omega"][:4])


@pytest.mark.parametrize("masked", [0, 1])
@pytest.mark.parametrize("turned", [0, 1])
def test_cross_attention(turned, masked):
    prefix = f"mod/cross_rv{turned}_mask{masked}"
    x = parity.under(f"{prefix}/")
    module = part(
        prefix, perceiver.RotaryCrossAttention, width=24, context=20,
        heads=x["w/to_q.weight"].shape[0] // 16, head_width=16, rotate_values=bool(turned),
    )  # fmt: skip
    mask = x["mask"] if masked else None
    y = module(
        x["x_query"], x["x_context"], code_of(x["t_query"]), code_of(x["t_context"]), mask
    )
    near(y, x["y"], 1e-5)


@pytest.mark.parametrize("turned", [0, 1])
def test_self_attention(turned):
    prefix = f"mod/self_rv{turned}"
    x = parity.under(f"{prefix}/")
    module = part(
        prefix, perceiver.RotarySelfAttention, width=24, heads=3, head_width=16,
        rotate_values=bool(turned),
    )  # fmt: skip
    near(module(x["x"], code_of(x["t"])), x["y"], 1e-5)


def test_feed_forward_rotary_and_losses():
    x = parity.under("mod/feedforward/")
    module = part("mod/feedforward", perceiver.GatedForward, width=24)
    value, gate = jnp.split(module.up(x["x"]), 2, axis=-1)
    near(module.down(value * jax.nn.gelu(gate, approximate=False)), x["y"], 1e-5)
    rope = parity.under("mod/rope/")
    code = code_of(rope["t"])
    near(perceiver.rotate(rope["x"], code), rope["rotated"], 1e-5)
    back = perceiver.rotate(jnp.asarray(rope["rotated"]), code, back=True)
    near(back, rope["x"], 1e-5)
