"""Finds an experiment by its name: `experiments/<name>.py` holds `experiment()` or `table()`."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from calm_jax.config import Experiment
from calm_jax.errors import ConfigError

if TYPE_CHECKING:
    from calm_jax.visual.experiment import Table, VisualExperiment

FOLDER = Path(__file__).resolve().parent.parent / "experiments"


def names(folder: Path = FOLDER, kind: str = "experiment") -> list[str]:
    """The experiments (or the tables, kind "table") of `folder`, sorted."""
    found = (p for p in folder.glob("*.py") if not p.stem.startswith("_"))
    return sorted(p.stem for p in found if f"\ndef {kind}(" in p.read_text(encoding="utf-8"))


def load_experiment(name: str, folder: Path = FOLDER) -> Experiment | VisualExperiment:
    """The experiment called `name`, or in the Python file at the path `name`.

    Raises:
      ConfigError: when there is none (with the nearest name), or the file holds none.
    """
    from calm_jax.visual.experiment import VisualExperiment

    return _load(name, folder, "experiment", (Experiment, VisualExperiment))


def load_table(name: str, folder: Path = FOLDER) -> Table:
    """The table of experiments called `name`, or in the Python file at the path `name`.

    Raises:
      ConfigError: when there is none (with the nearest name), or the file holds none.
    """
    from calm_jax.visual.experiment import Table

    return _load(name, folder, "table", (Table,))


def _load(name: str, folder: Path, kind: str, classes: tuple[type, ...]) -> Any:
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise ConfigError("no such file", where=name, expected=f"a file with `{kind}()`")
        module = _from_file(path)
    else:
        known = names(folder, kind)
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise ConfigError(
                f"unknown {kind} {name!r}",
                remedy=f"{hint}There are: {', '.join(known) or 'none'}; "
                "a path to a .py file works too.",
            )
        module = _from_folder(name, folder)
    made = getattr(module, kind, None)
    result = made() if callable(made) else None
    if not isinstance(result, classes):
        raise ConfigError(
            f"the file holds no {kind}",
            where=module.__file__,
            expected=f"a function `{kind}()` that returns "
            + " or ".join(f"a {c.__module__}.{c.__name__}" for c in classes),
        )
    return result


def _from_folder(name: str, folder: Path) -> ModuleType:
    """Imported as `experiments.<name>`, so that experiments can derive from each other."""
    parent = str(folder.parent)
    if parent not in sys.path:
        sys.path.append(parent)
    module = importlib.import_module(f"{folder.name}.{name}")
    found = Path(module.__file__ or "").resolve()
    return module if found == (folder / f"{name}.py").resolve() else _from_file(folder / found.name)


def _from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"calm_experiment_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
