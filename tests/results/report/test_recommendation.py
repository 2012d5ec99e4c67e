"""The cheapest strategy that is not beaten, by what a budget limits."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from sparsearch.results.records import StudyRecord, TrialRecord
from sparsearch.results.report.summary import summarise
from tests.helpers.filled_study import CONFIG

STUDY = StudyRecord(
    *("study", "model", "trec", "accuracy", 1_000_000, "{}"),
    *(datetime(2026, 1, 1, tzinfo=UTC), None, 4, 4, 0.9),
)
PARAMS = {"max_trainable_params": 100, "text": "0.01%"}
BYTES = {"max_bytes": 9084, "text": "0.01% bytes"}
COSTS = {"s3pet": (90, 9000), "lora-qv@4": (95, 400), "bitfit": (20, 500), "head": (0, 0)}


def summarised(budget, **scores):
    """What is said of strategies and their scores at one budget, one a seed."""
    trials = []
    for strategy, listed in scores.items():
        name = strategy.replace("_", "-").replace("-4", "@4")
        params, stored = COSTS[name]
        for seed, score in enumerate(listed):
            record = TrialRecord(
                *("study", len(trials), name, seed, budget, "ok", "", score),
                *(score, f"{len(trials):064x}", params, 7, 1.0, 1.5, 2**30, 1),
            )
            trials.append(replace(record, stored_bytes=stored))
    (found,) = summarise(replace(STUDY, config=CONFIG), trials).budgets
    return found


def recommended(budget, **scores):
    return summarised(budget, **scores).recommended


@pytest.mark.parametrize(
    ("budget", "cheapest"),
    [
        (PARAMS, "bitfit (20 trained parameters, validation 0.8867"),
        (BYTES, "lora-qv@4 (400 stored bytes, validation 0.8900"),
    ],
)
def test_it_is_the_cheapest_of_those_whose_interval_includes_zero(budget, cheapest):
    scores = {
        "s3pet": [0.9, 0.88, 0.91],
        "lora_qv_4": [0.89, 0.87, 0.91],
        "bitfit": [0.9, 0.9, 0.86],
    }
    (line,) = recommended(budget, **scores)
    assert line.startswith(f"cheapest that is not beaten: {cheapest}")
    assert "the best mean is s3pet's, 0.8967 for 9" in line


def test_what_is_beaten_is_not_named():
    (line,) = recommended(BYTES, s3pet=[0.9, 0.88, 0.91], lora_qv_4=[0.8, 0.79, 0.82])
    assert line == "cheapest that is not beaten: s3pet (9,000 stored bytes, validation 0.8967)"


def test_with_one_seed_the_mean_decides():
    (line,) = recommended(BYTES, s3pet=[0.9], bitfit=[0.9], lora_qv_4=[0.89])
    assert line.startswith("cheapest that is not beaten: bitfit (500 stored bytes")


def test_both_limits_have_a_line_and_others_none():
    scores = {"s3pet": [0.9, 0.8], "bitfit": [0.9, 0.8], "lora_qv_4": [0.9, 0.8]}
    first, second = recommended(BYTES | PARAMS, **scores)
    assert "lora-qv@4" in first and "bitfit" in second
    assert recommended({"max_inference_flops": 0.75, "text": "75%"}, **scores) == ()
    assert recommended(BYTES, s3pet=[0.9, 0.8]) == (), "nothing to choose from"


def test_a_seed_that_failed_for_a_rival_alone_does_not_speak_for_it():
    """The worst seed of the searched strategy is one that its rival has no score of."""
    scores = {"s3pet": [0.92, 0.90, 0.91, 0.6], "lora_qv_4": [0.85, 0.84, 0.85]}
    (line,) = recommended(BYTES, **scores)
    assert line.startswith("cheapest that is not beaten: s3pet (9,000 stored bytes")
    found = summarised(BYTES, **scores)
    assert found.verdict == (
        "s3pet beats lora-qv@4, the best other strategy, at 0.01% bytes by 0.0633 over the 3 seeds that both have; "
        "means over all seeds, 4 and 3, are 0.8325 and 0.8467"
    )


def test_a_cheaper_one_that_is_level_with_it_is_named_all_the_same():
    scores = {
        "s3pet": [0.92, 0.90, 0.91, 0.6],
        "lora_qv_4": [0.85, 0.84, 0.85],
        "bitfit": [0.92, 0.89, 0.92, 0.6],
    }
    (line,) = recommended(BYTES, **scores)
    assert "bitfit (500 stored bytes" in line and "lora" not in line
