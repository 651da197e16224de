"""The run folder: what a run leaves, which of its stages are done, and reading it back."""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from calm_jax import config as configs
from calm_jax.errors import CalmError, RunError, writing
from calm_jax.files import replacing
from calm_jax.models import tokenizer as tokenizers
from calm_jax.models.dual_axis import DualAxisTransformer
from calm_jax.models.forecaster import CalM
from calm_jax.recordings import preprocess
from calm_jax.training.state import named

STAGES = ("prepare", "tokenizer", "codes", "transformer", "evaluation", "report")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder and the experiment it belongs to."""

    folder: Path
    experiment: configs.Experiment

    def path(self, *parts: str) -> Path:
        """A path below the run folder."""
        return self.folder.joinpath(*parts)

    def stages(self) -> dict[str, dict]:
        """What is known of the stages that are done."""
        try:
            return json.loads(self.path("stages.json").read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as e:
            raise RunError(
                "cannot be read",
                where=self.path("stages.json"),
                found=str(e),
                remedy="Remove the file: the run then looks at its stages again.",
            ) from e

    def done(self, stage: str) -> bool:
        """Whether a stage is complete."""
        return stage in self.stages()

    @contextmanager
    def stage(self, name: str, **facts: Any) -> Iterator[dict]:
        """Times a stage and marks it done when the block ends without an error.

        The block may add to the dictionary it is given; it is kept with the stage.
        """
        start = time.monotonic()
        yield facts
        if jax.process_index() == 0:
            facts["seconds"] = round(time.monotonic() - start, 1)
            facts["finished"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            with replacing(self.path("stages.json")) as part:
                part.write_text(json.dumps({**self.stages(), name: facts}, indent=1) + "\n")


def open_run(folder: Path, experiment: configs.Experiment) -> Run:
    """The run folder of `experiment`, made when it is not there.

    Raises:
      RunError: when the folder holds a run of another experiment, or cannot be made.
    """
    folder = Path(folder)
    config = folder / "experiment.json"
    if config.exists():
        found = read_run(folder).experiment
        changed = configs.differences(found, experiment)
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise RunError(
                "the folder holds a run of another experiment",
                where=folder,
                found="; ".join(changed[:3]) + more,
                remedy="Name another run folder with --run, or remove this one.",
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(
            "not a run folder",
            where=folder,
            found="other files" if folder.is_dir() else "a file",
            expected="an empty or new folder, or a run of this experiment",
            remedy="Name another run folder with --run.",
        )
    else:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with replacing(config) as part:
            part.write_text(configs.dumps(experiment))
    return Run(folder, experiment)


def read_run(folder: Path) -> Run:
    """The run in `folder`.

    Raises:
      RunError: when there is none, or its experiment cannot be read.
    """
    folder = Path(folder)
    config = folder / "experiment.json"
    if not config.is_file():
        raise RunError(
            "not a run folder",
            where=folder,
            expected="a folder with experiment.json, as `calm-jax pretrain` writes it",
        )
    try:
        return Run(folder, configs.loads(config.read_text()))
    except (CalmError, ValueError) as e:
        raise RunError(
            "its experiment cannot be read",
            where=config,
            found=str(e),
            remedy="Was it written by another version of calm_jax?",
        ) from e


def save_arrays(path: Path, tree: Any) -> None:
    """Writes the arrays of a pytree as npz, one entry per path."""
    arrays = {k: np.asarray(v) for k, v in named(tree).items()}
    with replacing(path) as part, open(part, "wb") as file:
        np.savez(file, **arrays)


def load_arrays(path: Path, like: Any) -> Any:
    """The pytree that `save_arrays` wrote, in the structure and shapes of `like`.

    Raises:
      RunError: when the file is missing, broken or of another model.
    """
    wanted = named(like)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {k: file[k] for k in file.files}
    except FileNotFoundError:
        raise RunError(
            "this part of the run is missing",
            where=path,
            remedy="Finish the run first: `calm-jax pretrain` with the same experiment.",
        ) from None
    except (OSError, ValueError, zipfile.BadZipFile) as e:
        raise RunError("cannot be read", where=path, found=str(e)) from e
    for name, leaf in wanted.items():
        if name not in arrays or arrays[name].shape != leaf.shape:
            raise RunError(
                "the file is of another model",
                where=path,
                found=f"{name}: {arrays[name].shape if name in arrays else 'missing'}",
                expected=f"{leaf.shape}",
            )
    leaves = [jnp.asarray(arrays[k], leaf.dtype) for k, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Which sessions and neurons have rows in the embedding tables.

    Attributes:
      session, animal: (S,) text. rate: (S,) Hz.
      offset: (S + 1,) first row of each session's neurons; the last is the total.
      neuron: (rows,) text, neuron ids.
    """

    session: np.ndarray
    animal: np.ndarray
    rate: np.ndarray
    offset: np.ndarray
    neuron: np.ndarray

    def find(self, session: str, animal: str, neurons: np.ndarray) -> int | None:
        """The index of a session whose ids and neuron ids are all the same, or None."""
        for i in np.flatnonzero((self.session == session) & (self.animal == animal)):
            own = self.neuron[self.offset[i] : self.offset[i + 1]]
            if own.shape == neurons.shape and (own == neurons).all():
                return int(i)
        return None

    def save(self, path: Path) -> None:
        """Writes npz without pickles."""
        with replacing(path) as part, open(part, "wb") as file:
            np.savez(file, **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)})


def table_of(store: Any) -> Table:
    """The table of all sessions of a store."""
    sessions = list(store.sessions)
    ids = [store.neuron_ids(i) for i in range(len(sessions))]
    return Table(
        np.array([s.session for s in sessions]),
        np.array([s.animal for s in sessions]),
        np.array([s.rate for s in sessions]),
        np.cumsum([0] + [len(x) for x in ids]),
        np.concatenate(ids),
    )


def load_table(run: Run) -> Table:
    """The table saved with a run."""
    path = run.path("sessions.npz")
    try:
        with np.load(path, allow_pickle=False) as file:
            return Table(**{f.name: file[f.name] for f in dataclasses.fields(Table)})
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as e:
        raise RunError(
            "this part of the run is missing or broken", where=path, found=str(e)
        ) from e


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A trained run, ready for use.

    Attributes:
      run: the folder and its experiment.
      model: tokenizer and transformer, one pytree.
      scalers: of the sessions in the table.
      table: sessions and neurons with rows of their own.
    """

    run: Run
    model: CalM
    scalers: preprocess.Scalers
    table: Table


def load_tokenizer(run: Run) -> tokenizers.Tokenizer:
    """The trained tokenizer of a run, computing in float32."""
    like = jax.eval_shape(lambda: tokenizers.init(run.experiment.tokenizer, jax.random.key(0)))
    graph, state = nnx.split(like)
    arrays = load_arrays(run.path("tokenizer", "model.npz"), nnx.to_pure_dict(state))
    return nnx.merge(graph, nnx.State(arrays))


def load(folder: Path | str) -> Trained:
    """A trained run: `load("runs/calm_base").model` goes into `forecast`.

    Raises:
      RunError: when the folder is no run, or its training is not finished.
    """
    run = read_run(Path(folder))
    table = load_table(run)
    tokenizer = load_tokenizer(run)
    like = jax.eval_shape(
        lambda: DualAxisTransformer(
            run.experiment.transformer,
            codes=run.experiment.tokenizer.codes,
            patch=run.experiment.tokenizer.patch,
            neurons=int(table.offset[-1]),
            sessions=len(table.session),
            rngs=nnx.Rngs(0),
        )
    )
    graph, state = nnx.split(like)
    arrays = load_arrays(run.path("transformer", "model.npz"), nnx.to_pure_dict(state))
    transformer = nnx.merge(graph, nnx.State(arrays))
    scalers = preprocess.load(run.path("scalers.npz"))
    return Trained(run, CalM(tokenizer, transformer), scalers, table)
