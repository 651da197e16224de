"""The sections of `calm-jax analyze` in the report, drawn from what it saved."""

from __future__ import annotations

from collections.abc import Callable

from calm_jax.analyses.names import NAMES
from calm_jax.analyses.result import FOLDER, Result, load
from calm_jax.errors import RunError
from calm_jax.report import (
    sections_interpretability,
    sections_representation,
    sections_theory,
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


def parts(run: Contents, drawn: list[str]) -> list[tuple[str, str, Section, list[str]]]:
    """(title, text, figures, commands) of every analysis that the run folder holds.

    A file that cannot be read gives one line in place of its section.
    """
    out = []
    for name in (n for n in _PARTS if n in NAMES):
        title, make = _PARTS[name]
        try:
            result = load(run.folder / FOLDER, name)
        except RunError as e:
            out.append((title, "", Section([], [str(e).rstrip(".")]), drawn))
            continue
        if result is None:
            continue
        text, section = make(result)
        missing = [*section.missing, *(m.rstrip(".") for m in result.missing)]
        out.append((title, text, Section(section.drawings, missing), [result.command, *drawn]))
    return out
