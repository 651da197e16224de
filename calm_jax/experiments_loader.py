"""Finds an experiment by its name: `experiments/<name>.py` holds `experiment()`."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from calm_jax.config import Experiment
from calm_jax.errors import ConfigError

FOLDER = Path(__file__).resolve().parent.parent / "experiments"


def names(folder: Path = FOLDER) -> list[str]:
    """The experiments of `folder`, sorted."""
    return sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))


def load_experiment(name: str, folder: Path = FOLDER) -> Experiment:
    """The experiment called `name`, or in the Python file at the path `name`.

    Raises:
      ConfigError: when there is none (with the nearest name), or the file holds none.
    """
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise ConfigError("no such file", where=name, expected="a file with `experiment()`")
        module = _from_file(path)
    else:
        known = names(folder)
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise ConfigError(
                f"unknown experiment {name!r}",
                remedy=f"{hint}There are: {', '.join(known) or 'none'}; "
                "a path to a .py file works too.",
            )
        module = _from_folder(name, folder)
    make = getattr(module, "experiment", None)
    result = make() if callable(make) else None
    if not isinstance(result, Experiment):
        raise ConfigError(
            "the file holds no experiment",
            where=module.__file__,
            expected="a function `experiment()` that returns a calm_jax.config.Experiment",
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
