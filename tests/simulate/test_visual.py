"""The visual simulator: Table S3, tuning, the movie's statistics, tables as Allen files have."""

import dataclasses
import functools

import numpy as np
import pytest

from calm_jax import config
from calm_jax.errors import ConfigError
from calm_jax.recordings import selection
from calm_jax.recordings.build import build
from calm_jax.recordings.store import open_store
from calm_jax.simulate import visual
from calm_jax.simulate.indicator import calibrated, moments
from calm_jax.simulate.movie import natural_movie
from calm_jax.simulate.programme import TABLE_S3
from calm_jax.visual_config import TABLE, VisualSimulation

ONE = VisualSimulation(containers=1, sessions=1)
TINY = VisualSimulation(
    lines=("SST", "CUX2"), containers=1, cells=12, grating_repeats=2, movie_frames=60,
    movie_repeats=3, spontaneous=2.0, movie_height=32, movie_width=64,
)  # fmt: skip


@functools.cache
def simulated(number=0, settings=TINY):
    return visual.simulate(settings, number)


@pytest.mark.parametrize("settings", [ONE, dataclasses.replace(TABLE, containers=1)])
def test_lines_have_the_medians_of_table_s3(settings):
    number = range(visual.count(settings))
    sessions = [visual.to_session(visual.simulate(settings, i)) for i in number]
    cells = selection.cells_of(sessions, excess=False)
    found = selection.select(cells, by="line", method="gradient")
    assert sorted(found.names) == sorted(settings.lines)
    assert settings is not ONE or set(settings.lines) == set(TABLE_S3)
    for name, s, k in zip(found.names, found.values["skewness"], found.values["kurtosis"]):
        skewness, kurtosis = TABLE_S3[name]
        assert s == pytest.approx(skewness, rel=0.15), name
        assert k == pytest.approx(kurtosis, rel=0.15), name
    # What follows is the choice of the paper, from training frames too.
    parts = selection.cells_of(sessions, excess=False, split=config.Split())
    for chosen in (found, selection.select(parts, by="line", method="gradient")):
        assert set(chosen.names[chosen.kept]) == {"SST", "VIP", "PVALB", "NTSR1"}


def test_a_session_is_a_function_of_config_and_number():
    a, b = simulated(), visual.simulate(TINY, 0)
    np.testing.assert_array_equal(a.traces, b.traces)
    other = visual.simulate(dataclasses.replace(TINY, seed=1), 0)
    assert not np.array_equal(a.traces, other.traces)
    assert a.traces.dtype == a.clean.dtype == a.rates.dtype == np.float32
    assert a.traces.shape[1] == round(0.8 * 12)


def test_sessions_of_a_container_share_cells_and_movie():
    a, b = (visual.to_session(simulated(i)) for i in (0, 1))
    assert a.animal == b.animal and a.session != b.session
    shared = set(a.neurons.id) & set(b.neurons.id)
    assert 6 <= len(shared) <= 10
    other = visual.to_session(simulated(2))
    assert other.animal != a.animal and not set(other.neurons.id) & set(a.neurons.id)
    assert set(a.neurons.columns["cell_line"]) == {"SST"}
    assert set(other.neurons.columns["cell_line"]) == {"CUX2"}


def test_stimulus_tables_are_those_of_the_allen_reader():
    session = visual.to_session(simulated())
    gratings, movie = session.intervals[visual.GRATINGS], session.intervals[visual.MOVIE]
    assert set(gratings.columns) == {"temporal_frequency", "orientation", "blank_sweep"}
    blank = gratings.columns["blank_sweep"] == 1
    assert blank.sum() == 8 and np.isnan(gratings.columns["orientation"][blank]).all()
    shown, counts = np.unique(gratings.columns["orientation"][~blank], return_counts=True)
    assert shown.tolist() == [45.0 * k for k in range(8)] and set(counts) == {4}
    np.testing.assert_allclose(gratings.stop - gratings.start, 2.0)
    assert movie.columns["frame"].tolist() == list(range(60)) * 3
    assert movie.columns["repeat"].tolist() == sorted(list(range(3)) * 60)
    assert movie.stop.max() < session.times[-1] and gratings.stop.max() < session.times[-1]
    assert (movie.start[1:] >= movie.stop[:-1] - 1e-9).all()


def test_rates_follow_the_preferred_direction():
    x = simulated(2)
    table, clock = x.intervals[visual.GRATINGS], TINY.movie_rate
    lag = round(TINY.delay * clock)
    start = np.rint(table.start * clock).astype(int) + lag
    mean = np.array([x.rates[a : a + 60].mean(0) for a in start])
    apart = np.deg2rad(table.columns["orientation"])[:, None] - x.tuning.direction
    near, across = np.cos(apart) > 0.9, np.abs(np.cos(apart)) < 0.4
    high = np.where(near, mean, np.nan), np.where(across, mean, np.nan)
    best, worst = (np.nanmean(h, axis=0) for h in high)
    assert (best > 1.5 * worst).mean() > 0.9


def test_a_frame_evokes_the_same_rates_in_every_repeat():
    still = dataclasses.replace(TINY, running=0.0)
    x = visual.simulate(still, 0)
    first = round(x.intervals[visual.MOVIE].start[0] * 30) + 3
    repeats = x.rates[first : first + 180].reshape(3, 60, -1)
    np.testing.assert_allclose(repeats[0], repeats[2], rtol=1e-4)
    assert repeats[0].std(0).max() > 0.1


def test_the_movie_has_natural_statistics():
    x = natural_movie(90, 64, 128, rate=30.0, seed=3).astype(np.float64)
    assert x.std() > 25 and x.min() >= 0 and x.max() <= 255
    # Amplitude of spatial frequencies falls about as 1/f.
    window = np.hanning(64)[:, None] * np.hanning(64)[None]
    crop = x[::10, :, 32:96]
    crop = (crop - crop.mean((1, 2), keepdims=True)) * window
    amplitude = np.sqrt((np.abs(np.fft.fft2(crop)) ** 2).mean(0))
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    rings = [amplitude[(f >= a) & (f < 1.4 * a)].mean() for a in 0.04 * 1.4 ** np.arange(6)]
    slope = np.polyfit(np.log(1.4) * np.arange(6), np.log(rings), 1)[0]
    assert -1.7 < slope < -0.7, slope
    # It moves, smoothly.
    alike = lambda a, b: np.corrcoef(a.ravel(), b.ravel())[0, 1]
    r = lambda k: np.mean([alike(x[t], x[t + k]) for t in range(0, 60, 7)])
    assert r(1) > 0.9 and r(1) > r(10) + 0.05 > r(30)


def test_calibration_reaches_skewness_and_kurtosis():
    rng = np.random.default_rng(0)
    events = rng.poisson(0.05, (20000, 6)) * rng.exponential(size=(20000, 6))
    calcium = np.stack([np.convolve(e, np.exp(-np.arange(30) / 5))[:20000] for e in events.T], 1)
    skew, kurt = np.array([2, 3, 4, 5, 6, 3.0]), np.array([10, 20, 40, 60, 80, 24.0])
    clean, noisy = calibrated(calcium, skew, kurt, rng)
    sd, s, k = moments(noisy)
    np.testing.assert_allclose(s, skew, rtol=0.2)
    np.testing.assert_allclose(k + 3, kurt, rtol=0.25)
    silent, noise = calibrated(np.zeros((50, 1)), np.array([2.0]), np.array([9.0]), rng)
    assert (silent == 0).all() and np.isfinite(noise).all()


def test_the_data_set_is_built(tmp_path):
    data = config.Data(name="simulated_visual", visual=TINY, store=str(tmp_path))
    store = open_store(build(data))
    assert len(store.sessions) == visual.count(TINY) == 4
    np.testing.assert_array_equal(store.session(1).traces, simulated(1).traces)
    table = store.session(1).intervals[visual.MOVIE]
    assert table.columns["frame"].tolist() == list(range(60)) * 3
    seeded = dataclasses.replace(data, visual=dataclasses.replace(TINY, seed=1))
    assert build(seeded) != build(data)


@pytest.mark.parametrize(
    ("field", "value"),
    [("rate", 7.0), ("lines", ("SST", "SST")), ("cells", 0), ("tau_rise", 0.5),
     ("directions", 1), ("temporal_frequencies", ()), ("movie_height", 8), ("recurring", 0.0)],
)  # fmt: skip
def test_configs_that_simulate_nothing(field, value):
    with pytest.raises(ConfigError, match=f"visual.{field}"):
        visual.simulate(dataclasses.replace(TINY, **{field: value}), 0)


def test_unknown_lines():
    with pytest.raises(ConfigError, match="no cell line 'PV'.*PVALB"):
        visual.check(dataclasses.replace(TINY, lines=("PV",)))
