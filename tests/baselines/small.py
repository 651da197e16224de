"""Two small coupled populations of different sizes, one in trials and one in blocks."""

from __future__ import annotations

import numpy as np

from calm_jax import config
from calm_jax.recordings import preprocess
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.session import Session, Trials
from calm_jax.recordings.splits import make_split


def sessions(seed=0, frames=360):
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(frames, 5))
    x = np.zeros((frames, 5))
    for t in range(1, frames):  # each neuron follows the next one
        x[t] = 0.9 * np.roll(x[t - 1], 1) + 0.3 * noise[t]
    start = np.arange(0, frames, 30)
    trials = Trials(start, start + 30)
    return [
        Session(x, rate=10, session="one"),
        Session(np.cumsum(noise[:, :3], 0), rate=10, session="two", trials=trials),
    ]


def prepared(change=None, seed=0, frames=360):
    """`change` = parts whose frames are replaced by 50 before anything is fitted."""
    made = sessions(seed, frames)
    split = make_split(MemoryStore(made), config.Split())
    for i, s in enumerate(made):
        x = s.traces.copy()
        for part in change or ():
            for a, b in split.parts[i][part]:
                x[a:b] = 50
        made[i] = s.replace(traces=x)
    store = MemoryStore(made)
    return Prepared(store, split, preprocess.fit(store, split, config.Preprocess()))


def context(p, i, b=3, frames=8):
    x = np.random.default_rng(1).normal(size=(b, frames, p.scalers.mean[i].size))
    return x.astype(np.float32), np.ones(x.shape, bool)
