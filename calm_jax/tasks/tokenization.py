"""Training the tokenizer (spec section 2): eq. 9, annealed assignment, codebook events.

    L = L_r + lc L_c + lent L_ent + lorth L_orth + lAR L_AR                      (eq. 9)

Training begins un-quantised. At `warmup_fraction` of the steps k-means of encoder outputs
starts the codebook; from then on codes are drawn by Gumbel-softmax with a straight-through
gradient, the codebook follows by moving averages, and rarely used codes are re-seeded
until the temperature is at its end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from calm_jax import config as configs
from calm_jax import losses
from calm_jax.errors import ConfigError
from calm_jax.layers import quantizer
from calm_jax.layers.kmeans import kmeans
from calm_jax.models import tokenizer as model
from calm_jax.recordings.batches import Windows
from calm_jax.training.precision import compute_dtype

# Neurons taken from each window that is read: reading a window gives all of its neurons,
# so one of each would waste the reading, and all of them a batch of look-alikes.
NEURONS_PER_WINDOW = 16
# Latents that k-means and revival look at, at least.
SAMPLE = 20_000


class Tokenization:
    """The Task of training a tokenizer on single-neuron windows.

    Args:
      config: of the tokenizer. training: `batch` counts single-neuron windows.
      prepared: `Prepared` traces with their splits and scalers.
      seed: of windows, neurons and events. steps: of the whole training; warm-up,
        temperature and events are fractions of it.

    Raises:
      ConfigError: when no training range is as long as one patch, or no neuron varies.
    """

    name = "tokenizer"

    def __init__(
        self,
        config: configs.Tokenizer,
        training: configs.Training,
        prepared: Any,
        *,
        seed: int,
        steps: int,
    ):
        self.config, self.training, self.prepared = config, training, prepared
        self.seed, self.steps = seed, steps
        self.warm_steps = round(config.warmup_fraction * steps)
        self.anneal_steps = max(round(config.anneal_fraction * steps), 1)
        if training.watch not in ("loss", "mse"):
            raise ConfigError(
                "no such validation metric",
                where="tokenizer_training.watch",
                found=repr(training.watch),
                expected="loss, mse",
            )
        self._dtype = compute_dtype(training.precision)
        self._graph = nnx.graphdef(jax.eval_shape(self._init, jax.random.key(0)))
        ranges = {part: prepared.splits.ranges(part) for part in ("train", "valid")}
        self._usable = _usable_neurons(prepared)
        # Sessions without a usable neuron give no windows.
        ranges = {p: r[np.isin(r[:, 0], list(self._usable))] for p, r in ranges.items()}
        self.frames = self._frames(ranges["train"])
        self._windows = {p: Windows(r, self.frames, seed) for p, r in ranges.items()}
        self._latents = jax.jit(self._encode_batch)
        self._score = jax.jit(self._reconstruct)

    def _frames(self, ranges: np.ndarray) -> int:
        """Frames of a batch: the window, or the longest range, in whole patches."""
        longest = int(np.max(ranges[:, 2] - ranges[:, 1]))
        frames = min(self.training.window or longest, longest)
        if frames < self.config.patch:
            raise ConfigError(
                "no training window is as long as one code",
                where="tokenizer_training.window",
                found=f"{frames} frames",
                expected=f"at least the patch, {self.config.patch} frames",
            )
        return frames // self.config.patch * self.config.patch

    # -- model ---------------------------------------------------------------------

    def _init(self, key: Array) -> model.Tokenizer:
        return model.init(self.config, key, dtype=self._dtype)

    def init(self, key: Array) -> tuple[dict, dict]:
        """(params, extra): what gradients train, and the moving-average codebook."""
        _, params, extra = nnx.split(self._init(key), nnx.Param, ...)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(extra)

    def model(self, params: dict, extra: dict) -> model.Tokenizer:
        """The tokenizer of a training state."""
        return nnx.merge(self._graph, nnx.State(params), nnx.State(extra))

    def decays(self, path: str) -> bool:
        """Weight decay on matrices only: not on biases, norms or the codebook."""
        return path.endswith("kernel")

    def trains(self, path: str) -> bool:
        """Everything that is a parameter is trained."""
        return True

    # -- loss ----------------------------------------------------------------------

    def temperature(self, step: Array) -> Array:
        """Exponential from `temperature` to `final_temperature` at `anneal_fraction`."""
        cfg = self.config
        done = jnp.clip(step / self.anneal_steps, 0.0, 1.0)
        return cfg.temperature * (cfg.final_temperature / cfg.temperature) ** done

    def loss(
        self, params: dict, extra: dict, batch: dict, key: Array, step: Array
    ) -> tuple[Array, tuple[dict, dict]]:
        """Eq. 9 on traces (B, T) with mask (B, T): (loss, (extra, metrics))."""
        cfg = self.config
        tok = self.model(params, extra)
        traces, mask = batch["traces"], batch["mask"]
        valid = model.token_mask(mask, cfg.patch)
        k_encoder, k_decoder, k_predictor, k_draw = jax.random.split(key, 4)
        quantised = step >= self.warm_steps

        z = model.latents(tok, traces, key=k_encoder)
        codebook = tok.quantizer.codebook[...]
        distance = quantizer.distances(z, codebook)
        codes = jnp.argmin(distance, axis=-1)
        temperature = self.temperature(step)
        drawn, soft = quantizer.gumbel_assignment(
            -distance / z.shape[-1] ** 0.5, temperature, k_draw
        )
        z_q = drawn @ codebook
        pred = model.decode_embeddings(tok, jnp.where(quantised, z_q, z), key=k_decoder)

        mse = losses.masked_mse(pred, traces, mask)
        one_minus_r = losses.pearson_loss(pred, traces, mask)
        commitment = losses.commitment(z, z_q, valid)
        entropy = losses.assignment_entropy(soft, valid)
        orthogonal = losses.orthogonality(codebook)
        terms = cfg.commitment_weight * commitment - cfg.entropy_weight * entropy
        if cfg.codebook == "gradient":
            terms += cfg.embedding_weight * losses.commitment(z_q, z, valid)
        predicted = jnp.zeros(())
        if tok.predictor is not None:
            predicted = self._predictability(tok, z, codes, valid, k_predictor)
            terms += cfg.autoregressive_weight * predicted
        terms += cfg.orthogonal_weight * orthogonal
        # Before k-means the codebook means nothing: only L_r is trained.
        loss = mse + cfg.pearson_weight * one_minus_r + jnp.where(quantised, terms, 0.0)
        extra = self._moved(extra, z, codes, valid, quantised)
        metrics = {
            "mse": mse,
            "pearson": 1.0 - one_minus_r,
            "commitment": commitment,
            "entropy": entropy,
            "orthogonality": orthogonal,
            "autoregressive": predicted,
            "temperature": temperature,
        }
        return loss, (extra, metrics)

    def _predictability(
        self, tok: model.Tokenizer, z: Array, codes: Array, valid: Array, key: Array
    ) -> Array:
        """L_AR: sum over k of the cross-entropy in bits of the code k steps ahead."""
        logits = tok.predictor(z, key)
        tokens, steps = logits.shape[1:3]
        target = jnp.arange(tokens)[:, None] + jnp.arange(1, steps + 1)
        inside, target = target < tokens, jnp.minimum(target, tokens - 1)
        real = inside & valid[:, target] & valid[:, :, None]

        def bits(logits: Array, codes: Array, mask: Array) -> Array:
            smoothing = self.config.label_smoothing
            return losses.cross_entropy(logits, codes, mask, smoothing=smoothing, bits=True)

        return jnp.sum(jax.vmap(bits, in_axes=2)(logits, codes[:, target], real))

    def _moved(
        self, extra: dict, z: Array, codes: Array, valid: Array, quantised: Array
    ) -> dict:
        """The moving averages after this batch; unchanged before k-means."""
        old = extra["quantizer"]
        codebook, counts, sums = quantizer.moving_average(
            old["counts"],
            old["sums"],
            jax.lax.stop_gradient(z),
            codes,
            valid.astype(jnp.float32),
            decay=self.config.decay,
            laplace=self.config.laplace,
        )
        new = {"counts": counts, "sums": sums}
        if self.config.codebook == "ema":
            new["codebook"] = codebook
        new = jax.tree.map(lambda a, b: jnp.where(quantised, a, b), new, old)
        return extra | {"quantizer": new}

    # -- batches -------------------------------------------------------------------

    def batch(self, step: int, part: int = 0, parts: int = 1) -> dict[str, np.ndarray]:
        """Rows `part` of `parts` of training batch `step`: traces, mask (B / parts, T)."""
        return self._rows("train", step, part, parts)

    def _rows(self, which: str, step: int, part: int, parts: int) -> dict[str, np.ndarray]:
        size = self.training.batch
        rows = np.arange(size * part // parts, size * (part + 1) // parts)
        group = min(NEURONS_PER_WINDOW, size)
        session, start, stop = self._windows[which].at(step, -(-size // group))
        traces = np.zeros((len(rows), self.frames), np.float32)
        mask = np.zeros((len(rows), self.frames), bool)
        for w in np.unique(rows // group):
            i = int(session[w])
            z, valid = self.prepared.window(i, int(start[w]), int(stop[w]))
            rng = np.random.default_rng([self.seed, step, int(w), which == "valid"])
            usable = self._usable[i]
            neurons = rng.choice(usable, group, replace=len(usable) < group)
            own = rows // group == w
            neurons = neurons[rows[own] % group]
            traces[own, : len(z)] = z[:, neurons].T
            mask[own, : len(z)] = valid[:, neurons].T
        return {"traces": np.where(mask, traces, 0), "mask": mask}

    # -- events --------------------------------------------------------------------

    def event(self, step: int) -> Callable[[dict, dict], tuple[dict, dict]] | None:
        """k-means at the end of the warm-up, later revival and re-clustering, or None."""
        cfg, since = self.config, step - self.warm_steps
        if since < 0 or step >= max(self.anneal_steps, self.warm_steps + 1):
            return None
        again = cfg.recluster_every and max(round(cfg.recluster_every * self.steps), 1)
        if since == 0 or (again and since % again == 0):
            return lambda params, extra: self._cluster(params, extra, step)
        if since % max(round(cfg.revive_every * self.steps), 1) == 0:
            return lambda params, extra: self._revive(params, extra, step)
        return None

    def _cluster(self, params: dict, extra: dict, step: int) -> tuple[dict, dict]:
        """The codebook from k-means of encoder outputs."""
        z, weight, per_batch = self._sample(params, extra, step)
        centres, counts = kmeans(z, weight, self._event_key(step), k=self.config.codes)
        counts = counts * (per_batch / jnp.sum(weight))
        return self._put(params, extra, centres, counts, centres * counts[:, None])

    def _revive(self, params: dict, extra: dict, step: int) -> tuple[dict, dict]:
        """Rarely used codes re-seeded from encoder outputs."""
        z, weight, _ = self._sample(params, extra, step)
        state = (params if self.config.codebook == "gradient" else extra)["quantizer"]
        own = extra["quantizer"]
        codebook, counts, sums, _ = quantizer.revive(
            state["codebook"],
            own["counts"],
            own["sums"],
            z,
            weight,
            self._event_key(step),
            below=self.config.revive_below,
        )
        return self._put(params, extra, codebook, counts, sums)

    def _event_key(self, step: int) -> Array:
        return jax.random.fold_in(jax.random.key(self.seed), step)

    def _sample(self, params: dict, extra: dict, step: int) -> tuple[Array, Array, float]:
        """Latents (n, d), their weight (n,), and valid tokens in a batch (mean)."""
        tokens = self.training.batch * (self.frames // self.config.patch)
        n = min(max(-(-SAMPLE // tokens), 1), 32)
        found = [self._latents(params, extra, self.batch(step + i)) for i in range(n)]
        z = jnp.concatenate([a for a, _ in found])
        weight = jnp.concatenate([b for _, b in found])
        return z, weight, jnp.sum(weight) / n

    def _encode_batch(self, params: dict, extra: dict, batch: dict) -> tuple[Array, Array]:
        z = model.latents(self.model(params, extra), batch["traces"])
        weight = model.token_mask(batch["mask"], self.config.patch)
        return z.reshape(-1, z.shape[-1]), weight.reshape(-1).astype(jnp.float32)

    def _put(
        self, params: dict, extra: dict, codebook: Array, counts: Array, sums: Array
    ) -> tuple[dict, dict]:
        new = {"counts": counts, "sums": sums}
        if self.config.codebook == "gradient":
            own = params["quantizer"] | {"codebook": codebook}
            params = params | {"quantizer": own}
        else:
            new["codebook"] = codebook
        return params, extra | {"quantizer": new}

    # -- evaluation ----------------------------------------------------------------

    def evaluate(self, params: dict, extra: dict) -> dict[str, float]:
        """Reconstruction of validation windows through their nearest codes.

        `loss` = L_r; `mse`; `pearson` = mean over neuron-windows; `r2` = 1 - residual /
        total sum of squares; `codes_used`; `perplexity` = 2^entropy of the code usage.
        """
        total: Any = None
        for i in range(self.training.eval_batches):
            found = self._score(params, extra, self._rows("valid", i, 0, 1))
            found = jax.tree.map(np.float64, jax.device_get(found))
            total = found if total is None else jax.tree.map(np.add, total, found)
        metrics = summarise(total, self.config.pearson_weight)
        return {**metrics, "loss": metrics[self.training.watch]}

    def _reconstruct(self, params: dict, extra: dict, batch: dict) -> dict[str, Array]:
        tok = self.model(params, extra)
        codes = model.encode(tok, batch["traces"])
        pred = model.decode(tok, codes)
        weight = model.token_mask(batch["mask"], self.config.patch)
        return sums(pred, batch["traces"], batch["mask"], codes, weight, self.config.codes)


def sums(
    pred: Array, traces: Array, mask: Array, codes: Array, valid: Array, k: int
) -> dict[str, Array]:
    """Sufficient statistics of a reconstruction, to be added over batches.

    Shapes: pred, traces, mask (B, T); codes, valid (B, T').
    """
    w = mask.astype(jnp.float32)
    n = jnp.sum(w, -1)
    mean = lambda a: jnp.sum(a * w, -1, keepdims=True) / jnp.maximum(n, 1)[:, None]
    dx, dy = (pred - mean(pred)) * w, (traces - mean(traces)) * w
    variance = jnp.sum(dy**2, -1)
    scored = (n >= 2) & (variance > 1e-6 * n)
    scale = jnp.sqrt(jnp.maximum(jnp.sum(dx**2, -1) * variance, 1e-20))
    r = jnp.sum(dx * dy, -1) / scale
    return {
        "squared_error": jnp.sum(jnp.square(pred - traces) * w),
        "squared_total": jnp.sum(variance),
        "frames": jnp.sum(n),
        "pearson": jnp.sum(jnp.where(scored, r, 0.0)),
        "scored": jnp.sum(scored),
        "usage": jnp.zeros(k).at[codes].add(valid.astype(jnp.float32)),
    }


def summarise(total: dict[str, np.ndarray], pearson_weight: float) -> dict[str, float]:
    """The metrics of `Tokenization.evaluate` from added `sums`."""
    mse = float(total["squared_error"] / max(total["frames"], 1))
    pearson = float(total["pearson"] / max(total["scored"], 1))
    p = total["usage"] / max(total["usage"].sum(), 1)
    entropy = -np.sum(p[p > 0] * np.log2(p[p > 0]))
    return {
        "loss": mse + pearson_weight * (1.0 - pearson),
        "mse": mse,
        "pearson": pearson,
        "r2": 1.0 - float(total["squared_error"] / max(total["squared_total"], 1e-12)),
        "codes_used": int(np.sum(total["usage"] > 0)),
        "perplexity": float(2.0**entropy),
    }


def _usable_neurons(prepared: Any) -> dict[int, np.ndarray]:
    """By session the neurons that vary in its training part; sessions without one are left out."""
    varying = {
        i: np.flatnonzero(~np.asarray(prepared.scalers.constant[i]))
        for i in prepared.splits.training_index
    }
    usable = {i: index for i, index in varying.items() if len(index)}
    if not usable:
        raise ConfigError(
            "every neuron of every session is constant on the training part",
            where="data",
            remedy="Nothing can be learned from these recordings; look at `calm-jax info`.",
        )
    return usable
