"""Gratings decoding and movie reconstruction: batches, start weights, freezing, a run of each."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from calm_jax import config, gratings_evaluation, movie_evaluation
from calm_jax.errors import ConfigError
from calm_jax.models import alexnet
from calm_jax.models.mlp_encoder import MlpConfig
from calm_jax.models.movie_decoder import DecoderConfig
from calm_jax.models.population_encoder import EncoderConfig
from calm_jax.movie_losses import MovieLoss
from calm_jax.recordings import preprocess, stimuli
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.session import Intervals, Session
from calm_jax.report.movies import contact_sheet
from calm_jax.tasks import finetuning
from calm_jax.tasks.finetuning import FineTuning
from calm_jax.tasks.gratings import GratingsDecoding
from calm_jax.tasks.latent_masking import Units
from calm_jax.tasks.movie import MovieReconstruction
from calm_jax.training.log import Log
from calm_jax.training.loop import train
from calm_jax.training.state import named
from calm_jax.training.task import Task

pytestmark = pytest.mark.usefixtures("quick_compilation")
ENCODER = EncoderConfig(
    latent_step=0.5, latents_per_step=1, width=16, depth=1, head_width=8, cross_heads=1,
    self_heads=1, forward_dropout=0.0, block_dropout=0.0, attention_dropout=0.0,
    embedding_scale=1.0,
)  # fmt: skip
DECODER = DecoderConfig(kind="mlp", height=16, width=32, hidden=(16,))
TRAINING = config.Training(
    batch=8, learning_rate=1e-2, weight_decay=0.0, eval_batches=4, eval_every=1000,
    log_every=1000, checkpoint_seconds=1e9, precision="float32", clip=None,
)  # fmt: skip
UNITS = Units(minimum=6, maximum=8, mode=7, tail=8)
FRAMES, REPEATS = 60, 6


@functools.cache
def store():
    """Cells that follow gratings (one of two directions) and the phase of a movie."""
    sessions = []
    for s, (rate, neurons) in enumerate([(10.0, 6), (15.0, 8)]):
        rng = np.random.default_rng(s)
        start = 1 + 2.5 * np.arange(24)
        side = rng.permutation(24) % 2
        first = start[-1] + 4
        movie = first + np.arange(FRAMES * REPEATS) / 15.0
        times = np.arange(int((movie[-1] + 2) * rate)) / rate
        row = np.searchsorted(start, times, "right") - 1
        on = (row >= 0) & (times - start[row] < 2)
        traces = rng.normal(size=(times.size, neurons)) * 0.2
        traces += 2 * (on[:, None] & (np.arange(neurons) % 2 == side[row][:, None]))
        phase = 2 * np.pi * (times - first) * 15 / FRAMES
        seen = (times >= first) & (times < movie[-1])
        traces += seen[:, None] * np.cos(phase[:, None] - 2 * np.pi * np.arange(neurons) / neurons)
        intervals = {
            "drifting_gratings": Intervals(start, start + 2, {"orientation": side * 45.0}),
            "natural_movie_one": Intervals(
                movie, movie + 1 / 15, {"frame": np.tile(np.arange(FRAMES), REPEATS)}
            ),
        }
        sessions.append(
            Session(traces, rate=rate, session=f"s{s}", animal=f"m{s}", intervals=intervals)
        )
    return MemoryStore(sessions)


def prepared(splits):
    return Prepared(store(), splits, preprocess.fit(store(), splits, config.Preprocess()))


def movie_images():
    """A bar that moves around: (60, 16, 32)."""
    x = (np.arange(32)[None] - np.arange(FRAMES)[:, None] * 32 / FRAMES) % 32
    row = np.exp(-((x - 16) ** 2) / 20).astype(np.float32)
    return np.repeat(row[:, None], 16, 1)


def gratings(steps=60, **options):
    splits = stimuli.gratings_split(store(), stimuli.Gratings(), config.Split())
    training = options.pop("training", TRAINING)
    encoder = options.pop("encoder", ENCODER)
    return GratingsDecoding(
        encoder, stimuli.Gratings(), training, prepared(splits), seed=1, steps=steps, units=UNITS,
        **options,
    )  # fmt: skip


def movie(holdout="repeat_holdout", steps=120, encoder=ENCODER, **options):
    what = stimuli.Movie(holdout=holdout, blocks=3, gap=0.2)
    splits = stimuli.movie_split(store(), what, config.Split())
    loss = options.pop("loss", MovieLoss(perceptual=0.0))
    return MovieReconstruction(
        encoder, DECODER, loss, what, TRAINING, prepared(splits), movie_images(), seed=1,
        steps=steps, units=UNITS, **options,
    )  # fmt: skip


@pytest.mark.parametrize("make", [gratings, movie])
def test_batches_are_functions_of_seed_and_step(make):
    task = make()
    assert isinstance(task, Task)
    a, b = task.batch(3), make().batch(3)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    halves = [task.batch(3, part, 2) for part in range(2)]
    for name in a:
        np.testing.assert_array_equal(a[name], np.concatenate([h[name] for h in halves]))
    shapes = {k: v.shape for k, v in a.items()}
    assert all({k: v.shape for k, v in task.batch(i).items()} == shapes for i in range(20))


def test_every_presentation_is_seen_once_an_epoch():
    task = movie()
    n = len(task.shown["train"])
    rows = [task._order(k // n)[k % n] for k in range(2 * n)]
    assert sorted(rows[:n]) == sorted(rows[n:]) == list(range(n)) and rows[:n] != rows[n:]


def test_targets_are_the_frames_that_were_shown():
    task = movie()
    shown = task.shown["valid"].take(np.arange(8))
    [(batch, real)] = task.batches(shown)
    assert real == 8
    np.testing.assert_array_equal(batch["frame"], movie_images()[shown.label])


def test_gratings_are_learned(tmp_path):
    task = gratings()
    found = train(task, TRAINING, tmp_path, seed=0, steps=60, log=Log.silent())
    after = task.evaluate(found.params, found.extra)
    assert after["accuracy"] > 0.8 and after["chance"] == 0.5, after
    assert after["loss"] == after["cross_entropy"]
    rows = gratings_evaluation.gratings_rows(task, found.params, seed=0)
    value = {(r["method"], r["session"]): r["value"] for r in rows if r["metric"] == "accuracy"}
    for s in ("s0", "s1"):
        assert value["linear", s] > 0.8 and value["shuffled", s] <= value["shuffled_95", s]
        assert 0.3 < value["shuffled", s] < 0.7
        assert value["poyo", s] >= value["majority", s]
    # The encoder of this run starts another one, whose frozen parts do not move.
    again = gratings(
        steps=2, pretrained=found.params, tuning=FineTuning(freeze="all", rows="kept")
    )
    params, _ = again.init(jax.random.key(5))
    for path, leaf in named(params).items():
        np.testing.assert_array_equal(leaf, named(found.params)[path])
    stays = {path.split("/")[1] for path in named(params) if not again.trains(path)}
    assert stays == {"value_map", "latents", "encoder", "blocks"}


def test_shuffled_labels_keep_their_counts():
    plain, mixed = gratings().shown, gratings(shuffled=True).shown
    for i in (0, 1):
        a, b = (s["train"].label[s["train"].session == i] for s in (plain, mixed))
        assert sorted(a) == sorted(b) and not np.array_equal(a, b)
    np.testing.assert_array_equal(plain["test"].label, mixed["test"].label)


@pytest.mark.parametrize("holdout", ["repeat_holdout", "frame_block_holdout"])
def test_a_movie_is_reconstructed(tmp_path, holdout):
    task = movie(holdout)
    params, extra = task.init(jax.random.key(0))
    seen = holdout == "repeat_holdout"
    if seen:
        before = task.evaluate(params, extra)
        params = train(task, TRAINING, tmp_path, seed=0, steps=120, log=Log.silent()).params
        after = task.evaluate(params, extra)
        assert after["eq2"] < before["eq2"], (before, after)
    scores = movie_evaluation.movie_rows(task, params, seed=0, limit=20, examples=4)
    mean = lambda method, metric: np.mean(
        [r["value"] for r in scores.rows if r["method"] == method and r["metric"] == metric]
    )
    assert set(movie_evaluation.METHODS) == {r["method"] for r in scores.rows}
    if seen:
        assert mean("poyo", "ssim") > mean("mean_frame", "ssim")
        # Every frame was seen: the time in the movie gives it away.
        assert mean("time_only", "ssim") == pytest.approx(1, abs=1e-5)
        assert mean("best_training_frame", "ssim") == pytest.approx(1, abs=1e-5)
        assert "within reach of retrieval" in scores.statement
    else:
        assert mean("best_training_frame", "ssim") < 0.999
        for method in ("nearest", "nearest_template", "time_only"):
            assert mean("best_training_frame", "ssim") >= mean(method, "ssim") - 1e-6
        assert "No single training frame can exceed" in scores.statement
    for r in scores.rows:
        assert np.isfinite(r["value"]) and r["session"] in ("s0", "s1")
    sheet = scores.sheet
    assert sheet.true.shape == sheet.reconstructed.shape == sheet.nearest.shape == (4, 16, 32)
    np.testing.assert_array_equal(sheet.true, movie_images()[sheet.frame])
    figure = contact_sheet(sheet)
    assert len(figure.axes) == 12 and "held out" in figure.get_suptitle()


def test_retrieval_by_activity_finds_the_nearest_window():
    task = movie()
    shown = movie_evaluation.per_session(task, task.shown["test"], 5)
    found = movie_evaluation.retrieved(task, shown)
    for k in range(len(shown)):
        i = int(shown.session[k])
        windows = lambda s, i=i: np.array(list(movie_evaluation.activity(task, s, i)))
        own = task.shown["train"].take(task.shown["train"].session == i)
        apart = ((windows(own) - windows(shown.take(np.array([k])))) ** 2).sum(1)
        assert found["nearest"][k] == own.label[apart.argmin()]
    # The phase of the movie is all over the population: neighbours in time are found.
    apart = np.abs(found["nearest_template"] - shown.label)
    assert np.median(np.minimum(apart, FRAMES - apart)) <= 6


def test_the_mlp_encoder_takes_part():
    task = movie(encoder=MlpConfig(bins=3, first=8, hidden=(8,), width=16))
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    run = lambda p, b: task.loss(p, {}, b, jax.random.key(1), 0)
    value, (_, parts) = jax.eval_shape(run, params, task.batch(0))
    assert value.shape == () and {"focal", "l1", "fft", "ssim"} == set(parts)
    with pytest.raises(ConfigError, match="not pretrained"):
        movie(encoder=MlpConfig(), pretrained={"encoder": {}})


@pytest.mark.parametrize(
    ("freeze", "paths"),
    [("none", ()), ("first", ("value_map/kernel", "encoder/forward/up/kernel", "blocks/0/a")),
     ("middle", ("blocks/2/a",)), ("last", ("blocks/5/a",)),
     ("all", ("value_map/kernel", "latents/table", "blocks/0/a", "blocks/5/a"))],
)  # fmt: skip
def test_what_is_frozen(freeze, paths):
    every = ("value_map/kernel", "encoder/forward/up/kernel", "latents/table", "blocks/0/a",
             "blocks/2/a", "blocks/5/a", "units/table", "sessions/table", "tasks/table",
             "decoder/forward/up/kernel", "readouts/grating/kernel")  # fmt: skip
    found = {p for p in every if finetuning.frozen(f"encoder/{p}", freeze, 6)}
    assert set(paths) <= found
    assert not finetuning.frozen("decoder/out/kernel", freeze, 6)
    for free in ("units/table", "sessions/table", "tasks/table", "readouts/grating/kernel"):
        assert free not in found
    if freeze in ("middle", "last"):
        assert found == set(paths)


def drawn(task, seed=0):
    """Parameters of the right shapes without the compilation of `init`."""
    rng = np.random.default_rng(seed)
    shapes, _ = jax.eval_shape(task.init, jax.random.key(0))
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)


def test_weights_that_do_not_fit():
    params = drawn(gratings())
    wider = drawn(gratings(encoder=dataclasses.replace(ENCODER, width=32)))
    with pytest.raises(ConfigError, match=r"encoder/\S+.*sizes of the pretraining"):
        finetuning.transferred(wider, params, rows="fresh", fresh=())
    with pytest.raises(ConfigError, match=r"(?s)encoder/\S+.*found none"):
        finetuning.transferred(params, {}, rows="fresh", fresh=())
    with pytest.raises(ConfigError, match="random encoder"):
        gratings(tuning=FineTuning(freeze="all"))
    with pytest.raises(ConfigError, match="too few blocks"):
        gratings(tuning=FineTuning(freeze="first"), pretrained=params)
    task = movie(pretrained=params)
    fresh = finetuning.transferred(drawn(task, 3), params, rows="fresh", fresh=task.fresh)
    own = named(fresh["encoder"])
    for path, leaf in named(params["encoder"]).items():
        if path.split("/")[0] in ("units", "sessions", "tasks"):
            assert not np.array_equal(leaf, own[path])
        elif path.split("/")[0] != "readouts":
            np.testing.assert_array_equal(leaf, own[path])


def test_a_wanted_perceptual_term_is_never_silently_left_out(monkeypatch, capsys):
    monkeypatch.setattr(alexnet, "packaged", lambda: None)
    told = []
    movie(loss=MovieLoss(), notify=told.append)
    assert len(told) == 1 and "perceptual term off" in told[0]
    movie(loss=MovieLoss())
    assert "perceptual term off" in capsys.readouterr().err
    with pytest.raises(Exception, match="no such file"):
        movie(loss=MovieLoss(), weights="nowhere.pth")


def test_frames_that_do_not_fit():
    what = stimuli.Movie()
    made = prepared(stimuli.movie_split(store(), what, config.Split()))
    with pytest.raises(ConfigError, match="another size"):
        MovieReconstruction(ENCODER, DECODER, MovieLoss(perceptual=0.0), what, TRAINING, made,
                            movie_images()[:, :8], seed=0, steps=1)  # fmt: skip
    with pytest.raises(ConfigError, match="does not have"):
        MovieReconstruction(ENCODER, DECODER, MovieLoss(perceptual=0.0), what, TRAINING, made,
                            movie_images()[:20], seed=0, steps=1)  # fmt: skip
