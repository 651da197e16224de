"""Splits of presentations: by trial, repeat or block of frames; no window leaves its part."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calm_jax import config
from calm_jax.errors import ConfigError, SplitError
from calm_jax.recordings import stimuli
from calm_jax.recordings.formats.allen import movie_template, read_allen
from calm_jax.recordings.images import box_weights, resized
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.session import Intervals, Session
from calm_jax.recordings.stimuli import Gratings, Movie
from tests.recordings.allen_files import MOVIE, REPEATS, write_allen

FRAMES, RATE = 240, 10.0


def shown(name="s0", animal="a", repeats=6, gratings=32, offset=3.3, seed=0):
    """Gratings of 2 s every 3 s, then a movie of 8 s at 30 Hz, repeated end to end."""
    rng = np.random.default_rng(seed)
    start = offset + 3.0 * np.arange(gratings)
    value = rng.permutation(np.arange(gratings) % 4) * 45.0
    value = np.where(np.arange(gratings) % 8 == 7, np.nan, value)
    first = start[-1] + 5
    movie = first + np.arange(FRAMES * repeats) / 30.0
    frames = int((movie[-1] + 3) * RATE)
    intervals = {
        "drifting_gratings": Intervals(start, start + 2, {"orientation": value}),
        "natural_movie_one": Intervals(
            movie, movie + 1 / 30, {"frame": np.tile(np.arange(FRAMES), repeats)}
        ),
    }  # fmt: skip
    return Session(rng.normal(size=(frames, 3)), rate=RATE, session=name, animal=animal,
                   intervals=intervals)  # fmt: skip


@functools.cache
def store():
    quiet = Session(np.random.default_rng(9).normal(size=(300, 2)), rate=RATE, session="quiet")
    return MemoryStore([shown(), quiet, shown("s1", "b", offset=4.05, seed=1)])


@pytest.mark.parametrize("holdout", ["repeat_holdout", "frame_block_holdout"])
@settings(max_examples=8)
@given(seed=st.integers(0, 99), blocks=st.integers(3, 8), window=st.sampled_from([0.5, 1.0]))
def test_movie_windows_stay_in_their_part(holdout, seed, blocks, window):
    movie = Movie(holdout=holdout, blocks=blocks, gap=0.3)
    splits = stimuli.movie_split(store(), movie, config.Split(seed=seed)).check(store())
    assert splits.training == ("s0", "s1")
    seen = {}
    for part in ("train", "valid", "test"):
        rows = stimuli.movie_shown(store(), splits, movie, window, part)
        seen[part] = set(zip(*(x.tolist() for x in (rows.session, rows.repeat, rows.label))))
        for i in (0, 2):
            own = rows.take(rows.session == i)
            session = store().session(i)
            table = session.intervals[movie.name]
            # The query is the onset of the frame that is asked for, `lead` s into the window.
            row = own.repeat * FRAMES + own.label
            onset = session.times[own.start] + own.query
            np.testing.assert_allclose(onset, table.start[row], atol=1e-9)
            assert (np.abs(own.query - movie.lead) <= 1 / RATE).all()
            ranges = splits.parts[i][part]
            inside = (own.start[:, None] >= ranges[:, 0]) & (
                own.start[:, None] + round(window * RATE) <= ranges[:, 1]
            )
            assert inside.any(1).all()
    index = 1 if holdout == "repeat_holdout" else 2
    if holdout == "repeat_holdout":
        for i in (0, 2):
            own = [{x[index] for x in seen[p] if x[0] == i} for p in ("train", "valid", "test")]
            assert not own[0] & own[1] and not own[0] & own[2] and not own[1] & own[2]
    else:  # over all sessions: what is held out in one is trained on in none
        own = [{x[index] for x in seen[p]} for p in ("train", "valid", "test")]
        assert not own[0] & own[1] and not own[0] & own[2] and not own[1] & own[2]


def test_gratings_are_split_by_presentation_and_class():
    gratings = Gratings()
    splits = stimuli.gratings_split(store(), gratings, config.Split()).check(store())
    values = stimuli.classes(store(), gratings)
    assert values.tolist() == [0.0, 45.0, 90.0, 135.0] and splits.training == ("s0", "s1")
    taken = []
    for part in ("train", "valid", "test"):
        rows = stimuli.gratings_shown(store(), splits, gratings, values, 1.0, part)
        assert np.bincount(rows.label, minlength=4).min() >= 2
        for i in (0, 2):
            session, own = store().session(i), rows.take(rows.session == i)
            table = session.intervals[gratings.intervals]
            middle = session.times[own.start] + own.query
            row = np.searchsorted(table.start, middle, "right") - 1
            assert (middle < table.stop[row]).all()
            np.testing.assert_array_equal(table.columns["orientation"][row], values[own.label])
            ranges = splits.parts[i][part]
            assert (session.times[ranges[:, 1] - 1] <= table.stop[row] + gratings.tail).all()
            taken += [(i, int(r)) for r in row]
    assert len(taken) == len(set(taken)) == 2 * 28


def test_a_real_layout_is_read_alike(tmp_path):
    path = tmp_path / "a.nwb"
    write_allen(path)
    one = MemoryStore([read_allen(path)])
    movie = Movie(lead=0.05, gap=0.1)
    splits = stimuli.movie_split(one, movie, config.Split())
    frames = set()
    for part in ("train", "valid", "test"):
        rows = stimuli.movie_shown(one, splits, movie, 0.2, part)
        assert set(rows.repeat) <= set(range(REPEATS)) and rows.label.max() < MOVIE
        frames |= set(rows.repeat.tolist())
    assert frames == set(range(REPEATS))


def test_stimuli_that_are_not_there():
    quiet = MemoryStore([store().session(1)])
    with pytest.raises(SplitError, match="no session for training showed natural_movie_one"):
        stimuli.movie_split(quiet, Movie(), config.Split())
    with pytest.raises(ConfigError, match="0 values of drifting_gratings"):
        stimuli.classes(quiet, Gratings())
    with pytest.raises(SplitError, match="too few repeats"):
        stimuli.movie_split(MemoryStore([shown(repeats=2)]), Movie(), config.Split())
    with pytest.raises(SplitError, match="movie.blocks"):
        stimuli.movie_split(store(), Movie(holdout="frame_block_holdout", blocks=2), config.Split())


def test_held_out_sessions_are_not_trained_on():
    split, held_out = config.Split(), ("s0",)
    for made in (
        stimuli.movie_split(store(), Movie(), split, held_out),
        stimuli.gratings_split(store(), Gratings(), split, held_out),
    ):
        assert made.training == ("s1",) and made.held_out == ("s0",)


@given(size=st.integers(1, 40), target=st.integers(1, 40))
def test_boxes_average_areas(size, target):
    weights = box_weights(size, target)
    np.testing.assert_allclose(weights.sum(1), 1)
    # Every pixel weighs the same over all boxes.
    np.testing.assert_allclose(weights.sum(0), target / size, rtol=1e-9)


def test_images_are_resized_by_area():
    x = np.arange(2 * 4 * 6, dtype=np.uint8).reshape(2, 4, 6)
    expected = x.reshape(2, 2, 2, 3, 2).mean((2, 4)) / 255
    np.testing.assert_allclose(resized(x, 2, 3), expected, rtol=1e-6)
    np.testing.assert_allclose(resized(x, 8, 12)[:, ::2, ::2], x / 255, rtol=1e-6)


def test_movie_frames_of_every_source(tmp_path):
    from calm_jax.movies import movie_frames

    path = tmp_path / "a.nwb"
    write_allen(path)
    name = "natural_movie_one"
    images = movie_template(path, name)
    data = config.Data(name="allen_visual_coding", source=str(tmp_path))
    found = movie_frames(data, name, 2, 3)
    np.testing.assert_allclose(found, resized(images, 2, 3))
    np.save(tmp_path / "m.npy", images)
    again = movie_frames(data, name, 2, 3, file=str(tmp_path / "m.npy"))
    np.testing.assert_array_equal(again, found)
    with pytest.raises(ConfigError, match="movie.file"):
        movie_frames(config.Data(name="interchange"), name, 2, 3)
