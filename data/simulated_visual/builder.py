"""Builder of `simulated_visual`."""

from __future__ import annotations

from calm_jax.recordings.session import Session
from calm_jax.simulate import visual
from data.session_builder import SessionBuilder, SessionsConfig


class SimulatedVisual(SessionBuilder):
    """Sessions of all cell lines; see README.md."""

    TITLE = "Simulated calcium traces of cell lines under gratings and a movie (Allen-like)."
    FIELD = "visual"

    @classmethod
    def sources(cls, config: SessionsConfig) -> list[int]:
        visual.check(config.visual)
        return list(range(visual.count(config.visual)))

    @classmethod
    def session(cls, source: int, config: SessionsConfig) -> Session:
        return visual.to_session(visual.simulate(config.visual, source))
