"""What is drawn is what was given: values read back from the axes."""

import subprocess
import sys

import numpy as np
import pytest

from calm_jax.report import figures, style


@pytest.fixture
def ax():
    return style.panels()[1][0]


def drawn(ax) -> dict:
    return {line.get_label(): line.get_xydata() for line in ax.get_lines()}


def test_every_plot_gives_its_axis_back_and_has_labels(ax):
    step = np.arange(5.0)
    assert figures.loss_curve(ax, (step, step + 1), None) is ax
    assert ax.get_xlabel() and ax.get_ylabel()


def test_best_validation_is_marked_and_positive_losses_get_a_log_axis(ax):
    step, value = np.array([10.0, 20.0, 30.0]), np.array([5.0, np.nan, 1.0])
    figures.loss_curve(ax, (step, value), (step, value), reference=("copy last", 2.0))
    assert drawn(ax)["best 1 at step 30"].tolist() == [[30, 1]]
    assert ax.get_yscale() == "log"


@pytest.mark.parametrize("values", [[5.0, -1.0], [5.0, 4.0]])
def test_negative_or_narrow_losses_keep_a_linear_axis(ax, values):
    figures.loss_curve(ax, (np.arange(2.0), np.array(values)), None)
    assert ax.get_yscale() == "linear"


def test_for_an_accuracy_the_highest_is_best(ax):
    step, value = np.arange(3.0), np.array([0.1, 0.6, 0.5])
    figures.loss_curve(ax, None, (step, value), more_is_better=True)
    assert "best 0.6 at step 1" in drawn(ax) and ax.get_yscale() == "linear"


def test_moving_mean_leaves_out_what_is_not_known():
    value = np.array([1.0, np.nan, 3.0, 5.0])
    np.testing.assert_allclose(figures._moving_mean(value, 3), [1, 2, 4, 4])


def test_code_usage_is_sorted_in_per_cent_with_its_perplexity(ax):
    figures.code_usage(ax, {"test": np.array([0, 30, 10, 0])})
    line = drawn(ax)["test: 2 of 4 codes used, perplexity 2"]  # 2 ** H(3/4, 1/4) = 1.75
    np.testing.assert_allclose(line[:, 1], [75, 25, 0, 0])
    assert "even use, 25%" in drawn(ax)


def test_forecast_starts_one_frame_after_the_last_one_given(ax):
    context, truth = np.arange(10.0), np.array([10.0, 12.0])
    quantiles = np.array([[9, 9], [10, 11], [10, 12], [11, 13], [12, 14.0]])
    figures.forecast_example(
        ax, context, truth, truth + 1, rate=10.0, unit="z-score", quantiles=quantiles,
        levels=[0.1, 0.25, 0.5, 0.75, 0.9], baselines={"copy_last": np.array([9.0, 9.0])},
    )  # fmt: skip
    lines = drawn(ax)
    np.testing.assert_allclose(lines["CalM"], [[0.1, 11], [0.2, 13]])
    np.testing.assert_allclose(lines["recorded"][-3:], [[0, 9], [0.1, 10], [0.2, 12]])
    assert "copy last" in lines and lines["forecast origin"][0][0] == 0
    bands = {c.get_label(): c.get_paths()[0].vertices[:, 1] for c in ax.collections}
    assert set(bands) == {"80% interval", "50% interval"}
    assert (bands["80% interval"].min(), bands["80% interval"].max()) == (9, 14)
    assert (bands["50% interval"].min(), bands["50% interval"].max()) == (10, 13)
    assert ax.get_title("right") == "MSE 1.00"


def test_per_step_is_in_seconds_and_names_what_is_off_the_axis(ax):
    steps = np.array([5, 6, 7])
    level = {"calm": 0.3, "copy_last": 0.5, "mean": 5.0}
    curves = {m: (steps, v + 0.01 * steps, np.full((2, 3), v)) for m, v in level.items()}
    figures.per_step(ax, curves, rate=10.0, ylabel="MSE")
    lines = drawn(ax)
    np.testing.assert_allclose(lines["CalM"], [[0.5, 0.35], [0.6, 0.36], [0.7, 0.37]])
    assert len(lines["mean: 5.06, off axis"]) == 0 and len(lines["copy last"]) == 3
    assert len(ax.collections) == 2  # bands of ours and of the best baseline
    assert ax.get_ylim()[1] < 1 and "(s)" in ax.get_xlabel()


def test_the_band_is_the_range_of_few_sessions_and_the_middle_half_of_many():
    few = np.array([[1.0, np.nan], [3.0, np.nan]])
    low, high = figures.spread(few)
    np.testing.assert_array_equal([low, high], [[1, np.nan], [3, np.nan]])
    low, high = figures.spread(np.arange(101.0)[:, None])
    assert (low, high) == (25, 75)
    assert "range of n = 2" in figures.spread_text(2) and "half of n = 9" in figures.spread_text(9)


def test_histogram_counts_every_known_neuron(ax):
    r = np.array([-0.3, 0.1, 0.5, 0.999, np.nan])
    figures.neuron_histogram(ax, {"calm": r})
    assert "median 0.300, n = 4" in ax.get_legend().get_texts()[0].get_text()
    outline = ax.patches[0].get_xy()
    assert outline[:, 0].min() <= -0.3 and outline[:, 1].max() >= 1


def test_scatter_says_who_is_better(ax):
    x, y = np.array([0.5, 0.6, 0.7, np.nan]), np.array([0.6, 0.5, 0.8, 0.9])
    figures.neuron_scatter(ax, x, y, ("population_ridge", "calm"))
    assert ax.get_title("left") == "CalM better in 67% of n = 3 neurons"


def test_methods_keep_their_colour_and_are_told_apart():
    known = ["calm", "copy_last", "mean", "shared_linear", "population_ridge"]
    assert len({style.colour(m) for m in known}) == len(known)
    assert len({str(style.line(m)["linestyle"]) for m in known}) == len(known)
    assert style.colour("poco") == style.colour("poco") != style.colour("calm")
    assert style.label("calm_adapted") == "CalM, adapted" and style.own("calm_adapted")


def test_matplotlib_is_imported_only_to_draw():
    code = "import sys, calm_jax.report.page, calm_jax.report.console; "
    code += "assert not any(m.startswith('matplotlib') for m in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
