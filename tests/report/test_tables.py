"""Rows to tables, against numbers worked out by hand."""

import io
import math

import numpy as np
from rich.console import Console

from calm_jax.report import tables
from calm_jax.report.console import print_summary
from calm_jax.rows import averaged, row


def rows_of(values: dict, protocol: str = "B", metric: str = "mse") -> list:
    """values[method] = one number per session; sessions 0 and 1 are of the same animal."""
    animals = ("x", "x", "y")
    return [
        row(protocol, method, metric, v, session=f"s{i}", animal=animals[i])
        for method, per_session in values.items()
        for i, v in enumerate(per_session)
    ]


def test_means_go_over_sessions_then_animals_and_the_best_is_marked():
    rows = rows_of({"copy_last": [0.4, 0.6, 1.0], "calm": [0.2, 0.4, 0.5]})
    rows += rows_of({"copy_last": [0.1, 0.1, 0.1], "calm": [0.5, 0.7, math.nan]}, metric="r")
    rows += rows_of({"calm": [9, 8, 7]}, metric="n_neurons")
    rows += rows_of({"calm": [1, 2, 3]}, metric="n_constant")
    ours, copy = tables.summarise(averaged(rows))
    assert (ours.method, copy.method) == ("calm", "copy_last")  # by MSE
    assert ours.cells["mse"].value == (0.3 + 0.5) / 2
    assert np.isclose(copy.cells["mse"].value, (0.5 + 1.0) / 2)
    assert np.isclose(ours.cells["mse"].sd, np.std([0.2, 0.4, 0.5], ddof=1))
    assert ours.cells["mse"].best and not copy.cells["mse"].best
    assert np.isclose(ours.cells["r"].value, 0.6) and ours.cells["r"].best
    assert (ours.neurons, ours.constant, ours.sessions) == (24, 6, 3)
    assert ours.constant_share == 0.2 and ours.constant_text == "20.0%"
    assert math.isnan(copy.constant_share) and ours.cells["skill"].text == "–"


def test_all_that_reads_alike_is_best_and_a_single_method_is_not():
    a, b, c = tables.summarise(rows_of({"calm": [0.3001], "mean": [0.3004], "copy_last": [0.4]}))
    assert [x.cells["mse"].best for x in (a, b, c)] == [True, True, False]
    (only,) = tables.summarise(rows_of({"calm": [0.3]}))
    assert not only.cells["mse"].best


def test_a_method_without_an_error_comes_last():
    lines = tables.summarise(rows_of({"mean": [math.nan], "calm": [0.3], "copy_last": [0.4]}))
    assert [x.method for x in lines] == ["calm", "copy_last", "mean"]


def test_seeds_are_averaged_and_steps_keep_their_order():
    rows = []
    for seed, shift in ((0, 0.0), (1, 2.0)):
        for step in (7, 5, 6):
            for i, session in enumerate(("s0", "s1")):
                where = {"session": session, "animal": "x", "seed": seed, "step": step}
                rows.append(row("A", "calm", "mse", step + 10 * i + shift, **where))
    rows = [r for r in rows if not (r["session"] == "s1" and r["step"] == 7)]
    steps, mean, sessions = tables.by_step(averaged(rows), "A", "mse")["calm"]
    np.testing.assert_array_equal(steps, [5, 6, 7])
    np.testing.assert_allclose(sessions, [[6, 7, 8], [16, 17, np.nan]])
    np.testing.assert_allclose(mean, [11, 12, 8])
    assert tables.by_step(rows, "B", "mse") == {}


def test_reconstruction_rows_are_split_into_part_and_metric():
    rows = rows_of({"calm_tokenizer": [0.9, 0.7, 0.6]}, "tokenizer", "test_pearson")
    rows += rows_of({"calm_tokenizer": [10, 20, 30]}, "tokenizer", "test_codes_used")
    found = tables.reconstruction_table(averaged(rows))
    assert np.isclose(found["test", None]["pearson"], (0.8 + 0.6) / 2)
    assert found["test", "s1"] == {"pearson": 0.7, "codes_used": 20}
    assert tables.summarise(rows) == []


def test_the_console_shows_methods_best_numbers_and_what_was_left_out():
    rows = rows_of({"copy_last": [0.4], "calm": [0.25], "population_ridge": [0.3]})
    rows += rows_of({"calm": [3]}, metric="n_constant") + rows_of({"calm": [9]}, metric="n_neurons")
    rows += rows_of({"calm_tokenizer": [0.971]}, "tokenizer", "test_pearson")
    out = io.StringIO()
    print_summary(rows, Console(file=out, width=100))
    text = out.getvalue()
    assert "protocol B" in text and "population ridge" in text and "0.250" in text
    assert "1 session, 9 neurons; 3 constant or all but silent traces (25.0%) left out" in text
    assert "0.971" in text
    bold = io.StringIO()
    print_summary(rows, Console(file=bold, width=100, force_terminal=True, color_system="standard"))
    assert "\x1b[1m0.250" in bold.getvalue() and "\x1b[1m0.300" not in bold.getvalue()
