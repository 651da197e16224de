"""CalMEmbedding: features of a population at every frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from calm_jax import config
from calm_jax.estimators import inputs
from calm_jax.estimators.base import CalMEstimator
from calm_jax.estimators.inputs import InputError
from calm_jax.recordings.session import Session

_FEATURES = config.Decoding(every_frame=True, traces=False)


class CalMEmbedding(ClassNamePrefixFeaturesOutMixin, TransformerMixin, CalMEstimator):
    """Causal features of a population: those of frame t read nothing after frame t.

    Parameters:
      run, experiment, rate, width, layers, codes, tokenizer_steps, steps, context, horizon,
        validation, folder, random_state, verbose: as of `CalMForecaster`.
      components: None takes the mean over the neurons of the transformer's features, (T, width),
        the same space for every recording. A number takes so many principal components of
        the features of all neurons together, fitted on the training frames of each recording.

    Attributes after `fit`, beside those of the others:
      neuron_embeddings_: (N, width) rows of the neurons in the transformer's table, a list of
        them for a list of recordings; the mean row where `run` never saw the neuron, zeros
        where its transformer has no such table.
    """

    def __init__(
        self,
        *,
        run: Any = None,
        experiment: Any = None,
        rate: float = 10.0,
        width: int = 64,
        layers: int = 2,
        codes: int = 64,
        tokenizer_steps: int = 300,
        steps: int = 200,
        context: int = 48,
        horizon: int = 16,
        components: int | None = None,
        validation: float = 0.15,
        folder: Path | str | None = None,
        random_state: Any = None,
        verbose: bool = False,
    ):
        self.run = run
        self.experiment = experiment
        self.rate = rate
        self.width = width
        self.layers = layers
        self.codes = codes
        self.tokenizer_steps = tokenizer_steps
        self.steps = steps
        self.context = context
        self.horizon = horizon
        self.components = components
        self.validation = validation
        self.folder = folder
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> CalMEmbedding:
        """Trains on X, or fits the scaling where `run` is given; y is not looked at."""
        sessions = self._fit_models(X)
        self.axes_: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
        if self.components is not None:
            self.axes_ = self._axes(sessions)
        rows = [self._embeddings(i) for i in range(len(sessions))]
        self.neuron_embeddings_ = rows if inputs.several(X) else rows[0]
        return self

    def transform(self, X: Any) -> Any:
        """(T, D) float32 features of every frame of X, a list of them for a list.

        A feature of frame t is of the frames up to t: features of the first frames of a longer
        recording are the same.

        Raises:
          NotFittedError, ValueError: for what is not fitted or does not fit.
        """
        check_is_fitted(self)
        sessions, places = self._given(X)
        reader = self._reader(sessions, places, _FEATURES)
        out = []
        for j, (s, i) in enumerate(zip(sessions, places)):
            parts = [self._pooled(reader(j, a, b), i) for a, b in inputs.pieces(s)]
            out.append(np.concatenate(parts))
        return out if inputs.several(X) else out[0]

    @property
    def _n_features_out(self) -> int:
        if self.components is not None:
            return int(self.components)
        return self.trained_.run.tailored().transformer.width

    def _pooled(self, h: np.ndarray, i: int) -> np.ndarray:
        """(T, D) from the features (T, N, D) of recording `i`."""
        h = h.astype(np.float32)
        if not self.axes_:
            return h.mean(1)
        mean, axes = self.axes_[i]
        return (h.reshape(len(h), -1) - mean) @ axes.T

    def _axes(self, sessions: list[Session]) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """Mean (N D,) and axes (components, N D) of the training frames of each recording."""
        reader = self._reader(sessions, range(len(sessions)), _FEATURES)
        out = []
        for j in range(len(sessions)):
            ranges = self.split_.parts[j]["train"].tolist()
            h = np.concatenate([reader(j, a, b) for a, b in ranges]).astype(np.float32)
            h = h.reshape(len(h), -1)
            count, most = self.components, min(h.shape)
            whole = isinstance(count, (int, np.integer)) and not isinstance(count, bool)
            if not whole or not 1 <= count <= most:
                raise InputError(
                    "no such number of components",
                    where="components",
                    found=repr(count),
                    expected=f"None, or 1 to {most}",
                )
            mean = h.mean(0)
            _, _, v = np.linalg.svd(h - mean, full_matrices=False)
            v = v[:count]
            # The sign of an axis is free: its largest entry is positive.
            v = v * np.sign(v[np.arange(count), np.abs(v).argmax(1)])[:, None]
            out.append((mean, v))
        return tuple(out)

    def _embeddings(self, i: int) -> np.ndarray:
        """(N, width) rows of the neurons of recording `i`."""
        net = self.trained_.model.transformer
        rows, _ = self._table(i)
        if net.neuron is None:
            return np.zeros((rows.size, net.config.width), np.float32)
        table = np.asarray(net.neuron.embedding[...])
        return np.where((rows < 0)[:, None], table.mean(0), table[np.maximum(rows, 0)])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def _state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        arrays = {}
        for i, (mean, axes) in enumerate(self.axes_):
            arrays |= {f"axes/{i}/mean": mean, f"axes/{i}/axes": axes}
        return {"list": isinstance(self.neuron_embeddings_, list)}, arrays

    def _restore(self, about: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        n = len(self.recordings_)
        self.axes_ = ()
        if self.components is not None:
            self.axes_ = tuple(
                (arrays[f"axes/{i}/mean"], arrays[f"axes/{i}/axes"]) for i in range(n)
            )
        rows = [self._embeddings(i) for i in range(n)]
        self.neuron_embeddings_ = rows if about["list"] else rows[0]
