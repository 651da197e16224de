"""The rows of a decoding, gathered session by session."""

from __future__ import annotations

import numpy as np

from calm_jax import decoding_scores as scores
from calm_jax.decoding_scores import DecodingRow
from calm_jax.recordings.session import Session
from calm_jax.recordings.targets import Target


class Rows:
    """Gathers the rows of all sessions; shuffles of one session become one set of rows."""

    def __init__(self) -> None:
        self.rows: list[DecodingRow] = []
        self._shuffled: dict[tuple, list[dict[str, float]]] = {}
        self._of: dict[tuple, tuple[Target, Session]] = {}

    def put(
        self, method: str, target: Target, session: Session, seed: int | None, **values: float
    ) -> None:
        """One row per metric."""
        for metric, value in values.items():
            self.rows.append(
                DecodingRow(
                    method=method,
                    target=target.name,
                    session=session.session,
                    animal=session.animal,
                    seed=seed,
                    metric=metric,
                    value=float(value),
                )
            )

    def score(
        self,
        method: str,
        target: Target,
        session: Session,
        seed: int | None,
        outputs: np.ndarray,
        truth: np.ndarray,
    ) -> None:
        """The scores of outputs (T, O)."""
        found = scores.score(outputs, truth, target, null=method != "shuffled")
        if method != "shuffled":
            self.put(method, target, session, seed, **found)
            return
        known = [*scores.CONTINUOUS, *scores.CLASSES]
        kept = {k: v for k, v in found.items() if k in known}
        self._shuffled.setdefault((target.name, id(session)), []).append(kept)
        self._of[target.name, id(session)] = (target, session)

    def finish(self) -> list[DecodingRow]:
        """All rows with their means; decoders of shifted labels as mean and 95 % interval."""
        for key, found in self._shuffled.items():
            target, session = self._of[key]
            main = "r" if target.classes is None else "balanced_accuracy"
            values = {m: np.array([f[m] for f in found]) for m in found[0]}
            low, high = np.quantile(values[main], (0.025, 0.975))
            self.put("shuffled", target, session, None, **{m: v.mean() for m, v in values.items()})
            interval = {f"{main}_null_low": low, f"{main}_null_high": high}
            self.put("shuffled", target, session, None, **interval, n_null=len(found))
        self._shuffled = {}
        return scores.averaged(self.rows)
