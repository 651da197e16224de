"""Builder of `simulated_population`."""

from __future__ import annotations

from collections.abc import Iterator

from calm_jax.config import Simulation
from calm_jax.recordings.session import Session
from calm_jax.simulate.population import simulate, to_session
from data.session_builder import SessionBuilder


class SimulatedPopulation(SessionBuilder):
    """One session per random network; see README.md."""

    TITLE = "Simulated calcium traces of chaotic rate networks (CalM, eq. 17-18)."

    @property
    def _simulation(self) -> Simulation:
        return Simulation() if self.builder_config is None else self.builder_config.simulation

    def count(self) -> int:
        return self._simulation.sessions

    def sessions(self) -> Iterator[Session]:
        for i in range(self.count()):
            yield to_session(simulate(self._simulation, i))
