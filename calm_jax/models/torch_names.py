"""Weights of torch_brain's `CalciumPOYOPlus` as a `PopulationEncoder`, by name.

Linear weights are (out, in) there and kernels (in, out) here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from calm_jax.errors import WeightsError
from calm_jax.models import population_encoder as model
from calm_jax.training.state import named, with_leaves

# Parts of the network, and what stands in each of them.
_PARTS = (
    (r"enc_atn", r"encoder/attention"),
    (r"enc_ffn", r"encoder/forward"),
    (r"dec_atn", r"decoder/attention"),
    (r"dec_ffn", r"decoder/forward"),
    (r"proc_layers\.(\d+)\.0", r"blocks/\1/attention"),
    (r"proc_layers\.(\d+)\.1", r"blocks/\1/forward"),
)
_INSIDE = {
    "norm.weight": "norm/scale", "norm.bias": "norm/bias",
    "norm_context.weight": "norm_context/scale", "norm_context.bias": "norm_context/bias",
    "to_q.weight": "query/kernel", "to_kv.weight": "key_value/kernel",
    "to_qkv.weight": "query_key_value/kernel",
    "to_out.weight": "out/kernel", "to_out.bias": "out/bias",
    "0.weight": "norm/scale", "0.bias": "norm/bias",
    "1.net.0.weight": "up/kernel", "1.net.0.bias": "up/bias",
    "1.net.3.weight": "down/kernel", "1.net.3.bias": "down/bias",
}  # fmt: skip
_ALONE = {
    "input_value_map.weight": "value_map/kernel", "input_value_map.bias": "value_map/bias",
    "unit_emb.weight": "units/table", "session_emb.weight": "sessions/table",
    "task_emb.weight": "tasks/table", "latent_emb.weight": "latents/table",
}  # fmt: skip
# Learned there, used by nothing; the frequencies are no parameter here.
_UNUSED = ("token_type_emb.weight", "rotary_emb.omega")


def path_of(name: str) -> str | None:
    """The path of a torch_brain weight in `PopulationEncoder`; None for one without use.

    Raises:
      WeightsError: for a name that belongs to no such model.
    """
    if name in _UNUSED:
        return None
    if name in _ALONE:
        return _ALONE[name]
    head = re.fullmatch(r"readout\.projections\.(\w+)\.(weight|bias)", name)
    if head:
        return f"readouts/{head[1]}/{'kernel' if head[2] == 'weight' else 'bias'}"
    for pattern, target in _PARTS:
        found = re.match(pattern + r"\.", name)
        if found and name[found.end() :] in _INSIDE:
            return found.expand(target) + "/" + _INSIDE[name[found.end() :]]
    raise WeightsError(
        "a weight of another model than CalciumPOYOPlus",
        found=name[:120],
        remedy="Only state dicts of torch_brain's calcium model can be converted.",
    )


def by_path(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of a state dict by path, kernels transposed."""
    out = {}
    for name, value in state.items():
        path = path_of(name)
        if path is not None:
            value = np.asarray(value)
            out[path] = value.T if path.endswith("kernel") and value.ndim == 2 else value
    return out


def sizes(
    state: Mapping[str, np.ndarray], *, window: float, latent_step: float
) -> model.EncoderConfig:
    """The config that a state dict belongs to; window and step (s) are not in it.

    Raises:
      WeightsError: when a weight that tells a size is missing or has another rank.
    """

    def shape(name: str, rank: int) -> tuple[int, ...]:
        found = np.shape(state[name]) if name in state else None
        if found is None or len(found) != rank or 0 in found:
            raise WeightsError(
                "a weight is missing" if found is None else "a weight of another shape",
                where=name,
                found=found,
                expected=f"{rank} axes",
            )
        return found

    per_step, width = shape("latent_emb.weight", 2)
    head_width = 2 * shape("rotary_emb.omega", 1)[0]
    layers = {int(m[1]) for k in state if (m := re.match(r"proc_layers\.(\d{1,4})\.", k))}
    if layers != set(range(len(layers))):
        raise WeightsError("layers are missing", where="proc_layers", found=sorted(layers))
    inner = shape("proc_layers.0.0.to_qkv.weight", 2)[0] // 3 if layers else head_width
    return model.EncoderConfig(
        window=window,
        latent_step=latent_step,
        latents_per_step=per_step,
        width=width,
        depth=len(layers),
        head_width=head_width,
        cross_heads=shape("enc_atn.to_q.weight", 2)[0] // head_width,
        self_heads=inner // head_width,
    )


def to_encoder(
    state: Mapping[str, np.ndarray],
    tasks: Mapping[str, int],
    *,
    window: float = 1.0,
    latent_step: float = 0.125,
    dtype: DTypeLike = jnp.float32,
) -> model.PopulationEncoder:
    """The encoder with the weights of a state dict.

    Args:
      state: name -> array, without vocabularies.
      tasks: task name -> its id (from 1), as the model was trained; not in the weights.
      window, latent_step: seconds; not in the weights either.
      dtype: of parameters and computation.

    Raises:
      WeightsError: for a weight that is missing, left over or of another shape, or a
        task without id.
    """
    cfg = sizes(state, window=window, latent_step=latent_step)
    given = by_path(state)
    heads = {}
    for path, value in given.items():
        if path.startswith("readouts/") and path.endswith("/bias"):
            name = path.split("/")[1]
            if name not in tasks:
                raise WeightsError(
                    "the id of a task is not given", where="tasks", found=name
                )
            heads[name] = (int(tasks[name]), int(np.size(value)))
    rows = {t: len(given.get(f"{t}/table", ())) for t in ("units", "sessions", "tasks")}
    make = lambda: model.init(
        cfg,
        jax.random.key(0),
        units=max(rows["units"] - 1, 0),
        sessions=max(rows["sessions"] - 1, 0),
        heads=heads,
        dtype=dtype,
    )
    graph, abstract = nnx.split(jax.eval_shape(make))
    wanted = named(nnx.to_pure_dict(abstract))
    if "tasks/table" in given:  # ids of tasks that the model was not trained on
        wanted["tasks/table"] = jax.ShapeDtypeStruct((rows["tasks"], cfg.width), jnp.float32)
    for path in sorted(wanted.keys() | given.keys()):
        found = given[path].shape if path in given else None
        expected = wanted[path].shape if path in wanted else None
        if found != expected:
            raise WeightsError(
                "the weights do not fit together",
                where=path,
                found="nothing" if found is None else f"shape {found}",
                expected="nothing" if expected is None else f"shape {expected}",
            )
    leaves = {path: jnp.asarray(value, dtype) for path, value in given.items()}
    encoder = nnx.merge(graph, nnx.State(with_leaves(nnx.to_pure_dict(abstract), leaves)))
    omega = np.asarray(state["rotary_emb.omega"], np.float64)
    encoder.omega = tuple(omega[: cfg.head_width // 4].tolist())
    return encoder
