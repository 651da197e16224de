"""The heads of `models.decoder` as networks of the behaviour task."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from calm_jax import config
from calm_jax.models.decoder import (
    Head,
    decode_frames,
    decode_steps,
    delays,
    population_features,
)
from calm_jax.models.forecaster import CalM


def feature_width(model: CalM, settings: config.Decoding) -> int:
    """D of the features that a head reads."""
    patch = model.tokenizer.config.patch
    return model.transformer.config.width + patch * settings.traces


class FrozenHead:
    """A head on features that do not change.

    Args:
      model: of the features. neurons: rows of the head. outputs: of all targets together.
    """

    history = 0

    def __init__(self, model: CalM, settings: config.Decoding, neurons: int, outputs: int):
        patch = model.tokenizer.config.patch
        self.hop = self.unfold = self.align = 1 if settings.every_frame else patch
        self.delay, future = delays(settings.look_ahead, self.unfold, settings.kernel)
        self.early = max(0, self.unfold - 1 - self.delay)
        make = lambda rngs: Head(  # noqa: E731
            width=feature_width(model, settings),
            outputs=outputs,
            neurons=neurons,
            unfold=self.unfold,
            rank=settings.rank,
            kernel=settings.kernel,
            future=future,
            gated=settings.head == "gated",
            dropout=settings.dropout,
            rngs=rngs,
        )
        self._make = make
        self._graph = nnx.graphdef(jax.eval_shape(lambda: make(nnx.Rngs(0))))

    def init(self, key: Array) -> tuple[dict, dict]:
        """({"head": ...}, {})."""
        head = nnx.to_pure_dict(nnx.state(self._make(nnx.Rngs(key)), nnx.Param))
        return {"head": head}, {}

    def head(self, params: dict) -> Head:
        """The head of a training state."""
        return nnx.merge(self._graph, nnx.State(params["head"]))

    def steps(self, params: dict, extra: dict, batch: dict, key: Array | None) -> Array:
        """See `Network.steps`; inputs are features (B, S, N, D)."""
        inputs = batch["inputs"]
        return decode_steps(self.head(params), inputs, batch["neuron"], batch["real"], key)

    def frames(self, params: dict, y: Array, length: Array) -> Array:
        """See `Network.frames`."""
        return decode_frames(self.head(params), y, length, self.delay)

    def decays(self, path: str) -> bool:
        """Not on the bias and the smoothing, which does not start at 0."""
        return not path.endswith(("bias", "smooth"))


class TunedHead(FrozenHead):
    """The head and the transformer below it; the tokenizer stays as it is.

    The transformer is theta_0 + rate * delta with delta trained from 0: its learning rate
    is `fine_tune_rate` times that of the head, and weight decay pulls to theta_0.
    """

    def __init__(
        self, model: CalM, settings: config.Decoding, neurons: int, outputs: int, window: int
    ):
        super().__init__(model, settings, neurons, outputs)
        self.align, self.hop = model.tokenizer.config.patch, 1
        self.history, self._settings = window // 2, settings
        self._token_graph, self._tokenizer = nnx.split(model.tokenizer)
        self._net_graph, net = nnx.split(model.transformer)
        self._net = nnx.to_pure_dict(net)

    def init(self, key: Array) -> tuple[dict, dict]:
        """({"head", "backbone"}, {"tokenizer", "backbone"})."""
        params, _ = super().init(key)
        params["backbone"] = jax.tree.map(jnp.zeros_like, self._net)
        return params, {"tokenizer": nnx.to_pure_dict(self._tokenizer), "backbone": self._net}

    def transformer_state(self, params: dict, extra: dict) -> dict:
        """The parameters of the tuned transformer."""
        rate = self._settings.fine_tune_rate
        return jax.tree.map(lambda a, d: a + rate * d, extra["backbone"], params["backbone"])

    def steps(self, params: dict, extra: dict, batch: dict, key: Array | None) -> Array:
        """See `Network.steps`; inputs are scaled traces (B, T, N)."""
        k_net, k_head = (None, None) if key is None else jax.random.split(key)
        h = population_features(
            nnx.merge(self._token_graph, nnx.State(extra["tokenizer"])),
            nnx.merge(self._net_graph, nnx.State(self.transformer_state(params, extra))),
            batch["inputs"],
            batch["table_neuron"],
            batch["table_session"],
            batch["real"],
            every_frame=self._settings.every_frame,
            with_traces=self._settings.traces,
            key=k_net,
        )
        return decode_steps(self.head(params), h, batch["neuron"], batch["real"], k_head)


@functools.partial(jax.jit, static_argnames=("every_frame", "with_traces"))
def _read(model: CalM, *given: Array, every_frame: bool, with_traces: bool) -> Array:
    """`population_features` of a model, compiled once for all readers."""
    return population_features(
        model.tokenizer,
        model.transformer,
        *given,
        every_frame=every_frame,
        with_traces=with_traces,
    )


class FeatureReader:
    """Features of whole ranges, computed once and kept as float16.

    A range longer than a window is read in windows that overlap by half; every step but
    those of the first window has at least half a window of past.

    Args:
      model: tokenizer and transformer. prepared: the traces.
      table: as in `Populations`. window: frames, as the transformer was trained on.
      told: called with the number of frames read, piece by piece.
    """

    def __init__(
        self,
        model: CalM,
        prepared: object,
        table: tuple[tuple[np.ndarray, int], ...],
        settings: config.Decoding,
        window: int,
        told: Callable[[int], None] = lambda frames: None,
    ):
        self._told = told
        self._model, self._prepared, self._table = model, prepared, table
        self._settings = settings
        patch = model.tokenizer.config.patch
        self._hop = 1 if settings.every_frame else patch
        self._window = max(window // (2 * patch), 1) * 2 * patch
        self._kept: dict[tuple[int, int, int], np.ndarray] = {}
        most = max(rows.size for rows, _ in table)
        self._neurons = -(-most // 8) * 8
        # Window x neurons at a time: bounds the memory of the transformer.
        scale = patch if settings.every_frame else 1
        self._rows = max(1, (1 << 17) // (self._window * self._neurons * scale))
        self._run = functools.partial(
            _read, every_frame=settings.every_frame, with_traces=settings.traces
        )

    def __call__(self, i: int, start: int, stop: int) -> np.ndarray:
        """(steps, N, D) float16 of a range of session `i`; whole tokens only."""
        key = (i, start, stop)
        if key not in self._kept:
            self._kept[key] = self._features(*key)
        return self._kept[key]

    def _features(self, i: int, start: int, stop: int) -> np.ndarray:
        z, _ = self._prepared.range(i, start, stop)
        rows, session = self._table[i]
        w, n = self._window, self._neurons
        table = np.full(n, -1, np.int32)
        table[: rows.size] = rows
        real = np.arange(n) < rows.size
        begins = list(range(0, max(len(z) - w // 2, 1), w // 2))
        b = min(self._rows, 1 << (len(begins) - 1).bit_length())  # few shapes, little padding
        kept = []
        for at in range(0, len(begins), b):
            part = begins[at : at + b]
            x = np.zeros((b, w, n), np.float32)
            for row, a in enumerate(part):
                piece = z[a : a + w]
                x[row, : len(piece), : rows.size] = piece
            given = (np.tile(table, (b, 1)), np.full(b, session, np.int32), np.tile(real, (b, 1)))
            h = np.asarray(self._run(self._model, x, *given), np.float16)
            half = w // 2 // self._hop
            kept += [h[row, half if a else 0 :, : rows.size] for row, a in enumerate(part)]
            self._told(sum(min(a + w, len(z)) - (a + w // 2 if a else 0) for a in part))
        steps = len(z) // self._hop
        return np.concatenate(kept)[:steps]
