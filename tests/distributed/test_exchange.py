"""Rows on eight devices: the numbers of one, dropout included, and one sum of gradients."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax.training import exchange

EIGHT = """
import re
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from calm_jax.models import population_encoder as encoders
from calm_jax.recordings import population_tokens as tokens
from calm_jax.training import exchange
from calm_jax.training import mesh as meshes
from calm_jax.training.state import named, trained, with_leaves

config = encoders.EncoderConfig(width=16, depth=2, head_width=8, cross_heads=1, self_heads=2,
                                latents_per_step=2)
heads = {"grating": (1, 4)}
model = encoders.init(config, jax.random.key(0), units=9, sessions=2, heads=heads)
graph, state = nnx.split(model)
params = nnx.to_pure_dict(state)
rng, omega = np.random.default_rng(0), tokens.frequencies(8, config.t_min, config.t_max)
samples = [
    tokens.Sample(rng.standard_normal(n).astype(np.float32),
                  rng.integers(1, 10, n).astype(np.int32),
                  np.sort(rng.uniform(0, 1, n)), sessions=np.array([1 + n % 2], np.int32),
                  tasks=np.array([1], np.int32), query_times=np.array([0.5]),
                  targets={"grating": np.array([n % 4], np.int32)}, weights=np.ones(1, np.float32))
    for n in range(8, 24)]
rows = tokens.collate(samples, omega, heads, tokens=(64,), queries=(1,))
mesh = meshes.make_mesh()

def train(path):
    return not path.startswith(FROZEN)

def gradient(mesh):
    def loss(live, params, rows, key):
        made = lambda p: nnx.merge(graph, nnx.State(p))
        f = lambda p, rows, key: encoders.outputs(made(p), rows, key=key)
        params = with_leaves(params, live)
        with exchange.over(mesh):
            out = exchange.rows(f, params, rows, key, trains=train)
        return encoders.loss(made(params), out, rows)[0]
    return jax.jit(jax.value_and_grad(loss))

one_mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
for FROZEN, key in (("none", None), ("none", jax.random.key(3)), ("blocks", jax.random.key(4))):
    live = trained(params, train)
    value, grads = gradient(one_mesh)(live, params, rows, key)
    given = (*meshes.replicate((live, params), mesh), meshes.shard_batch(rows, mesh), key)
    step = gradient(mesh)
    value8, grads8 = step(*given)
    np.testing.assert_allclose(value8, value, rtol=1e-5)
    for name in grads:
        far = 1e-5 * float(np.abs(grads[name]).max())
        np.testing.assert_allclose(grads8[name], grads[name], atol=far, rtol=1e-4, err_msg=name)
    text = step.lower(*given).compile().as_text()
    sums = re.findall(r"= (.*?) all-reduce\\(", text)
    arrays = [s for shape in sums for s in re.findall(r"f32\\[(\\d[\\d,]*)\\]", shape)]
    # The sums of the loss, then the gradient.
    assert sorted(arrays, key=int) == ["3", str(sum(x.size for x in live.values()))], sums
    assert "all-gather" not in text
print("equal")
"""


def test_eight_devices_give_the_gradient_of_one_in_one_sum():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", EIGHT], env={**os.environ, **flags}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "equal", done.stderr[-3000:]


def test_outside_a_mesh_the_function_is_called_as_it_is():
    params, batch = {"a": jnp.ones(3)}, np.arange(6.0, dtype=np.float32).reshape(2, 3)
    seen = []

    def f(p, rows, key):
        seen.append((p, rows, key))
        return rows @ p["a"]

    np.testing.assert_allclose(exchange.rows(f, params, batch, None), batch.sum(1))
    assert seen[0][0] is params and seen[0][1] is batch
    with exchange.over(jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])):
        assert jax.sharding.get_abstract_mesh().empty
