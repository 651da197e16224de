"""CalMForecaster: the next frames of a population."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from calm_jax.estimators import inputs
from calm_jax.estimators.base import CalMEstimator
from calm_jax.estimators.inputs import InputError
from calm_jax.forecasting import CalmForecaster as Windows
from calm_jax.recordings.session import Session

_AT_ONCE = 16  # windows of a score


class CalMForecaster(CalMEstimator):
    """Forecasts the frames after a recording, from its last frames alone.

    Parameters:
      run: a finished run, an exported model, its name, or what `calm_jax.load` gives: it
        forecasts, and `fit` fits the scaling only. None: `fit` trains.
      experiment: a shipped experiment's name or an `Experiment`, whose sizes and steps count
        in place of those below.
      rate: frames per second of arrays.
      width, layers, codes: of the models. tokenizer_steps, steps: of their training.
      context, horizon: frames that a forecast sees and that are forecast at once.
      validation: share of the frames, the last ones, or of the trials, kept for validation.
      folder: where training leaves its run; None = a temporary folder.
      random_state: of initial values and batches.
      verbose: tell of the training on standard error.

    X is an array (T, N), frames by neurons, a `Session`, or a list of either. NaN is missing.
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
        self.validation = validation
        self.folder = folder
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> CalMForecaster:
        """Trains on X, or fits the scaling where `run` is given; y is not looked at."""
        self._fit_models(X)
        return self

    def predict(self, X: Any, horizon: int | None = None) -> Any:
        """The frames after the end of X, in its unit.

        Only the last `context` frames of X count (and of its last trial). Frames of X may be
        other ones than those of `fit`, of the same neurons.

        Args:
          X: (T, N), or a list. horizon: frames; None = the parameter.

        Returns:
          (horizon, N) float64, or a list of them.

        Raises:
          NotFittedError, ValueError: for what is not fitted or does not fit.
        """
        check_is_fitted(self)
        horizon = self._horizon(horizon)
        sessions, places = self._given(X)
        out = []
        for s, i in zip(sessions, places):
            start = inputs.pieces(s)[-1][0]
            z = self._scaled(s, i, start, s.n_frames)
            z = z[-self._frames(len(z)) :]
            back = self._forecast(z[None], i, horizon)[0]
            out.append(self.scalers_.invert(i, back.astype(np.float64)))
        return out if inputs.several(X) else out[0]

    def score(self, X: Any, y: Any = None) -> float:
        """R2 of forecasts from origins inside X, one every `horizon` frames.

        1 - sum (x - forecast)^2 / sum (x - mean)^2 per neuron, with the mean of the training
        frames, averaged over neurons that vary. Give frames that `fit` did not see: those of
        `fit` flatter. A missing frame does not count.

        Raises:
          ValueError: when no range of X holds a frame and a horizon after it.
        """
        check_is_fitted(self)
        sessions, places = self._given(X)
        found = [self._score(s, i) for s, i in zip(sessions, places)]
        values = np.concatenate(found)
        if not values.size:
            raise InputError(
                "no range is long enough to be scored",
                where="X",
                expected=f"more than the horizon, {self._horizon(None)} frames, in which a neuron "
                "varies",
            )
        return float(values.mean())

    # -- parts -----------------------------------------------------------------------

    def _score(self, s: Session, i: int) -> np.ndarray:
        """R2 of the neurons of a recording that can be scored."""
        horizon = self._horizon(None)
        error, total = np.zeros((2, s.n_neurons))
        for a, b in inputs.pieces(s):
            context = self._frames(b - a - horizon)
            if context < 1:
                continue
            z, mask = self._scaled(s, i, a, b), s.mask[a:b]
            origins = np.arange(context, b - a - horizon + 1, horizon)
            x = np.stack([z[o - context : o] for o in origins])
            y = np.stack([z[o : o + horizon] for o in origins])
            there = np.stack([mask[o : o + horizon] for o in origins])
            guess = self._forecast(x, i, horizon)
            error += (np.square(y - guess) * there).sum((0, 1))
            total += (np.square(y) * there).sum((0, 1))  # scaled: the training mean is 0
        varies = ~self.scalers_.constant[i] & (total > 0)
        return 1 - error[varies] / total[varies]

    def _horizon(self, horizon: int | None) -> int:
        horizon = self.horizon if horizon is None else horizon
        if not isinstance(horizon, (int, np.integer)) or isinstance(horizon, bool) or horizon < 1:
            raise InputError(
                "the horizon must be a whole number of frames",
                where="horizon",
                found=repr(horizon),
                expected="1 or more",
            )
        return int(horizon)

    def _frames(self, there: int) -> int:
        """Frames of the context where so many are there: whole codes, or all of fewer."""
        e = self.trained_.run.experiment
        patch = e.tokenizer.patch
        return min(e.forecasting.context, there // patch * patch) or max(there, 0)

    def _forecast(self, x: np.ndarray, i: int, horizon: int) -> np.ndarray:
        """(B, horizon, N) from scaled contexts (B, C, N) of recording `i`."""
        e, row = self.trained_.run.experiment, self.rows_[i]
        patch = e.tokenizer.patch
        if x.shape[1] < patch:  # before the first frame a trace counts as constant
            x = np.concatenate([np.repeat(x[:, :1], patch - x.shape[1], 1), x], 1)
        windows = Windows(
            self.trained_.model,
            None if row < 0 else self.trained_.table.offset[:-1],
            x.shape[2],
            mode=e.forecasting.mode,
            batch=1 if len(x) == 1 else _AT_ONCE,
            samples=e.forecasting.samples if e.forecasting.mode == "sample" else 0,
            seed=self.seed_,
        )
        return windows(x, max(row, 0), np.ones(x.shape, bool), horizon)
