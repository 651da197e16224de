"""Sessions in memory behind the interface of a store on disk."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calm_jax.errors import RecordingError
from calm_jax.recordings.session import Session


class MemoryStore:
    """Sessions held in memory, read as `Store` is read: files of a user, tests.

    Attributes:
      sessions: the sessions themselves; they have all that a `SessionInfo` has.
      n_neurons: neurons of all sessions together.

    Raises:
      RecordingError: when there is no session.
    """

    def __init__(self, sessions: Sequence[Session]) -> None:
        self.sessions = tuple(sessions)
        if not self.sessions:
            raise RecordingError("no recordings", expected="at least one session")
        counts = [s.n_neurons for s in self.sessions]
        self._offsets = np.concatenate([[0], np.cumsum(counts)])

    @property
    def n_neurons(self) -> int:
        return int(self._offsets[-1])

    def neuron_offset(self, i: int) -> int:
        """The first row of session `i` in a table of the neurons of all sessions."""
        return int(self._offsets[range(len(self.sessions))[i]])

    def neuron_ids(self, i: int) -> np.ndarray:
        """(N,) text, the ids of the neurons of session `i`."""
        return self.sessions[i].neurons.id

    def read(self, i: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames [start, stop) of session `i`: traces (T, N) float32, mask (T, N) bool.

        Raises:
          RecordingError: when the range is empty or leaves the recording.
        """
        session = self.sessions[i]
        if not 0 <= start < stop <= session.n_frames:
            raise RecordingError(
                "no such range of frames",
                where=f"session {session.session}",
                found=f"[{start}, {stop})",
                expected=f"a range within [0, {session.n_frames})",
            )
        return session.traces[start:stop], session.mask[start:stop]

    def session(self, i: int) -> Session:
        """The whole session `i`."""
        return self.sessions[i]
