"""A small session as the temporaldata package writes it, in both layouts."""

from __future__ import annotations

import h5py
import numpy as np


def typed(parent, name, kind, arrays=None, **attrs):
    """A group with its type, arrays (text as bytes, named in `_unicode_keys`) and attributes."""
    group = parent.create_group(name)
    group.attrs["object"] = kind
    text = []
    for key, value in (arrays or {}).items():
        value = np.asarray(value)
        if value.dtype.kind == "U":
            text.append(key)
            value = value.astype("S")
        group[key] = value
    group.attrs["_unicode_keys"] = np.array(text, dtype="S")
    for key, value in attrs.items():
        group.attrs[key] = value
    return group


def interval(parent, name, start, end, **columns):
    arrays = {"start": np.asarray(start, float), "end": np.asarray(end, float), **columns}
    return typed(parent, name, "Interval", arrays, timekeys=np.array([b"start", b"end"]))


def write_brainsets(path, *, table="units", regular=True, frames=300, neurons=4, start=0.0):
    """Writes the file; returns the traces (T, N) and the times."""
    rng = np.random.default_rng(3)
    traces = rng.normal(size=(frames, neurons)).astype(np.float32)
    times = start + np.arange(frames) / 30.0
    with h5py.File(path, "w") as f:
        f.attrs["object"] = "Data"
        typed(f, "brainset", "BrainsetDescription", id="allen_visual_coding_ophys_2016")
        typed(f, "subject", "SubjectDescription", id="222181", genotype="Sst-IRES-Cre/wt;Ai148/wt")
        typed(f, "session", "SessionDescription", id="496908818")
        ids = np.array([f"cell{i}" for i in range(neurons)])
        typed(f, table, "ArrayDict", {"id": ids, "depth": np.full(neurons, 275.0)})
        if regular:
            g = typed(f, "calcium_traces", "RegularTimeSeries", {"df_over_f": traces})
            g.attrs["sampling_rate"] = 30.0
        else:
            times = times + rng.uniform(0, 1e-3, frames)
            arrays = {"df_over_f": traces, "timestamps": times}
            g = typed(f, "calcium_traces", "IrregularTimeSeries", arrays)
        interval(g, "domain", [start], [times[-1]])
        interval(f, "domain", [start], [times[-1]])
        interval(f, "train_domain", [start], [start + 2])
        interval(
            f,
            "drifting_gratings",
            [1.0, 3.0],
            [2.0, 4.0],
            orientation=np.array([45.0, 90.0]),
            kind=np.array(["moving", "blank"]),
        )
        run = {"timestamps": np.arange(0, 9, 0.1), "running_speed": rng.normal(size=90)}
        typed(f, "running", "IrregularTimeSeries", run)
        gaze = {"timestamps": np.arange(0, 9, 0.05), "x": np.zeros(180), "pos": np.ones((180, 2))}
        typed(f, "gaze", "IrregularTimeSeries", gaze)
    return traces, times
