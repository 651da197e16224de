"""Names -> methods: baselines, files of the user's own, CalM, finished runs."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from calm_jax import baselines
from calm_jax.benchmark import names
from calm_jax.errors import CalmError, ConfigError

_WHERE = "calm-jax benchmark --methods"


@dataclasses.dataclass(frozen=True)
class Method:
    """One method of a benchmark.

    Attributes:
      name: in every table. kind: baseline, file, calm or run.
      path: of the file or the run folder.
      trained: takes a budget and a seed; the others run once.
    """

    name: str
    kind: str
    path: str | None = None
    trained: bool = False


def chosen(
    text: str, runs: Sequence[Path] = (), note: Callable[[str], None] = lambda text: None
) -> list[Method]:
    """The methods of `all`, or of a list such as `copy_last,tsmixer,mine.py`, and runs.

    A method of a set whose extra is not installed is left out, which is told to `note`.

    Raises:
      ConfigError: for an unknown name (with the nearest), a file without `fit`, two
        methods of one name, or a named method whose extra is not installed.
    """
    found: list[Method] = []
    for word in (w.strip() for w in text.split(",")):
        if word in names.SETS:
            for name in names.SETS[word]:
                lacking = _lacking(name)
                if lacking is None:
                    found.append(_known(name))
                else:
                    note(f"{name} is left out: {lacking}")
        elif word.endswith(".py"):
            found.append(_file(Path(word)))
        elif word:
            found.append(_known(word))
    for run in runs:
        stem = Path(run).resolve().name
        name = stem if stem.startswith("calm") else f"calm_{stem}"
        found.append(Method(name, "run", str(Path(run).resolve())))
    found = list(dict.fromkeys(found))
    seen = [m.name for m in found]
    twice = next((n for n in seen if seen.count(n) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"two methods are called {twice!r}",
            where=_WHERE,
            remedy="Rename one of the files or run folders.",
        )
    if not found:
        raise ConfigError("no methods", where=_WHERE, expected=_expected())
    return found


def _known(name: str) -> Method:
    if name == names.CALM:
        return Method(name, "calm", trained=True)
    if name in baselines.METHODS:
        return Method(name, "baseline", trained=_trained(baselines.METHODS[name]))
    if name in baselines.EXTRAS:
        lacking = _lacking(name)
        if lacking is not None:
            raise ConfigError(f"{name} needs an extra", where=_WHERE, found=lacking)
        return Method(name, "baseline", trained=_trained(baselines.EXTRAS[name]))
    options = [*names.SETS, names.CALM, *baselines.METHODS, *baselines.EXTRAS]
    near = difflib.get_close_matches(name, options, 1)
    raise ConfigError(
        f"unknown method {name!r}",
        where=_WHERE,
        expected=_expected(),
        remedy=f"Did you mean {near[0]!r}?" if near else None,
    )


def _lacking(name: str) -> str | None:
    """What is not installed that a method needs, in one line."""
    return baselines.EXTRAS[name].missing() if name in baselines.EXTRAS else None


def _expected() -> str:
    known = [*names.SETS, names.CALM, *baselines.METHODS, *baselines.EXTRAS]
    return f"{', '.join(known)}, or a .py file with `fit`"


def _file(path: Path) -> Method:
    return Method(path.stem, "file", str(path.resolve()), _trained(load_file(path)))


def _trained(module: Any) -> bool:
    return bool(getattr(module, "TRAINED", False))


def load_file(path: Path) -> Any:
    """The module of a method in a file.

    Raises:
      ConfigError: no such file, one that cannot be imported, or one without `fit`.
    """
    if not path.is_file():
        raise ConfigError("no such file", where=path, expected="a file with `fit`")
    spec = importlib.util.spec_from_file_location(f"calm_method_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except CalmError:
        raise
    except Exception as e:
        raise ConfigError(
            "the file cannot be imported", where=path, found=f"{type(e).__name__}: {e}"
        ) from e
    if not callable(getattr(module, "fit", None)):
        raise ConfigError(
            "the file holds no method",
            where=path,
            expected="a function `fit(prepared, splits, context, horizon)` (docs/benchmark.md)",
        )
    return module


def module_of(method: Method) -> Any:
    """The module whose `fit` a baseline or a file has."""
    if method.kind == "file":
        return load_file(Path(method.path))
    return (baselines.METHODS | baselines.EXTRAS)[method.name]
