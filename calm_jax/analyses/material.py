"""What the analyses of a run share: its recordings, its model as a function, test windows."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax.baselines import windows as W
from calm_jax.decoding_data import Recordings
from calm_jax.errors import AnalysisError
from calm_jax.models.forecaster import Context, forecast
from calm_jax.recordings.batches import bucket
from calm_jax.runs import Trained

_WINDOWS = 8  # forecast at a time


@dataclasses.dataclass(frozen=True)
class Settings:
    """Options of `calm-jax analyze`.

    Attributes:
      seed: of everything random.
      labels: names of at most two labels, such as cue and choice.
      poco_seconds: the budget POCO is trained within; 0 leaves it out.
    """

    seed: int = 0
    labels: tuple[str, ...] = ()
    poco_seconds: float = 30.0


@dataclasses.dataclass(frozen=True, eq=False)
class Material:
    """A trained run and the recordings it is analysed on.

    Attributes:
      trained: the run. given: its recordings, split and scaled. settings: of the command.
      folder: where results are kept. own: False for recordings named by --data.
      say: prints a line.
    """

    trained: Trained
    given: Recordings
    settings: Settings
    folder: Path
    own: bool = True
    say: Callable[[str], None] = print

    @property
    def sessions(self) -> Sequence:
        """The `Session`s, with behaviour on the imaging frames."""
        return self.given.sessions

    @property
    def experiment(self):
        """Of the run."""
        return self.trained.run.experiment

    @property
    def prepared(self):
        """Their scaled traces."""
        return self.given.prepared

    @property
    def rate(self) -> float:
        """Hz, the median over sessions."""
        return float(np.median([s.rate for s in self.sessions]))

    @property
    def patch(self) -> int:
        """Frames per code."""
        return self.experiment.tokenizer.patch

    def names(self) -> list[str]:
        """Session ids, unique."""
        return list(self.prepared.splits.sessions)

    def animals(self) -> list[str]:
        """The animal of each session."""
        return [s.animal for s in self.sessions]

    def alive(self, i: int) -> np.ndarray:
        """(N,) bool, neurons of session `i` that vary in the training part."""
        return ~self.prepared.scalers.constant[i]

    def frames(self, i: int, part: str) -> np.ndarray:
        """(R, 2) ranges of a part of session `i`."""
        return self.prepared.splits.parts[i][part]

    def scaled(self, i: int, part: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Scaled traces (T, N) and mask (T, N) of each range of a part."""
        for a, b in self.frames(i, part):
            yield self.prepared.range(i, int(a), int(b))

    @functools.cached_property
    def padded(self) -> int:
        """Neurons of every batch: sessions share compilations."""
        return bucket(max(s.n_neurons for s in self.sessions), 8)

    def windows(
        self, i: int, part: str, context: int, horizon: int, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """At most `count` windows: contexts (W, context, N) and what came (W, horizon, N).

        Evenly strided, then drawn with the seed.
        """
        x, y = W.stacked(self.prepared, i, part, context, horizon, 8 * count)
        if len(x) > count:
            rng = np.random.default_rng([self.settings.seed, i])
            keep = np.sort(rng.choice(len(x), count, replace=False))
            x, y = x[keep], y[keep]
        return np.array(x), np.array(y)

    def context(self, i: int, x: np.ndarray) -> Context:
        """Windows (B, C, N) of session `i` as the model takes them, neurons padded."""
        b, c, n = x.shape
        rows, row = self.given.table[i]
        wide = np.zeros((b, c, self.padded), np.float32)
        wide[:, :, :n] = x
        neuron = np.full((b, self.padded), -1, np.int32)
        neuron[:, :n] = rows
        real = np.broadcast_to(np.arange(self.padded) < n, (b, self.padded))
        return Context(jnp.asarray(wide), jnp.asarray(neuron),
                       jnp.full((b,), row, jnp.int32), jnp.asarray(real))  # fmt: skip

    def forecast(self, i: int, x: np.ndarray, horizon: int) -> np.ndarray:
        """The model's forecast of windows (B, C, N) of session `i`: (B, horizon, N)."""
        settings, out = self.experiment.forecasting, []
        key = jax.random.key(self.settings.seed)
        for first in range(0, len(x), _WINDOWS):
            part = x[first : first + _WINDOWS]
            full = np.zeros((_WINDOWS, *x.shape[1:]), np.float32)
            full[: len(part)] = part
            made = forecast(
                self.trained.model,
                self.context(i, full),
                horizon,
                key=jax.random.fold_in(key, first),
                mode=settings.mode,
                samples=settings.samples if settings.mode == "sample" else 0,
                temperature=settings.temperature,
            )
            out.append(np.asarray(made.mean)[: len(part), :, : x.shape[2]])
        return np.concatenate(out)

    def known(self) -> list[int]:
        """Sessions whose neurons have trained rows in the tables of the model."""
        return [i for i, (_, row) in enumerate(self.given.table) if row >= 0]

    def table(self, which: str) -> tuple[np.ndarray, np.ndarray]:
        """Trained rows of an embedding table and the session (n,) of each.

        Args:
          which: "neuron", "coupling" (the mixing's own) or "session".

        Raises:
          AnalysisError: when the model has no such table, or knows none of the sessions.
        """
        module = getattr(self.trained.model.transformer, which)
        name = {"neuron": "neuron", "coupling": "mixing", "session": "session"}[which]
        if module is None:
            raise AnalysisError(f"the transformer of this run has no {name} embeddings")
        known = self.known()
        if not known:
            raise AnalysisError("none of the recordings trained this run: no embeddings of theirs")
        values = np.asarray(module.embedding[...], np.float32)
        if which == "session":
            return values[[self.given.table[i][1] for i in known]], np.array(known)
        rows = [self.given.table[i][0] for i in known]
        return values[np.concatenate(rows)], np.repeat(known, [len(r) for r in rows])

    def column(self, names: Sequence[str]) -> tuple[str, list[np.ndarray]] | None:
        """The first of these columns of the neuron table that all sessions have, as text."""
        for name in names:
            if all(name in s.neurons.columns for s in self.sessions):
                return name, [s.neurons.columns[name].astype(str) for s in self.sessions]
        return None


def each_session(material: Material, missing: list[str], what: str) -> Iterator[int]:
    """Sessions with at least two neurons that vary; the others get a line each."""
    for i, name in enumerate(material.names()):
        alive = int(material.alive(i).sum())
        if alive < 2:
            missing.append(f"{what} of session {name}: {alive} neuron that varies")
            continue
        yield i
