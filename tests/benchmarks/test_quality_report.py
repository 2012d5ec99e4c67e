"""The judge's arithmetic."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "quality" / "quality_report.py"


@pytest.fixture(scope="module")
def report():
    import sys

    spec = importlib.util.spec_from_file_location("quality_report", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["quality_report"] = module
    spec.loader.exec_module(module)
    return module


def line(contestant, seed, test, *, multiple=1.0, draw=0, validation=None, task="t", state="ok"):
    cell = {
        "task": task, "budget": "0.1%", "contestant": contestant, "seed": seed, "draw": draw,
        "multiple": multiple,
    }  # fmt: skip
    return {
        "cell": cell, "state": state, "validation": test if validation is None else validation,
        "test": test, "params": 10, "seconds": 1.0, "search_seconds": 0.5,
    }  # fmt: skip


def test_the_rate_is_best_by_mean_validation_and_draws_are_averaged(report):
    lines = [
        line("a", 0, 0.9, multiple=0.33, validation=0.7),
        line("a", 1, 0.99, multiple=0.33, validation=0.1),
        line("a", 0, 0.6, multiple=1.0, validation=0.5),
        line("a", 0, 0.8, multiple=1.0, draw=1, validation=0.1),
        line("a", 1, 0.5, multiple=1.0),
        line("a", 2, 0.4, multiple=1.0, validation=0.0),
        line("a", 3, 0.99, state="failed"),
    ]
    seeds = report.tabulate(lines)["t", "0.1%", "a"]
    assert {s: v.test for s, v in seeds.items()} == {0: pytest.approx(0.7), 1: 0.5, 2: 0.4}


def test_the_rate_is_chosen_on_the_seeds_that_the_grid_was_tried_at(report):
    grid = [(0.33, 0.5), (1.0, 0.6), (3.0, 0.7)]
    lines = [line("a", 0, 0.5, multiple=m, validation=v) for m, v in grid]
    lines += [line("a", 0, 0.9, multiple=9.0, validation=0.8)]
    assert report.tabulate(lines)["t", "0.1%", "a"][0].test == 0.9
    lines += [line("a", 1, 0.4, multiple=m, validation=1 - v) for m, v in grid]
    lines += [line("a", 2, 0.3, multiple=0.33, validation=1.0)]
    assert set(report.tabulate(lines)["t", "0.1%", "a"]) == {0, 1, 2}


def test_pairs_are_of_seeds_that_both_have(report):
    lines = [line("ours", s, 0.5 + 0.1 * s) for s in (0, 1, 2)]
    lines += [line("other", s, 0.5) for s in (0, 2, 3)]
    found = report.paired(report.tabulate(lines), ["t"], "0.1%", "ours", "other", "test")
    assert found == [[0.0, pytest.approx(0.2)]]


def test_the_interval_is_of_the_mean_over_tasks(report):
    assert report.interval([[0.1, 0.1], [0.3]]) == (pytest.approx(0.2), pytest.approx(0.2))
    low, high = report.interval([[0.0, 0.2], [0.0, 0.2]])
    assert low == pytest.approx(0.0) and high == pytest.approx(0.2)


def test_the_report_prints_and_draws(report, capsys, tmp_path):
    lines = [
        line(c, s, 0.5 + 0.1 * s, task=t) for c in ("ours", "x") for s in (0, 1) for t in "ab"
    ]
    report.report_on(lines, "ours", tmp_path / "plot.html")
    printed = capsys.readouterr().out
    assert "| 0.1% | `x` | a, b | +0.0 | +0.0 to +0.0 | 4 |" in printed
    assert "plotly" in (tmp_path / "plot.html").read_text()[:5000].lower()
