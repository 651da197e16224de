"""The POYO+ read-out as a decoder: the population encoder of the package, from scratch.

One window per decoded frame t: the `WINDOW` frames up to t + look-ahead, every neuron and
frame a token, one query per target at t (session and task embedding, one linear map). The
window lasts one second of the encoder's rotary time, whatever the frame rate is. Unit
dropout as POYO+ has it, AdamW as the other decoders; all sessions train one encoder.

Early in a range the window is as long as the past: nothing crosses the edge of a range.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from calm_jax import config
from calm_jax.models import population_encoder as encoders
from calm_jax.models.population_encoder import EncoderConfig
from calm_jax.recordings import population_tokens as tokens
from calm_jax.recordings.splits import Splits
from calm_jax.recordings.targets import Target
from calm_jax.tasks.behavior import class_weights
from calm_jax.tasks.latent_masking import Units

WINDOW = 16  # frames
_VALID = 256  # frames that validation reads at most, evenly spaced
# The small one with fewer blocks, less dropout, and a start from which hundreds of steps are
# enough (docs/movies.md); as published it stays at the mean for as long.
ENCODER = EncoderConfig(
    depth=2, forward_dropout=0.05, block_dropout=0.1, attention_dropout=0.05,
    embedding_scale=2.0, latent_scale=0.04, value_gain=10.0,
)  # fmt: skip
TRAINING = {"learning_rate": 2e-3, "final_learning_rate": 2e-5, "weight_decay": 1e-2}


class PoyoDecoding:
    """The Task of decoding `targets`, and its predictions.

    Args:
      read: (session, start, stop) -> scaled traces (T, N) of a whole range.
      offset: (S + 1,) first row of each session's neurons.
      seed: of frames and unit dropout.
    """

    name = "poyo"

    def __init__(
        self,
        read: Callable[[int, int, int], np.ndarray],
        splits: Splits,
        offset: np.ndarray,
        targets: Sequence[Target],
        settings: config.Decoding,
        *,
        seed: int,
        encoder: EncoderConfig = ENCODER,
        units: Units = Units(),  # noqa: B008  (frozen)
    ) -> None:
        self._read, self._splits, self._offset = read, splits, offset
        self.targets, self._settings, self._seed = tuple(targets), settings, seed
        self._encoder, self._units = encoder, units
        self.training = dataclasses.replace(settings.training, **TRAINING)
        self.heads = {f"target{k}": (k + 1, t.outputs) for k, t in enumerate(self.targets)}
        devices = jax.device_count()
        self.rows = -(-settings.training.batch // devices) * devices
        self._balance = [class_weights(t, splits, settings.balanced) for t in self.targets]
        self._train, self._valid = self._frames("train"), self._frames("valid")
        if len(self._valid) > _VALID:
            pick = np.linspace(0, len(self._valid) - 1, _VALID).round().astype(int)
            self._valid = self._valid[pick]
        made = jax.eval_shape(self._make, jax.random.key(0))
        self._graph = nnx.graphdef(made)
        self._omega = tokens.frequencies(encoder.head_width, encoder.t_min, encoder.t_max)
        self._out = jax.jit(lambda params, batch: encoders.outputs(self._model(params), batch))

    def _frames(self, part: str) -> np.ndarray:
        """(F, 4) session, start and stop of the range, frame, of labelled frames."""
        out = [
            np.array([[i, a, b, t] for t in range(a, b)], np.int64).reshape(-1, 4)[
                np.any([k.known[i][a:b] for k in self.targets], axis=0)
            ]
            for i in range(len(self._offset) - 1)
            for a, b in self._splits.parts[i][part].tolist()
        ]
        return np.concatenate(out)

    # -- the model -----------------------------------------------------------------

    def _make(self, key: Array) -> encoders.PopulationEncoder:
        return encoders.init(
            self._encoder, key, units=int(self._offset[-1]), sessions=len(self._offset) - 1,
            heads=self.heads,
        )  # fmt: skip

    def _model(self, params: dict) -> encoders.PopulationEncoder:
        return nnx.merge(self._graph, nnx.State(params))

    def init(self, key: Array) -> tuple[dict, dict]:
        """(params, {})."""
        return nnx.to_pure_dict(nnx.state(self._make(key))), {}

    def decays(self, path: str) -> bool:
        """Weight decay on matrices only."""
        return path.endswith("kernel")

    def trains(self, path: str) -> bool:
        """Everything."""
        return True

    def event(self, step: int) -> None:
        """Nothing happens between steps."""

    # -- batches -------------------------------------------------------------------

    def _sample(
        self, frame: np.ndarray, rng: np.random.Generator | None
    ) -> tokens.Sample:
        """The window of one frame; with a generator units are dropped."""
        i, first, last, t = frame.tolist()
        stop = min(t + self._settings.look_ahead + 1, last)
        start = max(stop - WINDOW, first)
        z = self._read(i, first, last)[start - first : stop - first]
        kept = np.arange(z.shape[1])
        if rng is not None:
            kept = tokens.kept_units(rng, z.shape[1], **dataclasses.asdict(self._units))
        # The last frame stands at the end of the window.
        times = 1 + (np.arange(start, stop) - stop + 0.5) / WINDOW
        rows = self._offset[i] + 1 + kept
        count, weights, given = len(self.targets), [], {}
        for (name, (_, outputs)), target, balance in zip(
            self.heads.items(), self.targets, self._balance, strict=True
        ):
            value, known = target.values[i][t], bool(target.known[i][t])
            label = int(value) if known and outputs > 1 else 0
            given[name] = (
                np.array([label], np.int32) if outputs > 1
                else np.array([[value if known else 0.0]], np.float32)
            )  # fmt: skip
            weights.append(known * (1.0 if balance is None else float(balance[label])))
        return tokens.Sample(
            *tokens.window_tokens(z[:, kept], None, times, rows),
            sessions=np.full(count, i + 1, np.int32),
            tasks=np.arange(1, count + 1, dtype=np.int32),
            query_times=np.full(count, 1 + (t + 0.5 - stop) / WINDOW),
            targets=given,
            weights=np.array(weights, np.float32),
        )

    def _collate(self, samples: Sequence[tokens.Sample]) -> dict[str, np.ndarray]:
        longest = int(np.diff(self._offset).max()) * WINDOW
        sizes = (*(b for b in tokens.BUCKETS if b < longest), longest)
        queries = (len(self.targets),)
        return tokens.collate(samples, self._omega, self.heads, tokens=sizes, queries=queries)

    def batch(self, step: int, part: int = 0, parts: int = 1) -> dict[str, np.ndarray]:
        """Rows `part` of `parts` of training batch `step`: frames drawn at random."""
        rng = np.random.default_rng([self._seed, step, 21])
        chosen = self._train[rng.integers(len(self._train), size=self.rows)]
        seeds = rng.integers(1 << 31, size=self.rows)
        samples = [
            self._sample(f, np.random.default_rng(s)) for f, s in zip(chosen, seeds, strict=True)
        ]
        made = self._collate(samples)  # of all rows: every part has the same shapes
        own = slice(self.rows * part // parts, self.rows * (part + 1) // parts)
        return {k: v[own] for k, v in made.items()}

    # -- loss, prediction, evaluation ------------------------------------------------

    def loss(
        self, params: dict, extra: dict, batch: dict, key: Array, step: Array
    ) -> tuple[Array, tuple[dict, dict]]:
        """Mean over targets of squared error or weighted cross-entropy: (loss, (extra, {}))."""
        model = self._model(params)
        out = encoders.outputs(model, batch, key=key)
        value, _ = encoders.loss(model, out, batch)
        return value.astype(jnp.float32) / len(self.targets), (extra, {})

    def _outputs(self, params: dict, frames: np.ndarray) -> np.ndarray:
        """(F, outputs of all targets) at frames, all units."""
        out = []
        for at in range(0, len(frames), self.rows):
            part = frames[at : at + self.rows]
            filled = np.concatenate([part, np.repeat(part[-1:], self.rows - len(part), 0)])
            found = self._out(params, self._collate([self._sample(f, None) for f in filled]))
            each = [np.asarray(found[name])[:, k] for k, name in enumerate(self.heads)]
            out.append(np.concatenate(each, 1)[: len(part)])
        return np.concatenate(out)

    def predict(self, params: dict, extra: dict, i: int, start: int, stop: int) -> np.ndarray:
        """(stop - start, outputs of all targets) of a whole range of session `i`."""
        t = np.arange(start, stop)
        full = lambda x: np.full(len(t), x)
        return self._outputs(params, np.stack([full(i), full(start), full(stop), t], 1))

    def evaluate(self, params: dict, extra: dict) -> dict[str, float]:
        """The loss on validation frames, at most 256, evenly spaced."""
        terms, weight = np.zeros(len(self.targets)), np.zeros(len(self.targets))
        outputs = self._outputs(params, self._valid)
        first = 0
        for k, (target, balance) in enumerate(zip(self.targets, self._balance, strict=True)):
            out = outputs[:, first : first + target.outputs].astype(np.float64)
            first += target.outputs
            known = np.array([target.known[i][t] for i, _, _, t in self._valid])
            value = np.array([target.values[i][t] for i, _, _, t in self._valid])
            if not known.any():
                continue
            if balance is None:
                error, w = np.square(out[:, 0] - value), known.astype(float)
            else:
                label = np.where(known, value, 0).astype(int)
                top = out.max(1, keepdims=True)
                log_z = top[:, 0] + np.log(np.exp(out - top).sum(1))
                error = log_z - out[np.arange(len(out)), label]
                w = known * np.asarray(balance)[label]
            terms[k], weight[k] = (w * error).sum(), w.sum()
        return {"loss": float((terms / np.maximum(weight, 1e-12)).mean())}
