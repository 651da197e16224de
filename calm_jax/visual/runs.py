"""Reading back what a visual experiment left: a run of `pretrain`, or a line and seed of a table.

    RUN/results.json                     of `calm-jax pretrain EXP`; pretrainings in RUN/pretrained
    TABLE/<line>/seed<n>/results.json    of `calm-jax table EXP`; pretrainings in TABLE/pretrained
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jax

from calm_jax import config as configs
from calm_jax.errors import CalmError, RunError
from calm_jax.recordings import preprocess, splits
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.build import build
from calm_jax.recordings.store import open_store
from calm_jax.report import command
from calm_jax.runs import load_arrays
from calm_jax.visual import stages
from calm_jax.visual.cohorts import Cohorts
from calm_jax.visual.experiment import VisualExperiment

RESULTS = "results.json"
_SEED = re.compile(r"seed\d+")


@dataclasses.dataclass(frozen=True, eq=False)
class VisualRun:
    """A finished visual experiment.

    Attributes:
      folder: of this experiment and seed. shared: of pretrainings. results: of `stages.run`.
    """

    folder: Path
    shared: Path
    experiment: VisualExperiment
    results: dict[str, Any]

    @property
    def cohorts(self) -> Cohorts:
        """Who trained and who is scored."""
        made = {k: tuple(v) if isinstance(v, list) else v
                for k, v in self.results["cohorts"].items()}  # fmt: skip
        return Cohorts(**made)

    @property
    def label(self) -> str:
        """A short name: of the line of a table, with its seed, or of the run folder."""
        folder = self.folder.resolve()
        if _SEED.fullmatch(folder.name):
            seed = folder.name.removeprefix("seed")
            return folder.parent.name + ("" if seed == "0" else f" (seed {seed})")
        return folder.name

    @property
    def command(self) -> str:
        """That made it."""
        home = self.folder.resolve().parent.parent
        if self.shared.resolve().parent == self.folder.resolve():
            return command.pretrain(self.experiment, command.shown(self.folder))
        words = ["calm-jax", "table", _table_name(home), "--run", command.shown(home)]
        return shlex.join(words)

    @functools.cached_property
    def store(self) -> Any:
        """Its recordings."""
        return open_store(build(self.experiment.data))

    @functools.cached_property
    def blocks(self) -> Prepared:
        """All sessions in the blocks of `split`: lines are selected, and encoders pretrained, on
        the training part of these."""
        e = self.experiment
        made = splits.make_split(self.store, e.split)
        return Prepared(self.store, made, preprocess.fit(self.store, made, e.preprocess))

    @functools.cached_property
    def pretrained(self) -> tuple[dict | None, dict | None]:
        """(params, what is told) of its pretraining; (None, None) where there was none.

        Raises:
          RunError: when they are not there, or damaged.
        """
        return stages.pretrained_weights(self.experiment, self.store, self.cohorts, self.shared)

    def task(self, name: str, experiment: VisualExperiment | None = None) -> Any:
        """The fine-tuning "gratings" or "movie" as it was trained, or of a changed experiment.

        Raises:
          RunError: when the pretrained encoder is not there.
        """
        e = experiment or self.experiment
        return stages.task_of(
            name, e, self.store, self.cohorts, *self.pretrained, lambda _: None
        )[0]

    def fine_tuned(self, name: str, task: Any) -> dict:
        """The parameters that the fine-tuning `name` ended with.

        Raises:
          RunError: when they are not there, or of another model.
        """
        like = jax.eval_shape(lambda key: task.init(key)[0], jax.random.key(0))
        return load_arrays(self.folder / name / "model.npz", like)


def is_visual(folder: Path) -> bool:
    """Whether a folder is of a visual experiment, finished or not."""
    folder = Path(folder)
    return "cohorts" in _json(folder / RESULTS) or "diet" in _json(folder / "experiment.json")


def load(folder: Path) -> VisualRun:
    """The finished visual experiment in `folder`.

    Raises:
      RunError: when it is not finished, or cannot be read.
    """
    folder = Path(folder)
    path = folder / RESULTS
    if not path.is_file():
        raise RunError(
            "the run is not finished",
            where=folder,
            expected=RESULTS,
            remedy="Give the same `calm-jax pretrain` or `calm-jax table` command again: "
            "it goes on from its checkpoints.",
        )
    found = stages.read(path)
    try:
        experiment = configs.from_dict(VisualExperiment, found["experiment"])
        Cohorts(**found["cohorts"])
        found["rows"], found["said"], found["pretraining"]  # noqa: B018
    except (CalmError, KeyError, TypeError) as e:
        raise RunError(
            "its experiment cannot be read",
            where=path,
            found=str(e),
            remedy="Was it written by another version of calm_jax?",
        ) from e
    shared = folder / "pretrained"
    if _SEED.fullmatch(folder.resolve().name) and not (folder / "experiment.json").is_file():
        shared = folder.resolve().parent.parent / "pretrained"
    return VisualRun(folder, shared, experiment, found)


def _table_name(home: Path) -> str:
    """The name of the table in a folder; that of the folder where it was never summarised."""
    name = _json(home / "table.json").get("table")
    return name if isinstance(name, str) else home.name


def _json(path: Path) -> dict:
    """A JSON file; {} where there is none that can be read."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
