"""Algorithm S1, Table S3 of POYO-SSL, statistics against SciPy, and `calm-jax select`."""

import json
import sys
import types

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from calm_jax import cli, config
from calm_jax.errors import ConfigError, RecordingError, SplitError
from calm_jax.recordings import disjoint, selection
from calm_jax.recordings.moments import moments_of
from calm_jax.recordings.session import NeuronTable, Session

TABLE_S3 = {  # line: cells, median skewness, median kurtosis
    "EXM1": (7537, 5.637, 88.966), "SLC17A7": (7736, 5.132, 63.847),
    "CUX2": (10275, 5.504, 79.245), "RORB": (5009, 6.283, 88.748),
    "SCNN1A": (1200, 7.240, 103.458), "NR5A1": (2135, 6.159, 69.922),
    "RBP4": (1611, 7.395, 94.758), "FEZF2": (587, 5.108, 55.862),
    "TLX3": (1524, 6.133, 76.118), "NTSR1": (1239, 2.453, 22.616),
    "VIP": (639, 3.507, 19.145), "SST": (573, 2.075, 12.932), "PVALB": (245, 1.991, 8.258),
}  # fmt: skip
PREDICTABLE = {"SST", "VIP", "PVALB", "NTSR1"}


def session(name="s0", animal="m0", lines=None, container=None, traces=None, ids=None, seed=0):
    rng = np.random.default_rng(seed)
    n = 4 if lines is None else len(lines)
    x = rng.gamma(0.5, size=(300, n)) if traces is None else traces
    columns = {}
    if lines is not None:
        columns["cell_line"] = np.array(lines)
    if container is not None:
        columns["container"] = np.full(n, container)
    ids = np.arange(n).astype(str) if ids is None else np.array(ids)
    table = NeuronTable(ids, columns)
    return Session(x, rate=10.0, animal=animal, session=name, neurons=table)


def test_table_s3_gives_the_thresholds_and_lines_of_the_paper():
    names = np.array(list(TABLE_S3))
    values = {
        "skewness": np.array([v[1] for v in TABLE_S3.values()]),
        "kurtosis": np.array([v[2] for v in TABLE_S3.values()]),
    }
    limits, kept = selection.select_values(values)
    assert limits == {"skewness": 3.507, "kurtosis": 22.616} == selection.PAPER
    assert set(names[kept]) == PREDICTABLE
    # Pearson or excess is a shift: the same lines.
    shifted, again = selection.select_values({**values, "kurtosis": values["kurtosis"] - 3})
    assert shifted["kurtosis"] == pytest.approx(19.616) and (again == kept).all()
    fixed, again = selection.select_values(values, "fixed")
    assert fixed == limits and (again == kept).all()
    # Lowering one threshold leaves the line at it out: "at or below".
    _, fewer = selection.select_values(values, "fixed", {"kurtosis": 22.615})
    assert set(names[fewer]) == PREDICTABLE - {"NTSR1"}


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30))
def test_the_knee_is_before_the_largest_rise(values):
    y = sorted(values)
    k = selection.knee(y)
    rises = np.diff(y).tolist()
    assert rises[k] == max(rises) and all(r < rises[k] for r in rises[:k])


def test_the_knee_refuses_what_has_none():
    for bad in ([], [1.0], [2.0, 1.0], [1.0, np.nan]):
        with pytest.raises(ConfigError, match="at least two finite values"):
            selection.knee(bad)


def test_kneedle_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "kneed", None)
    with pytest.raises(ConfigError, match=r"needs the package kneed.*calm_jax\[selection\]"):
        selection.kneedle([1.0, 2.0, 9.0])
    asked = []

    def locator(x, y, **options):
        asked.append((list(x), list(y), options))
        return types.SimpleNamespace(knee=asked_for)

    monkeypatch.setitem(sys.modules, "kneed", types.SimpleNamespace(KneeLocator=locator))
    asked_for = 1
    assert selection.threshold(np.array([9.0, 2.0, 1.0]), "kneedle") == 2.0
    assert asked == [([0, 1, 2], [1.0, 2.0, 9.0], {"curve": "convex", "direction": "increasing"})]
    asked_for = None
    with pytest.raises(ConfigError, match="finds no knee"):
        selection.kneedle([1.0, 2.0, 3.0])


@given(st.integers(0, 2**31), st.integers(5, 60), st.booleans())
def test_moments_are_those_of_scipy_however_they_are_cut(seed, frames, masked):
    rng = np.random.default_rng(seed)
    x = rng.gamma(0.7, size=(frames, 3)) * 10.0 ** rng.integers(-3, 4) + rng.normal() * 10
    mask = rng.random(x.shape) < 0.8 if masked else np.ones(x.shape, bool)
    mask[:4] = True
    cut = int(rng.integers(0, frames + 1))
    both = moments_of(x[:cut], mask[:cut]).merged(moments_of(x[cut:], mask[cut:]))
    for n in range(3):
        own = x[mask[:, n], n]
        assert both.skewness()[n] == pytest.approx(scipy.stats.skew(own), rel=1e-6, abs=1e-6)
        for excess in (False, True):
            expected = scipy.stats.kurtosis(own, fisher=excess)
            assert both.kurtosis(excess=excess)[n] == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_blocks_of_frames_change_nothing(monkeypatch):
    x = np.random.default_rng(0).gamma(0.3, size=(5000, 3))
    whole = moments_of(x)
    monkeypatch.setattr("calm_jax.recordings.moments._BLOCK", 64)
    np.testing.assert_allclose(moments_of(x).skewness(), whole.skewness(), rtol=1e-9)
    np.testing.assert_allclose(whole.skewness(), scipy.stats.skew(x), rtol=1e-9)


def test_constant_and_short_traces_have_no_statistics():
    x = np.full((100, 2), 0.1, np.float32)
    assert np.isnan(moments_of(x).skewness()).all()
    assert np.isnan(moments_of(np.eye(3)).kurtosis(excess=False)).all()


def test_only_training_frames_count():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1000, 2)).astype(np.float32)
    changed = x.copy()
    changed[750:] *= 50  # beyond the training block of 0.7
    get = lambda t, split: selection.cells_of(
        [session(traces=t, lines=["A", "B"])], excess=True, split=split
    )
    a, b = get(x, config.Split()), get(changed, config.Split())
    np.testing.assert_array_equal(a.kurtosis, b.kurtosis)
    np.testing.assert_allclose(a.kurtosis, scipy.stats.kurtosis(x[:700].astype(float)), atol=1e-9)
    assert (get(changed, None).kurtosis > a.kurtosis + 1).all()
    assert (a.frames == 700).all()


def test_cells_of_one_container_are_one_row():
    rng = np.random.default_rng(2)
    x, y = rng.gamma(0.5, size=(2, 200, 2))
    first = session("a", lines=["V", "V"], container="c1", traces=x, ids=["10", "11"])
    second = session("b", lines=["V", "V"], container="c1", traces=y, ids=["11", "12"])
    cells = selection.cells_of([first, second], excess=False)
    assert cells.id.tolist() == ["10", "11", "12"]
    assert cells.sessions == (("a",), ("a", "b"), ("b",))
    pooled = np.concatenate([x[:, 1], y[:, 0]]).astype(np.float32).astype(float)
    assert cells.skewness[1] == pytest.approx(scipy.stats.skew(pooled), rel=1e-9)
    # Without containers equal ids of two sessions are two cells.
    bare = [session(s, ids=["0", "1", "2", "3"]) for s in "ab"]
    assert len(selection.cells_of(bare, excess=False)) == 8
    with pytest.raises(RecordingError, match="the same session twice"):
        selection.cells_of([first, first], excess=False)


def cells_like_table_s3(spread=0.1):
    """Cells whose medians per line are those of the table; two animals per line."""
    rows = [(line, k, *v[1:]) for line, v in TABLE_S3.items() for k in range(5)]
    shift = np.array([(r[1] - 2) * spread for r in rows])
    line = np.array([r[0] for r in rows])
    animal = np.array([f"{r[0]}-{r[1] % 2}" for r in rows])
    return selection.Cells(
        id=np.arange(len(rows)).astype(str),
        line=line,
        animal=animal,
        container=np.array([f"c{a}" for a in animal]),
        sessions=tuple((f"s{a}",) for a in animal),
        skewness=np.array([r[2] for r in rows]) + shift,
        kurtosis=np.array([r[3] for r in rows]) + shift,
        frames=np.full(len(rows), 700),
        excess=False,
    )


def test_by_line_keeps_whole_lines_and_shares_nothing():
    made = selection.select(cells_like_table_s3())
    assert set(made.names[made.kept]) == PREDICTABLE
    assert set(made.cells.line[made.kept_cells]) == PREDICTABLE
    assert made.kept_cells.sum() == 20
    assert not any(disjoint.sharing(made).values())


def test_by_neuron_cuts_through_animals_and_says_so():
    made = selection.select(
        cells_like_table_s3(1.0), by="neuron", method="fixed", fixed={"skewness": 5.0}
    )
    cells = made.cells
    expected = (cells.skewness <= 5.0) & (cells.kurtosis <= 22.616)
    np.testing.assert_array_equal(made.kept_cells, expected)
    both = disjoint.sharing(made)
    assert both["animal"] and both["container"] and both["session"] and not both["neuron"]
    rest = disjoint.origin(cells, ~made.kept_cells)
    with pytest.raises(SplitError, match="share .* animal"):
        disjoint.check_disjoint(disjoint.origin(cells, made.kept_cells), rest)


@given(st.integers(0, 2**31), st.floats(0.05, 0.95))
def test_divide_is_disjoint_by_container_and_animal(seed, fraction):
    rng = np.random.default_rng(seed)
    n = 40
    pick = lambda k, p: np.array([f"{p}{i}" for i in rng.integers(0, k, n)])
    animal = pick(12, "m")
    cells = selection.Cells(
        id=np.arange(n).astype(str), line=np.full(n, ""), animal=animal,
        container=np.where(rng.random(n) < 0.3, "", np.char.add(animal, pick(2, "c"))),
        sessions=tuple((f"s{i % 3}",) for i in range(n)),
        skewness=np.ones(n), kurtosis=np.ones(n), frames=np.ones(n, int), excess=False,
    )  # fmt: skip
    parts = disjoint.divide(cells, fraction, seed)
    again = disjoint.divide(cells, fraction, seed)
    assert (parts["pretrain"] ^ parts["finetune"]).all()
    assert parts["pretrain"].any() and parts["finetune"].any()
    np.testing.assert_array_equal(parts["pretrain"], again["pretrain"])
    a, b = (set(animal[parts[p]]) for p in disjoint.PARTS)
    assert not a & b


def test_containers_join_animals():
    """One container seen under two animal names must not be cut."""
    cells = cells_like_table_s3()
    import dataclasses

    joined = dataclasses.replace(cells, container=np.full(len(cells), "one"))
    with pytest.raises(SplitError, match="too few animals"):
        disjoint.divide(joined)


def test_what_cannot_be_selected():
    bare = selection.cells_of([session()], excess=False)
    with pytest.raises(RecordingError, match="no neuron has a cell line.*by neuron"):
        selection.select(bare)
    flat = selection.cells_of([session(traces=np.ones((100, 4)))], excess=False)
    with pytest.raises(RecordingError, match="no neuron varies"):
        selection.select(flat, by="neuron")
    one = selection.cells_of([session(lines=["A"] * 4)], excess=False)
    with pytest.raises(ConfigError, match="fixed thresholds"):
        selection.select(one)
    with pytest.raises(ConfigError, match="finds its own thresholds"):
        selection.select(bare, by="neuron", fixed={"skewness": 1.0})


def write(path, lines, animal, seed, sparse):
    """Calm lines are normal, sparse ones gamma with a heavy tail."""
    from calm_jax.recordings.formats.interchange import write_interchange

    rng = np.random.default_rng(seed)
    shape = np.where(sparse, 0.05, 4.0)
    x = rng.gamma(shape, size=(600, len(lines)))
    write_interchange(session(path.stem, animal, lines, traces=x), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("recordings")
    write(out / "a.npz", ["VIP"] * 5 + ["SST"] * 4, "m1", 0, np.zeros(9, bool))
    write(out / "b.npz", ["CUX2"] * 6 + ["RORB"] * 4, "m2", 1, np.ones(10, bool))
    return out


def test_the_command_prints_writes_and_draws(folder, tmp_path, capsys):
    out, figure = tmp_path / "kept.json", tmp_path / "knee.png"
    flags = ["--json", str(out), "--figure", str(figure)]
    assert cli.main(["select", str(folder), *flags]) == 0
    text = capsys.readouterr().out
    assert "kept: 9 of 19 cells in 2 of 4 lines" in text and "share no animal" in text
    found = json.loads(out.read_text())
    assert found["kept_lines"] == ["SST", "VIP"] and found["kurtosis"] == "pearson"
    assert {x["line"] for x in found["lines"]} == {"SST", "VIP", "CUX2", "RORB"}
    assert len(found["kept_neurons"]) == 9
    assert found["thresholds"]["skewness"] == max(
        x["skewness"] for x in found["lines"] if x["kept"]
    )
    assert figure.stat().st_size > 5000 and figure.with_suffix(".svg").exists()


def test_the_command_by_neuron(folder, tmp_path, capsys):
    out = tmp_path / "kept.json"
    flags = "--by neuron --method fixed --skewness 2 --excess --frames all --json".split()
    assert cli.main(["select", str(folder), *flags, str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["kept_lines"] is None and len(found["neurons"]) == 19
    assert {x["line"] for x in found["kept_neurons"]} == {"VIP", "SST"}
    assert found["frames"] == "all" and found["kurtosis"] == "excess"
    capsys.readouterr()


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--skewness", "2"], "a threshold is given, but not used"),
        (["--read", "nonsense=1"], "nonsense"),
        (["--json", "{folder}/a.npz/x.json"], "cannot be written"),
    ],
)
def test_the_command_refuses(folder, capsys, flags, said):
    flags = [f.format(folder=folder) for f in flags]
    assert cli.main(["select", str(folder), *flags]) == 2
    assert said in capsys.readouterr().err
