"""What the figures of the analyses draw is what they were given."""

import numpy as np
import pytest

from calm_jax.analysis import (
    classification,
    curriculum,
    dynamics,
    embeddings,
    freezing,
    groups,
    information,
    landscape,
    latents,
    spectrum,
)
from calm_jax.report import (
    analysis_figures,
    analysis_latents,
    analysis_parts,
    analysis_theory,
    style,
)


@pytest.fixture
def ax():
    return style.panels()[1][0]


@pytest.fixture(scope="module")
def signals():
    rng = np.random.default_rng(0)
    bursts = (rng.random((600, 6)) < 0.02) * 3.0 + 0.1 * rng.normal(size=(600, 6))
    x = np.concatenate([rng.normal(size=(600, 4)), bursts], 1)
    return x, np.array(["vip"] * 4 + ["scnn"] * 6)


def lines(ax) -> dict:
    return {line.get_label(): line.get_xydata() for line in ax.get_lines()}


def legend(ax) -> str:
    return "\n".join(t.get_text() for t in ax.get_legend().get_texts())


def texts(ax) -> str:
    return "\n".join(t.get_text() for t in ax.texts)


def finished(ax, returned) -> None:
    """The axis comes back with labels, and can be drawn."""
    assert returned is ax and ax.get_xlabel() and ax.get_ylabel()
    ax.figure.set_layout_engine("none")  # most of the time goes there
    ax.figure.canvas.draw()


def test_tuning_counts_every_neuron_and_tells_the_share(ax):
    d = np.array([-3.0, -0.4, 0.2, 0.9, np.nan, np.inf])
    finished(ax, analysis_figures.tuning_histogram(ax, {"cue": d}))
    assert "in 50% of n = 4 neurons" in legend(ax)
    assert ax.patches[0].get_path().vertices[:, 1].max() == 1


def test_null_has_its_value_p_and_n(ax):
    null = np.linspace(0, 1, 100)
    finished(ax, analysis_figures.null_histogram(ax, 2.0, null, 0.0099, xlabel="accuracy",
                                                 n="n = 7 animals", chance=0.5))  # fmt: skip
    assert "measured: 2, p = 0.0099 (n = 7 animals)" in legend(ax) and "chance: 0.5" in legend(ax)
    assert sum(p.get_height() for p in ax.patches) == 100


def test_a_cloud_puts_strong_values_on_top_and_keeps_the_rest_grey(ax):
    points = np.arange(8.0).reshape(4, 2)
    finished(ax, analysis_figures.cloud(ax, points, np.array([-2.0, 0.1, np.nan, 1.0]), label="d'",
                                        axes=("a", "b"), diverging=True))  # fmt: skip
    grey, drawn = ax.collections[:2]
    np.testing.assert_array_equal(grey.get_offsets(), points[[2]])
    np.testing.assert_array_equal(drawn.get_array(), [0.1, 1.0, -2.0])
    low, high = drawn.get_clim()
    assert low == -high and "n = 3 neurons" in ax.get_title("right")


def test_classes_and_their_coding_directions(ax):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(40, 2))
    index = np.repeat([-1, 0, 1, 1], 10)
    analysis_figures.classes(ax, points, index, ["left", "right"], axes=("one", "two"))
    angle = embeddings.coding_angle(points, points[:, 0], points[:, 1] - points[:, 0], draws=9)
    finished(ax, analysis_figures.coding_directions(ax, angle, ("cue", "choice")))
    assert "left (10)" in legend(ax) and "right (20)" in legend(ax)
    assert "n = 30 neurons" in ax.get_xlabel() and "angle 135°" in texts(ax)
    assert ax.get_aspect() == 1  # an angle is one only where both axes have one scale


@pytest.mark.parametrize("count", [2, 12, 20])
def test_confusion_is_in_per_cent_of_the_true_class(ax, count):
    counts = np.full((count, count), 1)
    counts[0] = [5] + [0] * (count - 1)
    made = classification.Classification(
        np.array([f"m{i}" for i in range(count)]), counts, 0.6, 1 / count, 0.5, np.ones(3) / count,
        0.02, 900, 900, 5, (),
    )  # fmt: skip
    finished(ax, analysis_figures.confusion(ax, made, what="animal", unit="neurons"))
    shown = ax.images[0].get_array()
    assert shown[0, 0] == 100 and shown[1, 1] == pytest.approx(100 / count)
    assert "balanced accuracy 0.60" in ax.get_title("left") and "n = 900" in ax.get_title("left")
    assert ("100" in texts(ax)) == (count == 2)


def test_dynamics_in_three_figures():
    truth = np.cumsum(np.random.default_rng(0).normal(size=(6, 9, 5)), 1)
    made = dynamics.dynamics(truth, {"calm": truth, "mean": 0 * truth}, components=4, shuffles=20)
    ax = style.panels()[1][0]
    finished(ax, analysis_figures.component_correlation(ax, made))
    np.testing.assert_allclose(lines(ax)["CalM: mean 1.00"][:, 1], 1)
    assert "6 windows, 54 frames" in ax.get_xlabel() and "test traces" in ax.get_xlabel()
    ax = style.panels()[1][0]
    finished(ax, analysis_figures.component_variance(ax, made))
    np.testing.assert_allclose([p.get_height() for p in ax.patches], 100 * made.share)
    ax = style.panels()[1][0]
    finished(ax, analysis_figures.trajectories(ax, made, ["calm"], trial=2))
    np.testing.assert_allclose(lines(ax)["recorded"], made.truth[2][:, :2])
    single = dynamics.dynamics(truth[:1], {"calm": truth[:1]}, components=1)
    ax = style.panels()[1][0]
    finished(ax, analysis_figures.component_correlation(ax, single))  # no null: still drawn


def test_autocorrelation_and_spectrum_by_group(signals):
    x, names = signals
    made = information.neuron_information(x, rate=10.0)
    ax = style.panels()[1][0]
    finished(ax, analysis_theory.autocorrelations(ax, made, names))
    line = lines(ax)["vip (n = 4)"]
    np.testing.assert_allclose(line[:, 1], made.autocorrelation[:, :4].mean(1))
    assert line[1, 0] == pytest.approx(0.1) and "(s)" in ax.get_xlabel()
    power = spectrum.power_spectrum(x, 10.0, segment=64)
    ax = style.panels()[1][0]
    finished(ax, analysis_theory.spectra(ax, power, names))
    line = lines(ax)["scnn (n = 6)"]
    np.testing.assert_allclose(line[:, 1], np.median(power.power[1:-1, 4:], 1))
    assert line[-1, 0] < 5 and "Hz" in ax.get_xlabel()


def test_values_by_group_and_the_composite_score(signals):
    x, names = signals
    made = information.neuron_information(np.column_stack([x, np.ones(600)]), rate=10.0)
    names = np.append(names, "vip")
    ax = style.panels()[1][0]
    finished_axis = analysis_theory.per_group(ax, made.fisher, names, xlabel="I", log=True)
    ax.figure.canvas.draw()
    assert finished_axis is ax and [t.get_text() for t in ax.get_yticklabels()] == [
        "scnn\nn = 6", "vip\nn = 4"]  # fmt: skip
    assert f"median {np.median(made.fisher[:4]):.3g}" in texts(ax)
    table = groups.compare(made, names)
    ax = style.panels()[1][0]
    assert analysis_theory.composite_score(ax, table) is ax
    width = np.array([p.get_width() for p in ax.patches]).reshape(len(table.factors), 2).sum(0)
    np.testing.assert_allclose(np.sort(width), np.sort(table.score))
    ax = style.panels()[1][0]
    limits = {"skewness": 3.5, "kurtosis": 22.6}
    finished(ax, analysis_theory.moments(ax, made, names, thresholds=limits))


def test_landscape_and_curriculum(signals):
    made = landscape.landscape(signals[0], grid=12)
    ax = style.panels()[1][0]
    finished(ax, analysis_theory.surface(ax, made))
    assert f"roughness (SD) {made.roughness:.3g}" in ax.get_title("left")
    assert "n = 600 frames of 10 neurons" in ax.get_title("left")
    curves = curriculum.curriculum(signals[0], components=3, repeats=2)
    ax = style.panels()[1][0]
    finished(ax, analysis_theory.learning_curves(ax, curves))
    drawn = next(v for k, v in lines(ax).items() if k.startswith("easy to hard"))
    np.testing.assert_allclose(drawn[:, 1], curves.skill["easy_to_hard"].mean(0))


def test_a_flat_landscape_can_be_drawn(ax):
    flat = np.zeros((6, 6))
    made = landscape.Landscape(np.arange(6.0), np.arange(6.0), flat, flat, np.ones((3, 2)),
                               np.ones(2) / 2, 0.0, np.nan, 0, 3, 2)  # fmt: skip
    finished(ax, analysis_theory.surface(ax, made))


def test_latent_spaces():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    made = {"a": latents.intrinsic_dimension(x), "b": latents.intrinsic_dimension(x[:40])}
    ax = style.panels()[1][0]
    assert analysis_latents.dimensions(ax, made) is ax
    assert f"{made['a'].value:.2f}" in texts(ax)
    kept = {"a": latents.temporal_neighbourhood(x), "b": latents.temporal_neighbourhood(x[:40])}
    ax = style.panels()[1][0]
    assert analysis_latents.neighbourhoods(ax, kept) is ax
    assert [p.get_width() for p in ax.patches] == pytest.approx([kept["a"].score, kept["b"].score])
    assert lines(ax)["chance"][0, 0] == pytest.approx(kept["a"].chance)
    ax = style.panels()[1][0]
    matrix = np.array([[1, 0.2], [0.2, np.nan]])
    assert analysis_latents.likeness(ax, matrix, ["a", "b"], label="CKA", n="n = 60") is ax
    assert texts(ax).split() == ["1.00", "0.20", "0.20"]
    ax.figure.canvas.draw()


@pytest.mark.parametrize("seeds", [1, 3])
def test_frozen_encoders(seeds):
    rng = np.random.default_rng(0)
    scores = {v: rng.normal(0.5, 0.05, seeds) for v in freezing.VARIANTS}
    made = freezing.freezing(scores)
    ax = style.panels()[1][0]
    assert analysis_latents.freezing_scores(ax, made, xlabel="SSIM") is ax
    assert [t.get_text() for t in ax.get_yticklabels()][1] == "all frozen"
    assert f"n = {seeds} seed" in ax.get_title("left") and ("p" in texts(ax)) == (seeds > 1)
    truth = rng.normal(size=(3, 16, 16))
    detail = {"none": freezing.detail(truth, truth), "all": freezing.detail(truth, 0.5 * truth)}
    ax = style.panels()[1][0]
    assert analysis_latents.spatial_detail(ax, detail) is ax
    assert [p.get_width() for p in ax.patches] == pytest.approx([1, 0.25, 1, 0.25])
    ax.figure.canvas.draw()


def test_categories_are_told_apart_by_more_than_colour():
    looks = {(analysis_parts.colour(i), analysis_parts.marker(i)) for i in range(30)}
    assert len(looks) == 30
    assert analysis_parts.p_text(0.0004) == "p < 0.001" and analysis_parts.p_text(0.5) == "p = 0.5"
