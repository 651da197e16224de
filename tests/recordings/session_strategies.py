"""Sessions of every shape, for hypothesis."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calm_jax.recordings.session import Channel, Intervals, NeuronTable, Session, Trials

NAMES = st.text("abcé_-. 1", min_size=1, max_size=6).filter(lambda s: s.strip(". "))
WORDS = st.text("abcåß 0", max_size=5)
NUMBERS = st.floats(-1e6, 1e6, width=32)


def columns(rows, taken=()):
    arrays = st.one_of(
        hnp.arrays(np.float64, rows, elements=NUMBERS),
        hnp.arrays(np.int32, rows),
        hnp.arrays(np.bool_, rows),
        st.lists(WORDS, min_size=rows, max_size=rows).map(lambda x: np.array(x, dtype=str)),
        hnp.arrays(np.float32, (rows, 2), elements=NUMBERS),
    )
    return st.dictionaries(NAMES.filter(lambda n: n not in taken), arrays, max_size=2)


@st.composite
def trials(draw, frames):
    edges = sorted(draw(st.sets(st.integers(0, frames), max_size=6)))
    edges = np.array(edges[: len(edges) // 2 * 2], int).reshape(-1, 2)
    given = draw(columns(len(edges))) if len(edges) else {}
    return Trials(edges[:, 0], edges[:, 1], given)


@st.composite
def channels(draw, frames):
    own = draw(st.booleans())
    samples = draw(st.integers(1, 9)) if own else frames
    kind = draw(st.sampled_from(["continuous", "categorical"]))
    if kind == "continuous":
        values = draw(hnp.arrays(np.float32, samples, elements=NUMBERS | st.just(np.nan)))
    elif draw(st.booleans()):
        values = np.array(draw(st.lists(WORDS, min_size=samples, max_size=samples)), dtype=str)
    else:
        values = draw(hnp.arrays(np.int16, samples, elements=st.integers(-1, 5)))
    times = np.cumsum(draw(hnp.arrays(float, samples, elements=st.floats(0.01, 2))))
    unit = draw(st.sampled_from(["", "m/s"]))
    return Channel(values, kind, times=times if own else None, unit=unit)


@st.composite
def intervals(draw):
    rows = draw(st.integers(0, 4))
    start = draw(hnp.arrays(float, rows, elements=st.floats(0, 100)))
    length = draw(hnp.arrays(float, rows, elements=st.floats(0, 10)))
    return Intervals(start, start + length, draw(columns(rows, ("start", "stop"))))


@st.composite
def sessions(draw):
    frames, neurons = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    shape = draw(st.sampled_from([None, (frames,), (frames, neurons)]))
    clock = draw(st.sampled_from(["rate", "timestamps", "both"])) if frames > 1 else "rate"
    steps = draw(hnp.arrays(float, frames, elements=st.floats(0.01, 1)))
    ids = draw(st.lists(NAMES, min_size=neurons, max_size=neurons, unique=True))
    return Session(
        traces=draw(hnp.arrays(np.float32, (frames, neurons), elements=NUMBERS)),
        rate=None if clock == "timestamps" else draw(st.floats(0.1, 1e3)),
        timestamps=None if clock == "rate" else np.cumsum(steps),
        valid=None if shape is None else draw(hnp.arrays(bool, shape)),
        trials=draw(trials(frames)),
        intervals=draw(st.dictionaries(NAMES, intervals(), max_size=2)),
        behavior=draw(st.dictionaries(NAMES, channels(frames), max_size=2)),
        neurons=NeuronTable(np.array(ids), draw(columns(neurons, ("id",)))),
        unit=draw(WORDS),
        animal=draw(NAMES),
        session=draw(NAMES),
        notes=tuple(draw(st.lists(WORDS.map(lambda w: w + "."), max_size=2))),
    )


def assert_same(a, b):
    """Every field of two sessions equal, values and kinds of values."""
    for name in ("rate", "unit", "animal", "session", "notes"):
        assert getattr(a, name) == getattr(b, name), name
    _same(a.traces, b.traces)
    _same(a.mask, b.mask)
    assert (a.timestamps is None) == (b.timestamps is None)
    _same(a.times, b.times)
    _same(a.trials.start, b.trials.start)
    _same(a.trials.stop, b.trials.stop)
    _same_columns(a.trials.columns, b.trials.columns)
    _same(a.neurons.id, b.neurons.id)
    _same_columns(a.neurons.columns, b.neurons.columns)
    assert a.intervals.keys() == b.intervals.keys()
    for name, x in a.intervals.items():
        y = b.intervals[name]
        _same(x.start, y.start)
        _same(x.stop, y.stop)
        _same_columns(x.columns, y.columns)
    assert a.behavior.keys() == b.behavior.keys()
    for name, x in a.behavior.items():
        y = b.behavior[name]
        assert (x.kind, x.unit, x.times is None) == (y.kind, y.unit, y.times is None)
        _same(x.values, y.values)
        if x.times is not None:
            _same(x.times, y.times)


def _same_columns(a, b):
    assert a.keys() == b.keys()
    for name in a:
        _same(a[name], b[name])


def _same(a, b):
    assert a.dtype.kind == b.dtype.kind and a.shape == b.shape
    if a.dtype.kind != "U":
        assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)
