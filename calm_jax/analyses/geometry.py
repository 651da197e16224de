"""The geometry of a run's latent states (POYO-SSL, section 3.4), and encoder freezing.

The state of the population at a step is what the transformer knows then: the features of
all neurons side by side, in the test part.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from calm_jax.analyses.material import Material, each_session
from calm_jax.analyses.result import Result
from calm_jax.analysis import components, latents
from calm_jax.errors import AnalysisError
from calm_jax.models import tokenizer as tokenizers
from calm_jax.models.dual_axis import DualAxisTransformer, Tokens, features
from calm_jax.models.forecaster import CalM, Context

STEPS = 500  # states per session
_KEPT = 50  # components of the states that distances are taken in


def run_latents(material: Material, result: Result) -> None:
    """Maps, dimension, similarity to the traces and to an untrained model, order in time."""
    result.facts |= {
        "sessions": material.names(), "most": STEPS, "rate": material.rate,
        "patch": material.patch, "kept": _KEPT,
    }  # fmt: skip
    untrained = _untrained(material)
    for i in each_session(material, result.missing, "latents"):
        name = material.names()[i]
        where = {"session": name, "animal": material.animals()[i]}
        try:
            states, random, traces, place, sequence = _states(material, i, untrained)
        except AnalysisError as e:
            result.missing.append(f"latents of session {name}: {e}")
            continue
        spaces = {"calm": states, "untrained": random, "traces": traces}
        reduced = {}
        for method, x in spaces.items():
            try:
                fitted = components.fit(x, _KEPT, fewer=True, what=f"states of {method}")
                reduced[method] = components.project(fitted, x)
            except AnalysisError as e:
                result.missing.append(f"latents of {method} in session {name}: {e}")
        for method, x in reduced.items():
            measure(result, f"session{i}.{method}", method, x, place, sequence, where)
        compare(result, f"session{i}", reduced, where)
        try:
            result.keep(f"session{i}.tsne", latents.tsne(reduced["calm"], seed=result.seed))
            result.arrays |= {f"session{i}.place": place, f"session{i}.sequence": sequence}
        except (AnalysisError, KeyError) as e:
            result.missing.append(f"t-SNE of session {name}: {e}")
    means(result)


def means(result: Result) -> None:
    """Adds the mean over sessions of every method and metric."""
    for method, metric in dict.fromkeys((r["method"], r["metric"]) for r in result.rows):
        values = [r["value"] for r in result.rows if (r["method"], r["metric"]) == (method, metric)]
        if np.isfinite(values).any():
            result.put(method, metric, float(np.nanmean(values)))


def measure(
    result: Result,
    key: str,
    method: str,
    x: np.ndarray,
    place: np.ndarray,
    sequence: np.ndarray,
    where: dict,
) -> None:
    """Intrinsic dimension and order in time of one space."""
    try:
        found = latents.intrinsic_dimension(x, seed=result.seed)
        result.keep(f"{key}.dimension", found)
        result.put(method, "intrinsic_dimension", found.value, **where)
        result.put(method, "n_states", len(x), **where)
    except AnalysisError as e:
        result.missing.append(f"{e} ({method}, session {where['session']})")
    try:
        near = latents.temporal_neighbourhood(x, frames=place, sequence=sequence)
        result.keep(f"{key}.neighbourhood", near)
        result.put(method, "neighbourhood", near.score, **where)
        result.put(method, "neighbourhood_chance", near.chance, **where)
    except AnalysisError as e:
        result.missing.append(f"{e} ({method}, session {where['session']})")


def compare(
    result: Result, key: str, spaces: dict[str, np.ndarray], where: dict, *, task: str = ""
) -> None:
    """CKA and Procrustes disparity between every two spaces.

    Args:
      task: stands before the method of a row, as "movie/".
    """
    names = list(spaces)
    alike = np.eye(len(names))
    for a, first in enumerate(names):
        for b, second in enumerate(names[:a]):
            alike[a, b] = alike[b, a] = latents.cka(spaces[first], spaces[second])
            far = latents.procrustes(spaces[second], spaces[first])
            result.put(task + second, f"cka_with_{first}", alike[a, b], **where)
            result.put(task + second, f"procrustes_to_{first}", far, **where)
    result.arrays |= {f"{key}.cka": alike, f"{key}.spaces": np.array(names)}


def _untrained(material: Material) -> DualAxisTransformer:
    """The same transformer with random weights."""
    run = material.trained.run
    return DualAxisTransformer(
        run.tailored().transformer,
        codes=run.experiment.tokenizer.codes,
        patch=material.patch,
        neurons=int(material.trained.table.offset[-1]),
        sessions=len(material.trained.table.session),
        rngs=nnx.Rngs(material.settings.seed),
    )


def _states(
    material: Material, i: int, untrained: DualAxisTransformer
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """States (n, N D) of the model and of the untrained one, traces (n, N patch) of the same
    steps, frame of each step in its window, and which window it is of."""
    patch = material.patch
    f = material.experiment.forecasting
    window = material.experiment.transformer_training.window or f.context + f.horizon
    longest = int(max(b - a for a, b in material.frames(i, "test")))
    length = min(window, longest) // patch * patch
    if length < 2 * patch:
        raise AnalysisError("no test range holds two codes", found=f"{longest} frames")
    pieces = []
    for z, mask in material.scaled(i, "test"):
        starts = range(0, len(z) - length + 1, length)
        pieces += [z[a : a + length] for a in starts if mask[a : a + length].any()]
    count = max(1, min(len(pieces), STEPS // (length // patch)))
    rng = np.random.default_rng([material.settings.seed, i])
    chosen = np.sort(rng.choice(len(pieces), count, replace=False))
    alive = material.alive(i)
    n = len(alive)
    out: tuple[list, list] = ([], [])
    for k in chosen:
        both = _features(material.trained.model, untrained, material.context(i, pieces[k][None]))
        for h, into in zip(both, out, strict=True):
            into.append(np.asarray(h)[0][:, :n][:, alive].reshape(length // patch, -1))
    steps = length // patch
    traces = np.concatenate(
        [pieces[k][:, alive].reshape(steps, patch * int(alive.sum())) for k in chosen]
    )
    place = np.tile(np.arange(steps) * patch, count)
    return (*(np.concatenate(x) for x in out), traces, place, np.repeat(np.arange(count), steps))


@jax.jit
def _features(
    model: CalM, untrained: DualAxisTransformer, context: Context
) -> tuple[jax.Array, jax.Array]:
    """(1, S, N, D) features of whole windows, of the trained and of another transformer."""
    x = context.traces.swapaxes(1, 2)
    codes = tokenizers.encode(model.tokenizer, x).swapaxes(1, 2)
    b, s, n = codes.shape
    values = jnp.swapaxes(x.reshape(b, n, s, -1), 1, 2)
    tokens = Tokens(codes, context.neuron, context.session, context.mask, values)
    return features(model.transformer, tokens), features(untrained, tokens)


def run_freezing(material: Material, result: Result) -> None:
    """Encoder freezing needs fine-tuned encoders, which a CalM run does not have."""
    result.missing.append(
        "encoder freezing: needs read-outs fine-tuned with parts of the encoder frozen, which this "
        "run does not hold (`calm_jax.analysis.freezing` compares their scores)"
    )
