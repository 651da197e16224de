"""Builder of `simulated_population`."""

from __future__ import annotations

from calm_jax.recordings.session import Session
from calm_jax.simulate.population import simulate, to_session
from data.session_builder import SessionBuilder, SessionsConfig


class SimulatedPopulation(SessionBuilder):
    """One session per random network; see README.md."""

    TITLE = "Simulated calcium traces of chaotic rate networks (CalM, eq. 17-18)."

    @classmethod
    def sources(cls, config: SessionsConfig) -> list[int]:
        return list(range(config.simulation.sessions))

    @classmethod
    def session(cls, source: int, config: SessionsConfig) -> Session:
        return to_session(simulate(config.simulation, source))
