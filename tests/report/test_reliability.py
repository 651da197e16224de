"""The calibration figure shows what the rows say."""

import numpy as np

from calm_jax import rows
from calm_jax.report import reliability, style
from calm_jax.report.contents import read
from tests.report.synthetic import make_run


def test_shares_and_drawing(tmp_path):
    contents = read(make_run(tmp_path / "run"))
    found = reliability.shares(contents.rows, "B")
    calm = found["calm"]
    own = rows.select(contents.rows, protocol="B", method="calm", metric="coverage_80")
    (mean,) = [r["value"] for r in own if r["session"] is None and r["animal"] is None]
    assert calm[0, 1] == mean
    assert sorted(calm[1:, 1]) == sorted(r["value"] for r in own if r["session"])
    section = reliability.calibration(contents)
    assert [d.name for d in section.drawings] == ["calibration_A", "calibration_B"]
    assert f"80% interval holds {100 * mean:.1f}%" in section.drawings[1].caption
    with style.look():
        _, (ax,) = style.panels()
        reliability.reliability(ax, {"calm": calm})
    points = ax.containers[0].lines[0].get_ydata()
    np.testing.assert_allclose(points, 100 * calm[0] - [50, 80, 95])


def test_rows_without_quantiles_are_named_as_missing(tmp_path):
    contents = read(make_run(tmp_path / "run"))
    left = [r for r in contents.rows if not r["metric"].startswith("coverage")]
    contents.rows[:] = left
    section = reliability.calibration(contents)
    assert not section.drawings and "no scored quantiles" in section.missing[0]
