"""Training the dual-axis transformer: the next code of every neuron (spec section 3).

    L = code_weight * NLL(code at t + 1) + readout_weight * MSE(frames after t)

The first term is the published loss. The second trains the frame read-out, where the
experiment has one. The tokenizer is frozen.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from calm_jax import config as configs
from calm_jax import losses
from calm_jax.errors import ConfigError
from calm_jax.models import tokenizer as tokenizers
from calm_jax.models.dual_axis import DualAxisTransformer, Tokens, code_logits, features
from calm_jax.models.forecaster import frames_ahead, read_frames
from calm_jax.recordings.batches import Windows, bucket, window_batch
from calm_jax.tasks import linear_start
from calm_jax.tasks.transformer_checks import check
from calm_jax.training.precision import compute_dtype


class NextCode:
    """The Task of training the dual-axis transformer.

    Args:
      config: of the transformer. training: `batch` counts windows of a population.
      prepared: `Prepared` traces with their splits and scalers.
      tokenizer: trained; not changed here.
      codes: the exported codes, needed with config.tokens = "exported".
      seed: of windows, neurons and noise. steps: of the whole training.
    """

    name = "transformer"

    def __init__(
        self,
        config: configs.DualAxis,
        training: configs.Training,
        prepared: Any,
        tokenizer: tokenizers.Tokenizer,
        codes: Any,
        *,
        seed: int,
        steps: int,
    ):
        self.patch = tokenizer.config.patch
        check(config, self.patch)
        self.config, self.training, self.prepared = config, training, prepared
        self.codes, self.seed, self.steps = codes, seed, steps
        if config.tokens == "exported" and codes is None:
            raise ConfigError(
                "exported tokens are asked for and no tokenized data set is given",
                where="transformer.tokens",
                remedy="Set transformer.tokens to encoded.",
            )
        known = ["loss", "nll"] + ["mse"] * (config.readout_frames > 0)
        if training.watch not in known:
            raise ConfigError(
                "no such validation metric",
                where="transformer_training.watch",
                found=repr(training.watch),
                expected=", ".join(known),
            )
        self._dtype = compute_dtype(training.precision)
        self._tokenizer_graph, self._tokenizer = nnx.split(tokenizer)
        self._graph = nnx.graphdef(jax.eval_shape(lambda: self._init(jax.random.key(0))))
        ranges = {part: prepared.splits.ranges(part) for part in ("train", "valid")}
        longest = int(np.max(ranges["train"][:, 2] - ranges["train"][:, 1]))
        frames = min(training.window or longest, longest) // self.patch * self.patch
        if frames < 2 * self.patch:
            raise ConfigError(
                "no training window holds two codes",
                where="transformer_training.window",
                found=f"{frames} frames",
                expected=f"at least {2 * self.patch} frames",
            )
        self.frames = frames
        self._windows = {p: Windows(r, frames, seed) for p, r in ranges.items()}
        most = max(s.n_neurons for s in prepared.store.sessions)
        self.neurons = min(config.neurons_per_trial, bucket(most, 8))
        self._score = jax.jit(self._evaluate)

    # -- model ---------------------------------------------------------------------

    def _init(self, key: Array) -> DualAxisTransformer:
        return DualAxisTransformer(
            self.config,
            codes=nnx.merge(self._tokenizer_graph, self._tokenizer).config.codes,
            patch=self.patch,
            neurons=self.prepared.store.n_neurons,
            sessions=len(self.prepared.store.sessions),
            dtype=self._dtype,
            rngs=nnx.Rngs(key),
        )

    def init(self, key: Array) -> tuple[dict, dict]:
        """(params, {}); the frozen tokenizer travels as `extra`, so that it is not
        compiled into the step as a constant."""
        params = nnx.to_pure_dict(nnx.state(self._init(key), nnx.Param))
        if self.config.linear_start:
            params["readout"] |= {k: v for k, v in self._start.items() if v is not None}
        return params, nnx.to_pure_dict(self._tokenizer)

    @functools.cached_property
    def _start(self) -> linear_start.Start:
        return linear_start.fitted(self.config, self.prepared, self.patch)

    def model(self, params: dict) -> DualAxisTransformer:
        """The transformer of a training state."""
        return nnx.merge(self._graph, nnx.State(params))

    def decays(self, path: str) -> bool:
        """Weight decay on matrices only: not on norms, biases or embeddings, nor on a
        linear path that starts at a fitted map (it would shrink the fit)."""
        parts = tuple(f"readout/{k}/" for k in linear_start.Start.__annotations__)
        return path.endswith("kernel") and not (
            self.config.linear_start and path.startswith(parts)
        )

    def trains(self, path: str) -> bool:
        """Everything that is a parameter is trained, but levels and maps by roughness that were
        not taken: they stay 0."""
        for part in ("level", "rough", "rough_level"):
            if path.startswith(f"readout/{part}/"):
                return self._start[part] is not None
        return True

    def event(self, step: int) -> None:
        """Nothing happens between steps."""

    # -- loss ----------------------------------------------------------------------

    def _inputs(self, extra: dict, batch: dict) -> tuple[tokenizers.Tokenizer, Tokens, Array]:
        """The frozen tokenizer, the tokens of a batch, and the mask (B, T', N, patch)."""
        tok = nnx.merge(self._tokenizer_graph, nnx.State(extra))
        b, t, n = batch["traces"].shape
        steps = t // self.patch
        split = lambda x: x.reshape(b, steps, self.patch, n).swapaxes(2, 3)  # noqa: E731
        values, mask = split(batch["traces"]), split(batch["mask"])
        if "codes" in batch:
            codes = batch["codes"].astype(jnp.int32)
        else:
            codes = tokenizers.encode(tok, batch["traces"].swapaxes(1, 2)).swapaxes(1, 2)
        tokens = Tokens(codes, batch["neuron"], batch["session"], batch["real"], values)
        return tok, tokens, mask

    def _terms(
        self, net: DualAxisTransformer, tokens: Tokens, true: Tokens, mask: Array, key: Any
    ) -> tuple[Array, dict[str, Array]]:
        """Loss and metrics of tokens as the model sees them against the `true` ones."""
        c = self.config
        h = features(net, tokens, key=key)
        logits = code_logits(net, h[:, :-1])
        valid = mask.all(-1)[:, 1:]
        nll = losses.cross_entropy(logits, true.codes[:, 1:], valid)
        hit = losses.masked_mean(jnp.argmax(logits, -1) == true.codes[:, 1:], valid)
        loss, metrics = c.code_weight * nll, {"nll": nll, "accuracy": hit}
        if net.readout is not None:
            ahead, known = frames_ahead(true.values, mask, c.readout_frames)
            seen = self.patch * jnp.arange(1, known.shape[1] + 1)
            # A window too short for it counts from its last step that has a target.
            after = min(c.readout_after, known.shape[1] * self.patch - self.patch)
            known &= (seen >= after)[:, None, None]
            mse = losses.masked_mse(read_frames(net, h, tokens), ahead, known)
            copy = losses.masked_mse(true.values[..., -1:], ahead, known)
            loss = loss + c.readout_weight * mse
            metrics |= {"mse": mse, "mse_copy": copy}
        return loss, metrics

    def loss(
        self, params: dict, extra: dict, batch: dict, key: Array, step: Array
    ) -> tuple[Array, tuple[dict, dict]]:
        """Loss of a batch of windows: (loss, (extra, metrics))."""
        c = self.config
        tok, tokens, mask = self._inputs(extra, batch)
        net = self.model(params)
        true = tokens
        k_noise, k_scheduled, k_dropout = jax.random.split(key, 3)
        if c.noise_probability > 0:
            tokens = tokens._replace(codes=self._noisy(tok, true.codes, k_noise))
        if c.scheduled_probability > 0:
            tokens = self._scheduled(tok, net, tokens, k_scheduled)
        loss, metrics = self._terms(net, tokens, true, mask, k_dropout)
        return loss, (extra, metrics)

    def _noisy(self, tok: tokenizers.Tokenizer, codes: Array, key: Array) -> Array:
        """With probability p each code becomes one of its nearest codes."""
        c = self.config
        k_where, k_which = jax.random.split(key)
        count = min(c.noise_neighbours, tok.config.codes - 1)
        near = tokenizers.nearest_codes(tok, count)
        which = jax.random.randint(k_which, codes.shape, 0, count)
        replace = jax.random.bernoulli(k_where, c.noise_probability, codes.shape)
        return jnp.where(replace, near[codes, which], codes)

    def _scheduled(
        self, tok: tokenizers.Tokenizer, net: DualAxisTransformer, tokens: Tokens, key: Array
    ) -> Tokens:
        """Scheduled sampling: a block of steps takes the model's own predictions.

        The predictions are one step ahead given the past as it comes in, so one more
        forward pass makes them all; no gradient runs through them.
        """
        c = self.config
        b, t, _ = tokens.codes.shape
        k_where, k_start = jax.random.split(key)
        size = min(c.scheduled_block, t - 1)
        own = jnp.argmax(code_logits(net, features(net, tokens)), -1)
        own = jnp.concatenate([tokens.codes[:, :1], own[:, :-1]], axis=1)
        first = jax.random.randint(k_start, (b, 1), 1, t - size + 1)
        step = jnp.arange(t)
        block = (step >= first) & (step < first + size)
        block &= jax.random.bernoulli(k_where, c.scheduled_probability, (b, 1))
        codes = jnp.where(block[..., None], own, tokens.codes)
        if net.value is None:
            return tokens._replace(codes=jax.lax.stop_gradient(codes))
        frames = tokenizers.decode(tok, codes.swapaxes(1, 2))
        frames = frames.reshape(b, -1, t, self.patch).swapaxes(1, 2)
        values = jnp.where(block[..., None, None], frames, tokens.values)
        return jax.lax.stop_gradient(tokens._replace(codes=codes, values=values))

    # -- batches -------------------------------------------------------------------

    def batch(self, step: int, part: int = 0, parts: int = 1) -> dict[str, np.ndarray]:
        """Rows `part` of `parts` of training batch `step`, padded to one shape."""
        return self._rows("train", step, part, parts)

    def _rows(self, which: str, step: int, part: int, parts: int) -> dict[str, np.ndarray]:
        size = self.training.batch
        session, start, stop = self._windows[which].at(step, size, part, parts)
        if self.config.tokens == "exported":
            start, stop = self._on_codes(session, start, stop)
        batch = window_batch(
            self.prepared,
            session,
            start,
            stop,
            frames=bucket(self.frames, self.patch),
            neurons=self.neurons,
            limit=self.neurons,
            seed=self.seed + (which == "valid"),
            step=step,
            first_row=size * part // parts,
        )
        if self.config.tokens == "exported":
            batch["codes"] = self._exported(batch, session, start)
        return batch

    def _on_codes(
        self, session: np.ndarray, start: np.ndarray, stop: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Windows moved back so that they begin at a code of their range."""
        first = np.array(
            [self.prepared.range_of(int(i), int(a))[0] for i, a in zip(session, start, strict=True)]
        )
        back = (start - first) % self.patch
        return start - back, stop - back

    def _exported(self, batch: dict, session: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Codes (B, T', N) of the rows of a batch, read from the exported data set."""
        b, t, n = batch["traces"].shape
        out = np.zeros((b, t // self.patch, n), np.int32)
        for row, (i, a) in enumerate(zip(session, start, strict=True)):
            own = batch["neuron"][row] - self.prepared.store.neuron_offset(int(i))
            own = own[batch["real"][row]]
            first, last = self.prepared.range_of(int(i), int(a))
            k = (int(a) - first) // self.patch
            codes = self.codes.range(int(i), first, last)[own, k : k + out.shape[1]]
            out[row, : codes.shape[1], : own.size] = codes.T
        return out

    # -- evaluation ----------------------------------------------------------------

    def evaluate(self, params: dict, extra: dict) -> dict[str, float]:
        """The loss and its parts on validation windows, without noise or dropout.

        With `training.watch` naming another metric, that one stands as `loss` and the
        loss itself as `objective`.
        """
        found = [
            jax.device_get(self._score(params, extra, self._rows("valid", i, 0, 1)))
            for i in range(self.training.eval_batches)
        ]
        metrics = {k: float(np.mean([f[k] for f in found])) for k in found[0]}
        if self.training.watch == "loss":
            return metrics
        return {**metrics, "objective": metrics["loss"], "loss": metrics[self.training.watch]}

    def _evaluate(self, params: dict, extra: dict, batch: dict) -> dict[str, Array]:
        _, tokens, mask = self._inputs(extra, batch)
        loss, metrics = self._terms(self.model(params), tokens, tokens, mask, None)
        return {"loss": loss} | metrics
