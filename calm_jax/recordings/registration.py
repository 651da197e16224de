"""Days of one animal as one recording, in which a registered cell is one neuron.

With a table that names the same cell on several days (a column of the neuron tables), days are
laid end to end and every named cell gets one column. A model of the joined recording then has
one embedding per cell, and a decoder one row, for all days: identity across days is a matter of
the data, not of the model. Where a cell was not found its samples are missing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calm_jax.errors import RecordingError
from calm_jax.recordings.parts import Channel, NeuronTable, Trials
from calm_jax.recordings.session import Session

COLUMN = "registered"


def join(
    sessions: Sequence[Session], column: str = COLUMN, *, least: int = 1, name: str | None = None
) -> Session:
    """The sessions of one animal as one, with a neuron for every cell that `column` names.

    Days are trials: those that a session has, with `day` (its place in the list) beside their
    columns, or the whole session where it has none. So nothing crosses from one day to the next,
    and a split by trial can be one by day. Behaviour that all sessions have is kept.

    Args:
      sessions: in order. column: of the neuron tables; "" = not registered, left out.
      least: days that a cell must have been found on.
      name: session id of the result; default the ids joined by "+".

    Returns:
      a `Session`; its neuron ids are those of `column`, and the neuron column `days` counts the
      days each was found on.

    Raises:
      RecordingError: when animals, rates or units differ, the column is missing, or no cell is
        found on `least` days.
    """
    if not sessions:
        raise RecordingError("no sessions to join")
    _check(sessions, column)
    names = [s.neurons.columns[column].astype(str) for s in sessions]
    found: dict[str, int] = {}
    for own in names:
        for cell in own[own != ""].tolist():
            found[cell] = found.get(cell, 0) + 1
    cells = [c for c, days in found.items() if days >= least]
    if not cells:
        raise RecordingError(
            f"no cell is registered on {least} of {len(sessions)} days",
            where=f"neuron/{column}",
            found=f"at most {max(found.values(), default=0)} days",
        )
    place = {c: k for k, c in enumerate(cells)}
    frames = [s.n_frames for s in sessions]
    start = np.concatenate([[0], np.cumsum(frames)])
    traces = np.zeros((int(start[-1]), len(cells)), np.float32)
    valid = np.zeros(traces.shape, bool)
    for a, s, own in zip(start, sessions, names):
        here = np.array([i for i, c in enumerate(own.tolist()) if c in place], np.int64)
        to = np.array([place[own[i]] for i in here], np.int64)
        traces[a : a + s.n_frames, to] = s.traces[:, here]
        valid[a : a + s.n_frames, to] = s.mask[:, here]
    first = sessions[0]
    return Session(
        traces=traces,
        rate=first.rate,
        valid=valid,
        trials=_trials(sessions, start),
        behavior=_behavior(sessions),
        neurons=NeuronTable(np.array(cells), {"days": np.array([found[c] for c in cells])}),
        unit=first.unit,
        animal=first.animal,
        session=name or "+".join(s.session for s in sessions),
        notes=(
            f"{len(sessions)} days joined by {column}: {len(cells)} cells found on {least} or "
            f"more of them; {1 - valid.mean():.0%} of the samples are missing",
        ),
    )


def _check(sessions: Sequence[Session], column: str) -> None:
    first = sessions[0]
    for s in sessions:
        where = f"session {s.session}"
        if column not in s.neurons.columns:
            raise RecordingError(
                f"the neuron table has no column {column!r}",
                where=where,
                found=", ".join(s.neurons.columns) or "none",
                remedy="Cells of this recording are not registered across days.",
            )
        own = s.neurons.columns[column].astype(str)
        own = own[own != ""]
        if np.unique(own).size != own.size:
            raise RecordingError("one cell stands for two neurons", where=f"{where}, {column}")
        for field in ("animal", "unit"):
            if getattr(s, field) != getattr(first, field):
                raise RecordingError(
                    f"another {field} than in the first session",
                    where=where,
                    found=repr(getattr(s, field)),
                    expected=repr(getattr(first, field)),
                )
        if not 0.99 < s.rate / first.rate < 1.01:
            raise RecordingError(
                "another frame rate than the first session",
                where=where,
                found=f"{s.rate:.4g} Hz",
                expected=f"{first.rate:.4g} Hz",
                remedy="Resample first.",
            )


def _trials(sessions: Sequence[Session], start: np.ndarray) -> Trials:
    """All trials with the day of each; columns that every session with trials has."""
    with_trials = [s for s in sessions if len(s.trials)]
    common = [
        k
        for k in (with_trials[0].trials.columns if len(with_trials) == len(sessions) else ())
        if k != "day" and all(k in s.trials.columns for s in sessions)
    ]
    begins, ends, days = [], [], []
    for day, (a, s) in enumerate(zip(start, sessions)):
        own = s.trials if len(s.trials) else Trials(np.array([0]), np.array([s.n_frames]))
        begins.append(own.start + a)
        ends.append(own.stop + a)
        days.append(np.full(len(own), day))
    columns = {k: np.concatenate([s.trials.columns[k] for s in sessions]) for k in common}
    return Trials(
        np.concatenate(begins), np.concatenate(ends), {**columns, "day": np.concatenate(days)}
    )


def _behavior(sessions: Sequence[Session]) -> dict[str, Channel]:
    """Channels on the imaging frames that every session has, with the same width."""
    out = {}
    for name, channel in sessions[0].behavior.items():
        every = [s.behavior.get(name) for s in sessions]
        if any(c is None or c.times is not None or c.kind != channel.kind for c in every):
            continue
        if len({c.values.shape[1:] for c in every}) == 1:
            out[name] = Channel(np.concatenate([c.values for c in every]), channel.kind)
    return out
