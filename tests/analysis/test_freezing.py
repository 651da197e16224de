"""Scores over seeds against scipy; detail of known images."""

import numpy as np
import pytest
from scipy import ndimage, stats

from calm_jax.analysis import freezing as fr
from calm_jax.errors import AnalysisError


def test_blocks_of_every_variant():
    for depth in (3, 4, 6, 7):
        thirds = [fr.frozen_blocks(depth, v) for v in ("first", "middle", "last")]
        np.testing.assert_array_equal(np.sum(thirds, 0), 1)  # each block in one third
        sizes = [int(t.sum()) for t in thirds]
        assert max(sizes) - min(sizes) <= 1 and thirds[0][0] and thirds[2][-1]
        assert fr.frozen_blocks(depth, "all").all() and not fr.frozen_blocks(depth, "none").any()
    with pytest.raises(AnalysisError, match="three blocks"):
        fr.frozen_blocks(2, "middle")
    with pytest.raises(AnalysisError, match="unknown variant"):
        fr.frozen_blocks(6, "outer")


def test_intervals_and_paired_tests_equal_scipy():
    rng = np.random.default_rng(0)
    scores = {"none": rng.normal(0.6, 0.02, 3), "all": rng.normal(0.5, 0.02, 3)}
    made = fr.freezing(scores)
    known = stats.ttest_rel(scores["all"], scores["none"])
    assert made.p[1] == pytest.approx(known.pvalue) and np.isnan(made.p[0])
    low, high = stats.t.interval(0.95, 2, scores["all"].mean(), stats.sem(scores["all"]))
    assert (made.low[1], made.high[1]) == (pytest.approx(low), pytest.approx(high))
    half = 4.303 * stats.sem(scores["none"])  # the t quantile for three seeds
    assert made.high[0] - made.mean[0] == pytest.approx(half, rel=1e-3)
    assert made.difference[1] == pytest.approx(np.mean(scores["all"] - scores["none"]))


def test_one_seed_gives_means_alone():
    made = fr.freezing({"none": [0.6], "first": [0.4]})
    assert made.difference[1] == pytest.approx(-0.2)
    assert np.isnan(made.p).all() and np.isnan(made.low).all()
    with pytest.raises(AnalysisError, match="numbers of seeds"):
        fr.freezing({"none": [0.6, 0.5], "first": [0.4]})
    with pytest.raises(AnalysisError, match="none and another"):
        fr.freezing({"all": [0.6], "first": [0.4]})


def test_detail_of_blurred_and_of_unrelated_images():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(4, 32, 48))
    same = fr.detail(truth, truth)
    assert [same.energy_low, same.energy_high, same.coherence_high] == pytest.approx([1, 1, 1])
    blurred = fr.detail(truth, ndimage.gaussian_filter(truth, (0, 1.5, 1.5), mode="wrap"))
    assert blurred.energy_low > 0.4 > 0.1 > blurred.energy_high
    other = fr.detail(truth, rng.normal(size=truth.shape))
    assert other.energy_high == pytest.approx(1, abs=0.1) and abs(other.coherence_high) < 0.1
    brighter = fr.detail(truth, truth + 3)  # the mean of an image is left out
    assert brighter.energy_low == pytest.approx(1)


def test_gratings_fall_on_their_side_of_the_cutoff():
    x = np.arange(32)
    slow, quick = (np.tile(np.cos(2 * np.pi * f * x / 32), (1, 32, 1)) for f in (2, 12))
    made = fr.detail(slow + quick, 0.5 * slow + 2 * quick, cutoff=0.25)
    assert (made.energy_low, made.energy_high) == (pytest.approx(0.25), pytest.approx(4))
    with pytest.raises(AnalysisError, match="one side of the cutoff"):
        fr.detail(np.zeros((1, 8, 8)), np.zeros((1, 8, 8)))
    with pytest.raises(AnalysisError, match="another shape"):
        fr.detail(slow, slow[0])


def test_latents_that_did_not_move_and_latents_that_did():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 5))
    made = fr.representation_change(x, {"all": 2 * x, "none": rng.normal(size=(60, 8))})
    assert made["all"].cka == pytest.approx(1) and made["all"].procrustes == pytest.approx(0)
    assert made["none"].cka < 0.5 and made["none"].procrustes > 0.5
    assert made["all"].before == pytest.approx(made["all"].after)
    few = fr.representation_change(x[:8], {"all": x[:8]})["all"]
    assert np.isnan(few.before) and few.cka == pytest.approx(1)
