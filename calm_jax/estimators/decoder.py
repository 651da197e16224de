"""CalMDecoder: behaviour from a population, frame by frame."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from calm_jax import compilation, config
from calm_jax.errors import WeightsError
from calm_jax.estimators import inputs, labels, pooled
from calm_jax.estimators.base import CalMEstimator
from calm_jax.estimators.inputs import InputError
from calm_jax.models.decoder import Head, decode_frames, decode_steps
from calm_jax.recordings.batches import bucket
from calm_jax.tasks.behavior import Behavior, Populations, network_size
from calm_jax.tasks.behavior_heads import FrozenHead
from calm_jax.training.log import Log
from calm_jax.training.loop import train
from calm_jax.training.state import named, with_leaves

_CHUNK = 1024  # frames decoded at a time: bounds the memory


def _labels(estimator: Any) -> bool:
    """Whether it decodes labels, for what only labels have."""
    if hasattr(estimator, "classes_"):
        return True
    if estimator.classify is True:
        return True
    raise AttributeError("only a decoder of labels has it")


class CalMDecoder(CalMEstimator):
    """Decodes numbers or labels at every frame from the features of a population.

    Parameters:
      run, experiment, rate, width, layers, codes, tokenizer_steps, steps, context, horizon,
        validation, folder, random_state, verbose: as of `CalMForecaster`.
      classify: y holds labels (True) or numbers (False); None: numbers are floats, labels are
        integers, booleans and text.
      head: "pooled", ridge regressions with a prior shared by all neurons and recordings (docs/
        decoding.md), solved in closed form; "gated" or "linear", trained. rank: per output.
      look_ahead: frames after t that the decoder of frame t may read; 0 is causal.
      decoder_steps, learning_rate: of the training of a gated or linear head; it ends early
        when the validation frames stop improving. balanced: classes weigh the same.

    Attributes after `fit`, beside those of the others:
      classes_: the labels, sorted; a list of them where y has several columns. Absent for numbers.
      n_outputs_: columns of y.
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
        classify: bool | None = None,
        head: str = "pooled",
        rank: int = 16,
        look_ahead: int = 0,
        decoder_steps: int = 400,
        learning_rate: float = 3.6e-3,
        balanced: bool = True,
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
        self.classify = classify
        self.head = head
        self.rank = rank
        self.look_ahead = look_ahead
        self.decoder_steps = decoder_steps
        self.learning_rate = learning_rate
        self.balanced = balanced
        self.validation = validation
        self.folder = folder
        self.random_state = random_state
        self.verbose = verbose

    # -- scikit-learn ----------------------------------------------------------------

    def fit(self, X: Any, y: Any) -> CalMDecoder:
        """Trains the models on X unless `run` is given, and the head on y.

        y: (T,) or (T, K), a list of them for a list of recordings; NaN is a missing value.
        """
        self._settings()
        sessions = self._fit_models(X)
        values = labels.columns(X, y, sessions)
        self.n_outputs_ = values[0].shape[1]
        self._flat = np.asarray(y[0] if inputs.several(X) else y).ndim == 1
        if hasattr(self, "classes_"):
            del self.classes_
        if labels.are_labels(values, self.classify):
            targets, found = labels.classes(values, self.split_)
            self.classes_ = found[0] if self._flat else found
        else:
            targets = labels.continuous(values, self.split_)
        self.targets_ = tuple((t.outputs, t.mean, t.sd) for t in targets)
        self.head_ = self._trained_head(sessions, targets)
        return self

    def predict(self, X: Any) -> Any:
        """Numbers or labels of every frame, of the shape of y: (T,) or (T, K), or a list.

        Raises:
          NotFittedError, ValueError: for what is not fitted or does not fit.
        """
        check_is_fitted(self)
        outputs, places = self._outputs(X)
        made = []
        for out, i in zip(outputs, places):
            columns, first = [], 0
            for k, (size, mean, sd) in enumerate(self.targets_):
                o = out[:, first : first + size]
                first += size
                if hasattr(self, "classes_"):
                    columns.append(self._label_sets()[k][o.argmax(1)])
                else:
                    columns.append(o[:, 0].astype(np.float64) * sd[i] + mean[i])
            made.append(columns[0] if self._flat else np.stack(columns, 1))
        return made if inputs.several(X) else made[0]

    @available_if(_labels)
    def predict_proba(self, X: Any) -> Any:
        """(T, C) the share the head gives each class, a list of them for several columns.

        With `balanced` these are shares as if classes were equally frequent.
        """
        check_is_fitted(self)
        outputs, _ = self._outputs(X)
        made = []
        for out in outputs:
            shares, first = [], 0
            for size, _, _ in self.targets_:
                o = out[:, first : first + size].astype(np.float64)
                first += size
                e = np.exp(o - o.max(1, keepdims=True))
                shares.append(e / e.sum(1, keepdims=True))
            made.append(shares[0] if self._flat else shares)
        return made if inputs.several(X) else made[0]

    def score(self, X: Any, y: Any) -> float:
        """Mean accuracy of labels, or mean R2 of numbers over columns; missing values left out.

        Raises:
          ValueError: when y does not fit X.
        """
        check_is_fitted(self)
        sessions, _ = self._given(X)
        values = np.concatenate(labels.columns(X, y, sessions))
        guess = self.predict(X)
        guess = guess if inputs.several(X) else [guess]
        guess = np.concatenate([g.reshape(len(g), -1) for g in guess])
        if values.shape[1] != guess.shape[1]:
            raise InputError(
                "y of another width", where="y", found=values.shape[1], expected=guess.shape[1]
            )
        rate = accuracy_score if hasattr(self, "classes_") else r2_score
        found = []
        for v, g in zip(values.T, guess.T):
            there = labels.known(v)
            if there.any():
                found.append(rate(v[there], g[there]))
        if not found:
            raise InputError("every value of y is missing", where="y")
        return float(np.mean(found))

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, RegressorTags

        tags = super().__sklearn_tags__()
        tags.target_tags.required = tags.target_tags.multi_output = True
        if self.classify is True or hasattr(self, "classes_"):
            tags.estimator_type = "classifier"
            # Frames drawn at random, as the checks have them, are no recording.
            tags.classifier_tags = ClassifierTags(poor_score=True)
        elif self.classify is False or hasattr(self, "targets_"):
            tags.estimator_type = "regressor"
            tags.regressor_tags = RegressorTags(poor_score=True)
        return tags

    # -- the head --------------------------------------------------------------------

    def _settings(self) -> config.Decoding:
        """The settings of the head.

        Raises:
          InputError: for one out of its range.
        """
        if self.head not in ("pooled", "gated", "linear"):
            raise InputError(
                "no such head",
                where="head",
                found=repr(self.head),
                expected="pooled, gated, linear",
            )
        for name, low in (("rank", 1), ("look_ahead", 0), ("decoder_steps", 1)):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or value < low:
                raise InputError(
                    "out of range",
                    where=name,
                    found=repr(value),
                    expected=f"a whole number, at least {low}",
                )
        d = config.Decoding()
        training = dataclasses.replace(
            d.training,
            steps=int(self.decoder_steps),
            learning_rate=float(self.learning_rate),
            final_learning_rate=float(self.learning_rate) / 100,
        )
        return dataclasses.replace(
            d,
            head=self.head,
            rank=int(self.rank),
            look_ahead=int(self.look_ahead),
            every_frame=True,
            traces=self.head != "pooled",  # which reads them itself
            balanced=bool(self.balanced),
            training=training,
        )

    def _network(self) -> FrozenHead:
        neurons = sum(len(k.neurons) for k in self.recordings_)
        outputs = sum(size for size, _, _ in self.targets_)
        return FrozenHead(self.trained_.model, self._settings(), neurons, outputs)

    def _offset(self) -> np.ndarray:
        """(S + 1,) first row of each recording's neurons in the head."""
        return np.cumsum([0] + [len(k.neurons) for k in self.recordings_])

    def _trained_head(self, sessions: list, targets: list) -> dict[str, np.ndarray]:
        """The parameters of the head by path, solved or trained by the one loop."""
        s, everyone = self._settings(), range(len(sessions))
        self._check_labels(targets)
        if self.head == "pooled":
            with compilation.effort("quick"):
                return pooled.fit(self, sessions, targets, s, self._offset())
        data = Populations(
            self.split_,
            self._reader(sessions, everyone, s),
            self._offset(),
            tuple(self._table(i) for i in everyone),
        )
        assert network_size(targets) == sum(size for size, _, _ in self.targets_)
        with compilation.effort("quick"), self._folder("decoder") as folder:
            task = Behavior(self._network(), data, targets, s, seed=self.seed_)
            training = dataclasses.replace(s.training, batch=task.rows)
            log = Log(None, stage="decoder", shown=bool(self.verbose))
            found = train(task, training, folder, seed=self.seed_, steps=s.training.steps, log=log)
        return {k: np.asarray(v) for k, v in named(found.params).items()}

    def _check_labels(self, targets: list) -> None:
        """Every target needs labels to train on, and some target some to be validated on;
        the pooled head chooses for every target on its own."""
        for part in ("train", "valid"):
            there = [
                any(
                    t.known[i][a:b].any()
                    for i, p in enumerate(self.split_.parts)
                    for a, b in p[part]
                )
                for t in targets
            ]
            every = part == "train" or self.head == "pooled"
            if not (all(there) if every else any(there)):
                raise InputError(
                    f"no value in the {'training' if part == 'train' else 'validation'} frames",
                    where=f"y, column {there.index(False)}",
                    remedy="Leave the column out, or change `validation`.",
                )

    def _outputs(self, X: Any) -> tuple[list[np.ndarray], list[int]]:
        """(T, outputs) of every recording in X, and which fitted ones they are."""
        sessions, places = self._given(X)
        if self.head == "pooled":
            made = pooled.outputs(self, sessions, places, self._settings(), self._offset())
            return made, places
        network = self._network()
        blank, _ = jax.eval_shape(network.init, jax.random.key(0))
        head = network.head(with_leaves(blank, self.head_))
        reader = self._reader(sessions, places, self._settings())
        out = []
        for j, (s, i) in enumerate(zip(sessions, places)):
            rows = self._offset()[i] + np.arange(s.n_neurons)
            parts = []
            for a, b in inputs.pieces(s):
                parts.append(_decoded(head, reader(j, a, b), rows, network.delay))
            out.append(np.concatenate(parts))
        return out, places

    def _label_sets(self) -> list[np.ndarray]:
        return [self.classes_] if self._flat else self.classes_

    # -- files -----------------------------------------------------------------------

    def _state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        about: dict[str, Any] = {"targets": [list(t) for t in self.targets_], "flat": self._flat}
        arrays = {f"head/{k}": v for k, v in self.head_.items()}
        if hasattr(self, "classes_"):
            about["classes"] = [
                {"kind": c.dtype.str, "labels": c.tolist()} for c in self._label_sets()
            ]
        return about, arrays

    def _restore(self, about: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        self.targets_ = tuple((int(n), tuple(m), tuple(sd)) for n, m, sd in about["targets"])
        self._flat, self.n_outputs_ = bool(about["flat"]), len(self.targets_)
        if "classes" in about:
            sets = [np.array(c["labels"], np.dtype(c["kind"])) for c in about["classes"]]
            self.classes_ = sets[0] if self._flat else sets
        self.head_ = {k.removeprefix("head/"): v for k, v in arrays.items() if k[:5] == "head/"}
        if self.head == "pooled":
            sizes = [size for size, _, _ in self.targets_]
            width = self.trained_.model.transformer.config.width
            pooled.check(self.head_, sizes, self._offset(), width)
            return
        blank, _ = jax.eval_shape(self._network().init, jax.random.key(0))
        for name, shape in named(blank).items():
            found = self.head_.get(name)
            if found is None or found.shape != shape.shape:
                raise WeightsError(
                    "the head is of another model",
                    found=f"{name}: {'missing' if found is None else found.shape}",
                    expected=str(shape.shape),
                )


@jax.jit
def _steps(head: Head, h: Array, neuron: Array, real: Array) -> Array:
    return decode_steps(head, h, neuron, real)


@jax.jit
def _frames(head: Head, y: Array, length: Array, delay: Array) -> Array:
    return decode_frames(head, y, length, delay)


def _decoded(head: Head, h: np.ndarray, rows: np.ndarray, delay: int) -> np.ndarray:
    """(T, O) from features (T, N, D) of neurons with these rows; few shapes are compiled."""
    t, n = h.shape[:2]
    size = _CHUNK if t > _CHUNK else bucket(t, (64, 256, _CHUNK))
    neurons = bucket(n, 8)
    neuron, real = np.zeros((1, neurons), np.int32), np.zeros((1, neurons), bool)
    neuron[0, :n], real[0, :n] = rows, True
    y = []
    for a in range(0, t, size):
        x = np.zeros((1, size, neurons, h.shape[2]), np.float32)
        x[0, : len(h[a : a + size]), :n] = h[a : a + size]
        y.append(_steps(head, x, neuron, real))
    y = np.concatenate(y, 1)
    return np.asarray(_frames(head, y, np.array([t], np.int32), np.int32(delay)))[0, :t]
