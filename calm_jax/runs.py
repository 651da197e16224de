"""The run folder: what a run leaves, which of its stages are done, and reading it back."""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
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
from calm_jax.recordings import preprocess, splits
from calm_jax.recordings.formats.interchange import DAMAGE
from calm_jax.tailoring import tailored
from calm_jax.training.state import named

# What each stage leaves; one that misses a file is run again.
STAGES = {
    "prepare": ("split.json", "scalers.npz", "sessions.npz"),
    "tokenizer": ("tokenizer/model.npz",),
    "codes": ("codes.h5", "evaluation/tokenizer.json"),
    "transformer": ("transformer/model.npz",),
    "evaluation": ("evaluation/rows.json", "evaluation/examples.npz"),
    "weights": ("weights/model.json", "weights/weights.safetensors"),
    "report": ("report.html",),
}
AGAIN = (
    "Remove this file and give the same `calm-jax pretrain` command again: "
    "it makes only what is missing."
)


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
        path = self.path("stages.json")
        try:
            found = json.loads(path.read_text())
            if not isinstance(found, dict) or not all(isinstance(x, dict) for x in found.values()):
                raise ValueError("no table of stages")
            return found
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as e:
            raise RunError(
                "the file is damaged",
                where=path,
                found=str(e),
                remedy="Remove it and give the same `calm-jax pretrain` command again: "
                "training goes on from its checkpoints.",
            ) from e

    def tailored(self) -> configs.Experiment:
        """The experiment with the transformer that was chosen for its recordings."""
        chosen = self.stages().get("prepare", {}).get("choice", {})
        return tailored(self.experiment, chosen.get("variant", "main"))

    def done(self, stage: str) -> bool:
        """Whether a stage is complete: its end was noted and its files are there."""
        return stage in self.stages() and all(self.path(p).is_file() for p in STAGES[stage])

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
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {k: file[k] for k in file.files}
    except FileNotFoundError:
        raise RunError(
            "this part of the run is missing",
            where=path,
            remedy="Give the same `calm-jax pretrain` command again: it makes what is missing.",
        ) from None
    except DAMAGE as e:
        raise RunError("the file is damaged", where=path, found=_said(e), remedy=AGAIN) from e
    return tree_of(arrays, like, path, AGAIN)


def tree_of(arrays: dict[str, np.ndarray], like: Any, where: object, remedy: str) -> Any:
    """Arrays by path in the structure of `like`.

    Raises:
      RunError: when an array is missing or has another shape.
    """
    wanted = named(like)
    for name, leaf in wanted.items():
        if name not in arrays or arrays[name].shape != leaf.shape:
            raise RunError(
                "the file is of another model",
                where=where,
                found=f"{name}: {arrays[name].shape if name in arrays else 'missing'}",
                expected=f"{leaf.shape}",
                remedy=remedy,
            )
    leaves = [jnp.asarray(arrays[k], leaf.dtype) for k, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _said(e: Exception) -> str:
    """What numpy found; a file that is no archive at all it takes for a pickle."""
    return "no npz archive" if "pickle" in str(e) else str(e) or type(e).__name__


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
        # A store names sessions of one id in two animals `animal/session`.
        named = np.isin(self.session, [session, f"{animal}/{session}"])
        for i in np.flatnonzero(named & (self.animal == animal)):
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
    except DAMAGE as e:
        raise RunError("the file is damaged", where=path, found=_said(e), remedy=AGAIN) from e


def load_scalers(run: Run) -> preprocess.Scalers:
    """The scalers saved with a run."""
    path = run.path("scalers.npz")
    try:
        return preprocess.load(path)
    except CalmError as e:
        raise RunError("the file is damaged", where=path, found=e.found, remedy=AGAIN) from e


def load_split(run: Run, store: Any) -> splits.Splits:
    """The split saved with a run, checked against the recordings."""
    path = run.path("split.json")
    try:
        return splits.load(path, store)
    except CalmError as e:
        if str(e.where) == str(path):
            raise RunError("the file is damaged", where=path, found=e.found, remedy=AGAIN) from e
        raise RunError(
            f"the recordings are not those of the run: {e.what}",
            where=f"{path}, {e.where}",
            found=e.found,
            expected=e.expected,
            remedy="Give the recordings of this run, or start another one with --run.",
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

    def offsets(self) -> np.ndarray:
        """(S,) first row of each session's neurons, -1 for held-out sessions."""
        return np.where(self.held_out(), -1, self.table.offset[:-1])

    def held_out(self) -> np.ndarray:
        """(S,) bool, sessions that training never saw; their rows were never trained."""
        return np.isin(self.table.session, self.run.experiment.data.held_out)

    @property
    def for_strangers(self) -> str:
        """What a recording that training never saw is forecast with."""
        net = self.model.transformer
        if net.neuron is None and net.coupling is None and net.session is None:
            return "what its context tells: the model knows no neuron by name"
        return "the mean embeddings"


def load_tokenizer(run: Run) -> tokenizers.Tokenizer:
    """The trained tokenizer of a run, computing in float32."""
    graph, state = nnx.split(blank_tokenizer(run))
    arrays = load_arrays(run.path("tokenizer", "model.npz"), nnx.to_pure_dict(state))
    return nnx.merge(graph, nnx.State(arrays))


def load(folder: Path | str) -> Trained:
    """A trained run: `load("runs/calm_base").model` goes into `forecast`.

    Raises:
      RunError: when the folder is no run, or its training is not finished.
    """
    run = read_run(Path(folder))
    missing = [s for s in ("prepare", "tokenizer", "transformer") if not run.done(s)]
    if missing:
        raise RunError(
            "the training of this run is not finished",
            where=run.folder,
            found=f"no {missing[0]} yet",
            remedy="Give the same `calm-jax pretrain` command again: it goes on from there.",
        )
    table = load_table(run)
    tokenizer = load_tokenizer(run)
    graph, state = nnx.split(blank_transformer(run, table))
    arrays = load_arrays(run.path("transformer", "model.npz"), nnx.to_pure_dict(state))
    transformer = nnx.merge(graph, nnx.State(arrays))
    scalers = load_scalers(run)
    return Trained(run, CalM(tokenizer, transformer), scalers, table)


def blank_tokenizer(run: Run) -> tokenizers.Tokenizer:
    """The tokenizer of a run as shapes without numbers."""
    return jax.eval_shape(lambda: tokenizers.init(run.experiment.tokenizer, jax.random.key(0)))


def blank_transformer(run: Run, table: Table) -> DualAxisTransformer:
    """The transformer of a run, with rows for a table, as shapes without numbers."""
    return jax.eval_shape(
        lambda: DualAxisTransformer(
            run.tailored().transformer,
            codes=run.experiment.tokenizer.codes,
            patch=run.experiment.tokenizer.patch,
            neurons=int(table.offset[-1]),
            sessions=len(table.session),
            rngs=nnx.Rngs(0),
        )
    )
