"""What the estimators share: training or taking the models, keeping them, saving and loading."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state

from calm_jax import config, model_files, runs, weights
from calm_jax.errors import CalmError, WeightsError
from calm_jax.estimators import inputs
from calm_jax.estimators.inputs import PATCH, InputError, Known
from calm_jax.estimators.sizes import experiment_of
from calm_jax.recordings import preprocess
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.session import Session
from calm_jax.recordings.splits import Splits
from calm_jax.runs import Trained
from calm_jax.tailoring import choose
from calm_jax.tasks.behavior_heads import FeatureReader

_LEAST = 2 * PATCH  # frames: two codes
_NOT_SAVED = ("run", "experiment", "folder", "verbose")  # of the machine, or in the file anyhow


class CalMEstimator(BaseEstimator):
    """The base of the estimators; its subclasses say what they take.

    Attributes after `fit`:
      trained_: the models, a `runs.Trained`, as `calm_jax.load` gives it.
      recordings_: the recordings it was fitted on. rows_: of each the row of its session in
        the embedding tables, -1 where the mean rows stand for it.
      scalers_: of these recordings, fitted on training frames. split_: those frames.
      n_features_in_: neurons, None where recordings differ in it.
    """

    # -- fitting -------------------------------------------------------------------

    def _fit_models(self, X: Any) -> list[Session]:
        """Reads X and trains the models on it, or takes those of `run`."""
        if self.run is not None and self.experiment is not None:
            raise InputError(
                "a model is trained (experiment) or taken (run)",
                where="run, experiment",
                found="both",
                expected="one of them, or none",
            )
        trained = self._given_run()
        patch = PATCH if trained is None else trained.run.experiment.tokenizer.patch
        sessions = inputs.read(self, X, reset=True, least=max(_LEAST, 2 * patch))
        names = {(s.animal, s.session) for s in sessions}
        if len(names) < len(sessions):
            raise InputError(
                "two recordings of one animal have the same session id",
                where="X",
                remedy="Give each its own `session`.",
            )
        self.seed_ = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.split_ = inputs.split(sessions, self.validation, self.seed_)
        self.recordings_ = tuple(inputs.known(s) for s in sessions)
        if trained is None:
            self._train(sessions)
        else:
            self.trained_ = trained
            settings = trained.run.experiment.preprocess
            self.scalers_ = preprocess.fit(MemoryStore(sessions), self.split_, settings)
            _check_varying(sessions, self.scalers_)
            found = [trained.table.find(k.session, k.animal, np.array(k.neurons))
                     for k in self.recordings_]  # fmt: skip
            held = trained.held_out()
            self.rows_ = tuple(-1 if i is None or held[i] else i for i in found)
        return sessions

    def _given_run(self) -> Trained | None:
        if self.run is None or isinstance(self.run, Trained):
            return self.run
        return weights.load(self.run)

    def _train(self, sessions: Sequence[Session]) -> None:
        from calm_jax import pipeline

        e = experiment_of(self, sessions, self.split_, self.seed_)
        pipeline.check(e)
        store = MemoryStore(sessions)
        scalers = preprocess.fit(store, self.split_, e.preprocess)
        _check_varying(sessions, scalers)
        prepared = Prepared(store, self.split_, scalers)
        console = Console(stderr=True, highlight=False, quiet=not self.verbose)
        with self._folder("run") as folder:
            run = runs.open_run(folder, e)
            if not run.done("prepare"):
                with run.stage("prepare") as facts:
                    facts["choice"] = dataclasses.asdict(choose(e, prepared))
                    self.split_.save(run.path("split.json"))
                    scalers.save(run.path("scalers.npz"))
                    runs.table_of(store).save(run.path("sessions.npz"))
            pipeline.train_models(run, prepared, console)
            trained = runs.load(folder)
            choice = run.stages()["prepare"]["choice"]
        # The folder may be gone from here on: what is needed is in memory.
        kept = weights.Exported(Path(folder), e, choice)
        self.trained_ = dataclasses.replace(trained, run=kept)
        self.scalers_, self.rows_ = scalers, tuple(range(len(sessions)))

    @contextlib.contextmanager
    def _folder(self, name: str) -> Iterator[Path]:
        """A folder below `folder`, or a temporary one that is removed."""
        if self.folder is not None:
            yield Path(self.folder) / name
            return
        place = Path(tempfile.mkdtemp(prefix="calm_jax-"))
        try:
            yield place / name
        finally:
            shutil.rmtree(place, ignore_errors=True)

    # -- using ---------------------------------------------------------------------

    def _given(self, X: Any) -> tuple[list[Session], list[int]]:
        """The recordings in X, and which of the fitted ones they are."""
        sessions = inputs.read(self, X, reset=False)
        return sessions, inputs.places(self.recordings_, sessions, X)

    def _scaled(self, session: Session, i: int, start: int, stop: int) -> np.ndarray:
        """(stop - start, N) float32, scaled as recording `i`."""
        mask = session.mask[start:stop]
        return self.scalers_.apply(i, session.traces[start:stop], mask)

    def _table(self, i: int) -> tuple[np.ndarray, int]:
        """Rows (N,) of the neurons and the session's row in the embedding tables, -1 = mean."""
        n, row = len(self.recordings_[i].neurons), self.rows_[i]
        if row < 0:
            return np.full(n, -1, np.int32), -1
        return (self.trained_.table.offset[row] + np.arange(n)).astype(np.int32), row

    def _reader(self, sessions: Sequence[Session], places: Sequence[int], settings: Any) -> Any:
        """(j, start, stop) -> (steps, N, D) features of the frames of `sessions[j]`."""
        patch = self.trained_.run.experiment.tokenizer.patch
        window = max(self._window(), 2 * patch)
        given = _Ranges(lambda j, a, b: self._scaled(sessions[j], places[j], a, b))
        table = tuple(self._table(i) for i in places)
        return FeatureReader(self.trained_.model, given, table, settings, window)

    def _window(self) -> int:
        """Frames of the windows that the transformer was trained on."""
        e = self.trained_.run.tailored()
        return e.transformer_training.window or e.forecasting.context

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    # -- files ---------------------------------------------------------------------

    def save(self, path: Path | str) -> str:
        """Writes the fitted estimator into a folder: JSON and safetensors, nothing executable.

        The models in it can be had with `calm_jax.load` too. `run`, `experiment`, `folder` and
        `verbose` are not kept.

        Returns:
          the sha256 of its model.json.

        Raises:
          NotFittedError: before `fit`. RunError: when the folder cannot be written.
        """
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self)
        content, arrays = weights.pack(self.trained_)
        params = {k: v for k, v in self.get_params(deep=False).items() if k not in _NOT_SAVED}
        if not isinstance(params["random_state"], (int, type(None))):
            params["random_state"] = None  # a generator: its state is not kept
        extra, own = self._state()
        content["estimator"] = {
            "class": type(self).__name__,
            "params": json.loads(json.dumps(params, default=_plain)),
            "recordings": [dataclasses.asdict(k) for k in self.recordings_],
            "rows": list(self.rows_),
            "seed": self.seed_,
            "n_features_in": self.n_features_in_,
            "preprocess": config.to_dict(self.scalers_.config),
            **extra,
        }
        for name in ("mean", "sd", "constant"):
            arrays[f"estimator/scalers/{name}"] = np.concatenate(getattr(self.scalers_, name))
        arrays |= {f"estimator/{k}": np.asarray(v) for k, v in own.items()}
        split = {"hash": self.split_.hash, **self.split_.to_dict()}
        return model_files.write(
            Path(path), content, arrays, {"split.json": (json.dumps(split) + "\n").encode()}
        )

    @classmethod
    def load(cls, path: Path | str, sha256: str | None = None) -> CalMEstimator:
        """The fitted estimator that `save` wrote.

        Raises:
          WeightsError: for a folder that holds none, one of another class or version, or a
            damaged file.
        """
        keys = (*weights.KEYS, "estimator")
        content, arrays = model_files.read(path, keys, sha256)
        about, where = content["estimator"], Path(path) / model_files.ABOUT
        found = about.get("class") if isinstance(about, dict) else None
        if found != cls.__name__:
            raise WeightsError(
                "an estimator of another class",
                where=where,
                found=repr(found),
                expected=cls.__name__,
            )
        trained = weights.unpack(Path(path), content, arrays)
        try:
            made = cls(**about["params"])
            made.trained_ = trained
            made.recordings_ = tuple(
                Known(k["session"], k["animal"], tuple(k["neurons"]), float(k["rate"]))
                for k in about["recordings"]
            )
            made.rows_ = tuple(int(i) for i in about["rows"])
            made.seed_, made.n_features_in_ = int(about["seed"]), about["n_features_in"]
            cuts = np.cumsum([len(k.neurons) for k in made.recordings_])[:-1]
            made.scalers_ = preprocess.Scalers(
                config.from_dict(config.Preprocess, about["preprocess"], "preprocess"),
                *(
                    tuple(np.split(arrays[f"estimator/scalers/{k}"], cuts))
                    for k in ("mean", "sd", "constant")
                ),
            )
            made.split_ = _split_of(json.loads((Path(path) / "split.json").read_text()))
            own = {
                k.removeprefix("estimator/"): v
                for k, v in arrays.items()
                if k.startswith("estimator/")
            }
            made._restore(about, own)
        except (CalmError, KeyError, ValueError, TypeError, IndexError) as e:
            raise WeightsError(
                "the description does not fit the estimator",
                where=where,
                found=f"{type(e).__name__}: {e}",
                remedy="Save it again; was it written by another calm_jax?",
            ) from e
        return made

    def _state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What a subclass keeps beside the models: JSON values, and arrays by name."""
        return {}, {}

    def _restore(self, about: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Puts back what `_state` gave."""


class _Ranges:
    """Scaled frames as `FeatureReader` asks for them."""

    def __init__(self, read: Any) -> None:
        self._read = read

    def range(self, i: int, start: int, stop: int) -> tuple[np.ndarray, None]:
        """(stop - start, N), and no mask."""
        return self._read(i, start, stop), None


def _check_varying(sessions: Sequence[Session], scalers: preprocess.Scalers) -> None:
    for s, constant in zip(sessions, scalers.constant, strict=True):
        if constant.all():
            raise InputError(
                "every trace is constant or missing where the scaling is fitted",
                where=f"session {s.session}",
                found=f"{constant.size} constant traces",
                remedy="Leave the recording out.",
            )


def _split_of(d: dict[str, Any]) -> Splits:
    parts = tuple(
        {p: np.array(r, np.int64).reshape(-1, 2) for p, r in s["parts"].items()}
        for s in d["sessions"]
    )
    return Splits(
        tuple(s["session"] for s in d["sessions"]),
        tuple(s["n_frames"] for s in d["sessions"]),
        parts,
        tuple(d["training"]),
        tuple(d["held_out"]),
        d["gap"],
    )


def _plain(value: Any) -> Any:
    """NumPy numbers as JSON has them."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be saved")
