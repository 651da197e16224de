"""LAMB updates every parameter by itself, also beside others of its shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calm_jax.training import lamb

PATHS = {
    "blocks/0/kernel": (3, 4),
    "blocks/1/kernel": (3, 4),
    "blocks/0/bias": (4,),
    "blocks/1/bias": (4,),
    "units/table": (3, 4),
    "sessions/table": (3, 4),
    "readouts/a/kernel": (3, 4),
    "readouts/a/bias": (4,),
}


def draw(seed: int) -> dict:
    keys = jax.random.split(jax.random.key(seed), len(PATHS))
    return {p: jax.random.normal(k, s) for k, (p, s) in zip(keys, PATHS.items())}


def run(params: dict, grads: list[dict]) -> dict:
    optimizer = lamb.lamb(1e-2, sparse=lamb.sparse_path)
    state, out = optimizer.init(params), dict(params)
    for g in grads:
        updates, state = optimizer.update(g, state, out)
        assert list(updates) == list(params)
        out = {p: out[p] + updates[p] for p in out}
    return out


@pytest.mark.parametrize("absent", [(), ("blocks/1/kernel", "readouts/a/kernel")])
def test_together_as_alone(absent):
    params, grads = draw(0), [draw(k) for k in (1, 2, 3)]
    for g in grads:
        g["units/table"] = g["units/table"].at[1].set(0.0)
        g["readouts/a/kernel"] = g["readouts/a/kernel"].at[:, 2].set(0.0)
    for path in absent:  # in the second step
        grads[1][path] = jnp.zeros_like(grads[1][path])
    together = run(params, grads)
    for path in PATHS:
        alone = run({path: params[path]}, [{path: g[path]} for g in grads])
        np.testing.assert_allclose(together[path], alone[path], rtol=1e-6)
    still = together["units/table"] == params["units/table"]
    assert still[1].all() and not still[0].any() and not still[2].any()
    assert (together["readouts/a/kernel"] == params["readouts/a/kernel"])[:, 2].all()


def test_the_update_is_that_of_numpy():
    params, (g,) = draw(0), [draw(1)]
    after = run(params, [g])
    for path in ("blocks/0/kernel", "blocks/1/kernel"):
        p, d = np.asarray(params[path], np.float64), np.asarray(g[path], np.float64)
        u = 0.1 * d / (np.sqrt(0.001 * d * d) + 1e-6) + 1e-4 * p
        trust = min(np.linalg.norm(p), 10.0) / np.linalg.norm(u)
        np.testing.assert_allclose(after[path], p - 1e-2 * trust * u, rtol=1e-5)
