"""Trained models that are handed on: a run exported into a folder, and loaded by path or name.

An exported model is all that a finished run needs to forecast, decode and be adapted, without
its recordings: tokenizer, transformer, scalers, which session and neuron has which row, and the
split, so that frames that trained it can be told from others.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from calm_jax import config, model_card, model_files, runs
from calm_jax.errors import CalmError, RunError, WeightsError
from calm_jax.models.forecaster import CalM
from calm_jax.recordings import preprocess
from calm_jax.registry import MODELS
from calm_jax.runs import Run, Table, Trained
from calm_jax.training.state import named

FOLDER = "weights"  # below a run, and below the working folder for models by name
PLACES = "CALM_JAX_WEIGHTS"
KEYS = ("experiment", "choice", "table", "scalers")
CARD = "MODEL_CARD.md"
# Files of a run that go with it: the second holds the quantiles of its forecasts.
CARRIED = ("split.json", "evaluation/quantiles.npz")


@dataclasses.dataclass(frozen=True)
class Exported(Run):
    """An exported model in the place of a run folder; `choice` is which transformer it has."""

    choice: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def stages(self) -> dict[str, dict]:
        """Of the stages of a run only which transformer was chosen is known."""
        return {"prepare": {"choice": dict(self.choice)}}


def load(path_or_name: Path | str, sha256: str | None = None) -> Trained:
    """A trained model, ready for `forecast`, features, decoding and adaptation.

    Args:
      path_or_name: a finished run, an exported folder, or the name of a model: then the folder
        of that name in `$CALM_JAX_WEIGHTS` or in `weights/` of the working folder.
      sha256: of `model.json`, which holds those of all other files. A name whose sha256 the
        package knows is always checked.

    Raises:
      RunError, WeightsError: for what is no such model, or is damaged.
    """
    path = Path(path_or_name)
    if not path.exists() and path.name == str(path_or_name):
        path, known = _find(path.name)
        sha256 = sha256 or known
    if model_files.is_model(path):
        return unpack(path, *model_files.read(path, KEYS, sha256))
    if sha256 is not None:
        raise WeightsError(
            "only an exported model can be checked",
            where=path,
            remedy="Export the run with `calm-jax export RUN --out FOLDER`.",
        )
    return runs.load(path)


def check_recordings(run: Run) -> None:
    """Raises a `RunError` for an exported model, which comes without its recordings."""
    if isinstance(run, Exported):
        raise RunError(
            "an exported model comes without its recordings",
            where=run.folder,
            remedy="Name recordings with --data.",
        )


def export(run: Path | str, out: Path | str) -> str:
    """Exports a finished run with its model card; returns the sha256 of `model.json`.

    The same run gives the same bytes wherever it lies: the recordings' folder is left out.

    Raises:
      RunError: when the run is not finished, or the folder cannot be written or holds a run.
    """
    trained, out = runs.load(run), Path(out)
    if (out / "experiment.json").exists():
        raise RunError(
            "the folder holds a run",
            where=out,
            remedy="Name another folder with --out.",
        )
    content, arrays = pack(trained)
    others = {n: p.read_bytes() for n in CARRIED if (p := trained.run.path(n)).is_file()}
    made = model_files.write(out, content, arrays, others)
    model_card.write(trained, out / CARD, made)
    return made


def pack(trained: Trained) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `model_files.write` takes, from a trained model."""
    e, table, scalers = trained.run.experiment, trained.table, trained.scalers
    e = dataclasses.replace(e, data=dataclasses.replace(e.data, source=None, store="datasets"))
    content = {
        "experiment": config.to_dict(e),
        "choice": trained.run.stages().get("prepare", {}).get("choice", {}),
        "table": {f.name: getattr(table, f.name).tolist() for f in dataclasses.fields(Table)},
        "scalers": {
            "config": config.to_dict(scalers.config),
            "split_hash": scalers.split_hash,
            "sizes": [int(m.size) for m in scalers.mean],
        },
    }
    arrays = {f"scalers/{k}": np.concatenate(getattr(scalers, k)) for k in _SCALERS}
    for part in ("tokenizer", "transformer"):
        state = nnx.to_pure_dict(nnx.state(getattr(trained.model, part)))
        arrays |= {f"{part}/{k}": np.asarray(v) for k, v in named(state).items()}
    return content, arrays


_SCALERS = ("mean", "sd", "constant")


def unpack(folder: Path, content: dict[str, Any], arrays: dict[str, np.ndarray]) -> Trained:
    """The trained model that `pack` took apart.

    Raises:
      WeightsError: when a part is missing or does not fit.
    """
    where = Path(folder) / model_files.ABOUT
    try:
        experiment = config.from_dict(config.Experiment, content["experiment"], "experiment")
        run = Exported(Path(folder), experiment, content["choice"])
        t = content["table"]
        table = Table(
            np.array(t["session"], str),
            np.array(t["animal"], str),
            np.array(t["rate"], np.float64),
            np.array(t["offset"], np.int64),
            np.array(t["neuron"], str),
        )
        about = content["scalers"]
        cuts = np.cumsum(about["sizes"])[:-1]
        scalers = preprocess.Scalers(
            config.from_dict(config.Preprocess, about["config"], "scalers.config"),
            *(tuple(np.split(arrays[f"scalers/{k}"], cuts)) for k in _SCALERS),
            about["split_hash"],
        )
        model = CalM(
            *(
                _module(arrays, part, blank, Path(folder) / model_files.WEIGHTS)
                for part, blank in (
                    ("tokenizer", runs.blank_tokenizer(run)),
                    ("transformer", runs.blank_transformer(run, table)),
                )
            )
        )
    except WeightsError:
        raise
    except (CalmError, KeyError, ValueError, TypeError, IndexError, AttributeError) as e:
        raise WeightsError(
            "the description does not fit the model",
            where=where,
            found=f"{type(e).__name__}: {e}",
            remedy="Get or export the model again; was it written by another calm_jax?",
        ) from e
    return Trained(run, model, scalers, table)


def _module(arrays: dict[str, np.ndarray], part: str, blank: Any, where: Path) -> Any:
    graph, state = nnx.split(blank)
    own = {k.removeprefix(f"{part}/"): v for k, v in arrays.items() if k.startswith(f"{part}/")}
    try:
        leaves = runs.tree_of(own, nnx.to_pure_dict(state), where, "Export the model again.")
    except RunError as e:
        raise WeightsError(
            e.what, where=where, found=f"{part}/{e.found}", expected=e.expected
        ) from e
    return nnx.merge(graph, nnx.State(leaves))


def _find(name: str) -> tuple[Path, str | None]:
    """The folder of the model called `name`, and its sha256 where the package knows it."""
    places = [Path(p) for p in os.environ.get(PLACES, "").split(os.pathsep) if p]
    places.append(Path(FOLDER))
    for place in places:
        if model_files.is_model(place / name):
            return place / name, MODELS[name].sha256 if name in MODELS else None
    local = [p.parent.name for place in places for p in place.glob(f"*/{model_files.ABOUT}")]
    known = sorted({*local, *MODELS})
    near = difflib.get_close_matches(name, known, 1)
    hint = f"Did you mean {near[0]!r}? " if near and near[0] != name else ""
    model = MODELS.get(name)
    if model is not None and model.url:
        hint = f"Get it from {model.url} and put it there. "
    elif model is not None:
        hint = f"Train it with `calm-jax pretrain {name}`: it is then in runs/{name}/weights. "
    raise WeightsError(
        "no run, no exported model and no model of that name",
        where=name,
        expected="a folder, or a name below " + " or ".join(map(str, places)),
        remedy=f"{hint}{PLACES} names further folders of models.",
    )
