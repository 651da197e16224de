"""The sections of `calm-jax analyze` in the report, drawn from what it saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from calm_jax.analyses.names import NAMES
from calm_jax.analyses.result import FOLDER, Result, load
from calm_jax.errors import RunError
from calm_jax.report import (
    sections_interpretability,
    sections_representation,
    sections_theory,
    sections_visual,
)
from calm_jax.report.contents import Contents
from calm_jax.report.sections import Section

# analysis -> title in the report, and (text, figures) of a result
_PARTS: dict[str, tuple[str, Callable[[Result], tuple[str, Section]]]] = {
    "tuning": ("Tuning", sections_representation.tuning),
    "embeddings": ("Embeddings", sections_representation.embeddings),
    "dynamics": ("Low-dimensional dynamics", sections_representation.dynamics),
    "coupling": ("Couplings between neurons", sections_interpretability.coupling),
    "timescales": ("Time constants", sections_interpretability.timescales),
    "codes": ("Meaning of the codes", sections_interpretability.codes),
    "information": ("Information of neurons", sections_theory.information),
    "landscape": ("Loss landscape", sections_theory.landscape),
    "curriculum": ("Curriculum", sections_theory.curriculum),
    "latents": ("Latent states", sections_theory.latents),
    "freezing": ("Encoder freezing", sections_theory.freezing),
}


# Of a visual run; what is not here is drawn as for any run.
_VISUAL: dict[str, tuple[str, Callable[[Result], tuple[str, Section]]]] = {
    "latents": ("Latent spaces", sections_visual.latents),
    "freezing": ("Encoder freezing", sections_visual.freezing),
    "information": ("Information of cell lines", sections_theory.information),
}
OTHER = "Not of this run"

Part = tuple[str, str, Section, list[str]]  # title, text, figures, commands


def parts(run: Contents, drawn: list[str]) -> list[Part]:
    """(title, text, figures, commands) of every analysis that the run folder holds.

    A file that cannot be read gives one line in place of its section.
    """
    return [part for _, part in _each(run.folder, drawn, _PARTS)]


def visual_parts(folder: Path, drawn: list[str]) -> list[Part]:
    """The same of a visual run. Analyses that have nothing but lines share a section."""
    order = ("latents", "freezing", "information", "landscape", "curriculum")
    nothing = lambda _: ("", Section([], []))
    table = {n: {**_PARTS, **_VISUAL}[n] for n in order}
    table |= {n: (title, nothing) for n, (title, _) in _PARTS.items() if n not in order}
    out, lines, made = [], [], drawn
    for name, (title, text, section, commands) in _each(folder, drawn, table):
        if name in order and (text or section.drawings or name == "latents"):
            out.append((title, text, section, commands))
        else:
            lines += section.missing
            made = commands
    return [*out, (OTHER, "", Section([], lines), made)] if lines else out


def _each(folder: Path, drawn: list[str], table: dict) -> Iterator[tuple[str, Part]]:
    for name in (n for n in table if n in NAMES):
        title, make = table[name]
        try:
            result = load(folder / FOLDER, name)
        except RunError as e:
            yield name, (title, "", Section([], [str(e).rstrip(".")]), drawn)
            continue
        if result is None:
            continue
        text, section = make(result)
        missing = [*section.missing, *(m.rstrip(".") for m in result.missing)]
        yield name, (title, text, Section(section.drawings, missing), [result.command, *drawn])
