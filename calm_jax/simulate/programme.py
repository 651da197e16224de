"""What a simulated visual session shows, and the cell lines that see it."""

from __future__ import annotations

import dataclasses

import numpy as np

from calm_jax.errors import ConfigError
from calm_jax.recordings.session import Intervals
from calm_jax.visual_config import VisualSimulation

MOVIE = "natural_movie_one"
GRATINGS = "drifting_gratings"


@dataclasses.dataclass(frozen=True)
class Line:
    """A cell line: medians of Table S3 (Pearson's kurtosis), and how its cells respond."""

    skewness: float
    kurtosis: float
    sharpness: float  # of the tuning to direction (von Mises kappa)
    baseline: float  # Hz without stimulus
    peak: float  # Hz above it at the best stimulus
    burst: float  # shape of the gamma-distributed event sizes; large = all alike


TABLE_S3 = {
    "EXM1": (5.637, 88.966), "SLC17A7": (5.132, 63.847), "CUX2": (5.504, 79.245),
    "RORB": (6.283, 88.748), "SCNN1A": (7.240, 103.458), "NR5A1": (6.159, 69.922),
    "RBP4": (7.395, 94.758), "FEZF2": (5.108, 55.862), "TLX3": (6.133, 76.118),
    "NTSR1": (2.453, 22.616), "VIP": (3.507, 19.145), "SST": (2.075, 12.932),
    "PVALB": (1.991, 8.258),
}  # fmt: skip
# Inhibitory-like lines, and the shape of their event sizes that their statistics ask for.
INHIBITORY = {"VIP": 50.0, "SST": 1.5, "PVALB": 10.0}


def line_of(name: str) -> Line:
    """The line of a name of Table S3.

    Raises:
      ConfigError: for a name that is not there.
    """
    if name not in TABLE_S3:
        raise ConfigError(
            f"no cell line {name!r}", where="visual.lines", expected=", ".join(TABLE_S3)
        )
    if name in INHIBITORY:
        return Line(*TABLE_S3[name], sharpness=0.7, baseline=0.8, peak=4.0,
                    burst=INHIBITORY[name])  # fmt: skip
    if name == "NTSR1":  # excitatory, yet regular
        return Line(*TABLE_S3[name], sharpness=2.0, baseline=0.4, peak=3.0, burst=1.5)
    return Line(*TABLE_S3[name], sharpness=4.0, baseline=0.05, peak=2.5, burst=1.0)


def programme(
    config: VisualSimulation, rng: np.random.Generator
) -> tuple[dict[str, Intervals], int]:
    """The stimulus tables (s), and the steps of the clock in all."""
    clock = config.movie_rate
    combos = [(f, d * 360.0 / config.directions)
              for f in config.temporal_frequencies for d in range(config.directions)]  # fmt: skip
    trials = np.array(combos * config.grating_repeats + [(np.nan, np.nan)] * config.grating_blanks)
    trials = trials[rng.permutation(len(trials))]
    each = config.grating_on + config.grating_off
    half = len(trials) // 2
    t = config.spontaneous
    rest = [(0.0, t)]
    start = [t + each * np.arange(half)]
    t += each * half
    rest.append((t, t + config.spontaneous))
    t += config.spontaneous
    shown = config.movie_frames * config.movie_repeats
    movie_start = t + np.arange(shown) / clock
    t += shown / clock
    rest.append((t, t + config.spontaneous))
    t += config.spontaneous
    start.append(t + each * np.arange(len(trials) - half))
    t += each * (len(trials) - half)
    starts = np.concatenate(start)
    rest = np.array([r for r in rest if r[1] > r[0]]).reshape(-1, 2)
    frame = np.tile(np.arange(config.movie_frames), config.movie_repeats)
    tables = {
        GRATINGS: Intervals(
            starts,
            starts + config.grating_on,
            {
                "temporal_frequency": trials[:, 0],
                "orientation": trials[:, 1],
                "blank_sweep": np.isnan(trials[:, 1]).astype(np.float64),
            },
        ),
        MOVIE: Intervals(
            movie_start,
            movie_start + 1 / clock,
            {"frame": frame, "repeat": np.repeat(np.arange(config.movie_repeats),
                                                 config.movie_frames)},
        ),
    }  # fmt: skip
    if len(rest):
        tables["spontaneous"] = Intervals(rest[:, 0], rest[:, 1])
    return tables, round((t + 1.0) * clock)


def check(config: VisualSimulation) -> None:
    """Raises ConfigError for values that simulate nothing."""
    bad: list[tuple[str, str]] = []
    for name in ("containers", "cells", "grating_repeats", "movie_frames", "movie_repeats"):
        bad += [(name, "at least 1")] if getattr(config, name) < 1 else []
    if not 1 <= config.sessions <= 10:
        bad.append(("sessions", "1 to 10"))
    for name in ("movie_height", "movie_width"):
        bad += [(name, "at least 32 pixels")] if getattr(config, name) < 32 else []
    for name in ("rate", "movie_rate", "grating_on", "tau_rise", "tau_decay"):
        bad += [] if 0 < getattr(config, name) < np.inf else [(name, "a positive number")]
    for name in ("grating_off", "spontaneous", "grating_blanks", "delay", "running", "spread",
                 "seed"):  # fmt: skip
        bad += [] if getattr(config, name) >= 0 else [(name, "0 or more")]
    if config.directions < 2:
        bad.append(("directions", "at least 2"))
    if not config.temporal_frequencies or min(config.temporal_frequencies) <= 0:
        bad.append(("temporal_frequencies", "positive frequencies"))
    if not 0 < config.recurring <= 1:
        bad.append(("recurring", "a share above 0, up to 1"))
    if not config.lines or len(set(config.lines)) < len(config.lines):
        bad.append(("lines", "different names"))
    if not bad:
        ratio = config.movie_rate / config.rate
        if abs(ratio - round(ratio)) > 1e-9:
            bad.append(("rate", f"a divisor of movie_rate = {config.movie_rate:g} Hz"))
        if config.tau_rise >= config.tau_decay:
            bad.append(("tau_rise", f"less than tau_decay = {config.tau_decay} s"))
    if bad:
        name, expected = bad[0]
        raise ConfigError(
            "this simulates nothing",
            where=f"visual.{name}",
            found=getattr(config, name),
            expected=expected,
        )
    for name in config.lines:
        line_of(name)
