"""Phases: each second is counted once, where it was spent."""

from __future__ import annotations

import time

import pytest

from sparsearch.search.phases import phase, timed


def test_a_phase_within_another_takes_its_time_from_it():
    with timed() as seconds:
        with phase("training"):
            time.sleep(0.02)
            with phase("evaluation"):
                time.sleep(0.05)
        time.sleep(0.05)
    assert seconds["training"] == pytest.approx(0.02, abs=0.015)
    assert seconds["evaluation"] == pytest.approx(0.05, abs=0.015)
    assert set(seconds) == {"training", "evaluation"}


def test_times_within_others_are_their_own_and_untimed_phases_cost_nothing():
    with phase("training"), timed() as outer:
        with phase("loading"), timed() as inner, phase("training"):
            pass
        with pytest.raises(KeyError), phase("storing"):
            raise KeyError
    assert (set(inner), set(outer)) == ({"training"}, {"loading", "storing"})
