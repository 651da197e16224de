"""Typed flags for every field of an experiment."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import typing
from collections.abc import Sequence
from typing import Any

from calm_jax.commands.flags import nearest
from calm_jax.errors import ConfigError


def override(experiment: Any, arguments: Sequence[str]) -> Any:
    """The experiment with fields changed by flags such as `--transformer.layers 2`.

    Raises:
      ConfigError: for an unknown field (with the nearest) or a value of the wrong type.
    """
    if not arguments:
        return experiment
    flags = field_flags(type(experiment))
    for word in arguments:
        name = word.split("=")[0].replace("_", "-")
        if word.startswith("--") and word != "--help" and name not in flags:
            raise ConfigError(
                f"unknown field {word.split('=')[0]}",
                where="calm-jax pretrain",
                remedy=nearest(name, flags, "calm-jax pretrain EXP --help"),
            )
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                type(experiment),
                args=list(arguments),
                default=experiment,
                prog="calm-jax pretrain EXP",
                description="Runs an experiment from recordings to report; again, it continues. "
                "--run DIR names the run folder.",
                config=(tyro.conf.FlagConversionOff,),
            )
    except SystemExit as e:
        if not e.code:
            raise
        raise ConfigError(
            _first_part(said.getvalue()),
            where="calm-jax pretrain",
            remedy="See `calm-jax pretrain EXP --help`.",
        ) from None


def field_flags(cls: type, prefix: str = "--") -> list[str]:
    """All flags of a dataclass tree: `--seed`, `--data.name`, ..."""
    hints = typing.get_type_hints(cls)
    out = []
    for field in dataclasses.fields(cls):
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(hints[field.name]):
            out += field_flags(hints[field.name], name + ".")
        else:
            out.append(name)
    return out


def _first_part(text: str) -> str:
    """The message in the box that tyro draws, as one line."""
    lines = []
    for line in text.splitlines():
        inner = line.strip("│ ")
        if inner.startswith(("╭", "╰")):
            continue
        if inner.startswith("──"):
            break
        lines.append(inner)
    return " ".join(lines).rstrip(".") or "wrong arguments"
