"""Drivers: leases, attempts, many at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from sparsearch.errors import LeaseError
from sparsearch.results.store.store import Store
from sparsearch.results.store.writing.lease import Owner
from sparsearch.spaces.ranking import Ranking
from sparsearch.testing.store_conformance.samples import (
    _at_once,
    _dead_process,
    sample_outcome,
    sample_study,
)
from sparsearch.testing.store_reference import check_answers

__all__ = ["LeasesConformance"]


class LeasesConformance:
    """Drivers: leases, attempts, many at once."""

    def test_many_create_at_once(self, store_url: str) -> None:
        """The database and the same study; nobody fails."""

        def create(number: int) -> None:
            with Store.open(store_url, create=True) as store:
                store.begin_study(sample_study("shared", 3))
                store.begin_study(sample_study(f"own-{number}", 1))

        _at_once(create, 6)
        with Store.open(store_url, create=False) as store:
            assert {s.name: s.trials for s in store.studies()} == {
                "shared": 3,
                **{f"own-{number}": 1 for number in range(6)},
            }

    def test_many_write_at_once(self, store: Store, store_url: str) -> None:
        """Outcomes of one study and of two, with equal structures and rankings: all are stored."""
        for name in ("a", "b"):
            store.begin_study(sample_study(name, 24))

        def write(number: int) -> None:
            with Store.open(store_url, create=True) as own:
                for trial in range(number, 24, 4):
                    for name in ("a", "b") if number % 2 else ("b", "a"):
                        ranking = (f"key-{trial // 4}", Ranking((0.5,), "s3pet", 0))
                        outcome = sample_outcome(trial % 5, 1 + trial % 3)
                        own.start(name, trial)
                        own.finish(name, trial, replace(outcome, ranking=ranking))

        _at_once(write, 4)
        assert [(s.trials, s.finished) for s in store.studies()] == [(24, 24)] * 2
        check_answers(store)

    def test_second_driver_is_refused(self, store: Store, other: Store) -> None:
        """It learns who holds the study; the same process may acquire again."""
        store.begin_study(sample_study())
        other.acquire("study")
        with pytest.raises(LeaseError, match="another-machine:4711, whose lease ends at 2"):
            store.acquire("study")
        other.acquire("study")
        other.renew("study")
        assert store.find_study("study").owner == "another-machine:4711"

    def test_lease_ends(self, store: Store, other: Store) -> None:
        """By release, or, on another machine, by time; who lost it is told when it renews."""
        store.begin_study(sample_study())
        store.acquire("study")
        store.release("study")
        other.acquire("study", lease_seconds=-1)
        store.acquire("study")
        with pytest.raises(LeaseError, match="lost"):
            other.renew("study")
        other.release("study")
        store.renew("study")

    def test_who_lost_the_lease_writes_nothing(self, store: Store, other: Store) -> None:
        """Its trials are another driver's now, finished or not."""
        store.begin_study(sample_study())
        other.acquire("study", lease_seconds=-1)
        other.start("study", 0, "old")
        store.acquire("study")
        store.start("study", 0, "new")
        before = store.trials("study"), store.attempts("study")
        late: list[Callable[[], None]] = [
            lambda: other.finish("study", 0, sample_outcome()),
            lambda: other.start("study", 1, "old"),
            lambda: other.retry("study", 0, "lost", "gone"),
            lambda: other.add_late("study", 0, "old", sample_outcome()),
        ]
        for write in late:
            with pytest.raises(LeaseError, match="is lost, held by"):
                write()
        assert (store.trials("study"), store.attempts("study")) == before
        store.finish("study", 0, sample_outcome())

    def test_a_live_process_on_this_machine_keeps_its_lease(
        self, store: Store, other: Store
    ) -> None:
        """However long it loads or measures without a renewal."""
        store.begin_study(sample_study())
        store.acquire("study", lease_seconds=-1)
        with pytest.raises(LeaseError, match=str(Owner.current())):
            other.acquire("study")
        store.renew("study")

    def test_resume_queues_again_what_a_dead_driver_left(
        self, store: Store, store_url: str
    ) -> None:
        """Its lease is free at once; finished trials stay, attempts add up."""
        store.begin_study(sample_study(trials=3))
        with Store.open(store_url, create=True, owner=_dead_process()) as dead:
            dead.acquire("study")
            dead.finish("study", 0, sample_outcome())
            dead.start("study", 1)
        store.acquire("study")
        assert [t.number for t in store.queued("study")] == [1, 2]
        store.start("study", 1)
        assert [t.attempts for t in store.trials("study")] == [0, 2, 0]

    def test_attempts_are_remembered(self, store: Store) -> None:
        """Who tried, how it ended, and what came too late; progress moves the deadline."""
        store.begin_study(sample_study())
        store.acquire("study")
        store.start("study", 0, "worker 1", attempt_seconds=-1)
        (first,) = store.attempts("study")
        assert (first.state, first.deadline < first.started_at) == ("running", True)
        store.renew("study", progressed=[1])
        assert store.attempts("study") == (first,)
        store.renew("study", progressed=[0])
        assert store.attempts("study")[0].deadline > first.started_at
        store.retry("study", 0, "lost", "its worker died")
        assert store.trials("study")[0].state == "queued"
        store.start("study", 0, "worker 2")
        store.finish("study", 0, sample_outcome(0.5))
        before = store.trials("study")[0]
        store.add_late("study", 0, "worker 1", sample_outcome(0.25))
        assert [(a.number, a.worker, a.state) for a in store.attempts("study")] == [
            (1, "worker 1", "lost"),
            (2, "worker 2", "ok"),
            (3, "worker 1", "late"),
        ]
        assert all(a.ended_at is not None for a in store.attempts("study"))
        assert "validation 0.25" in store.attempts("study")[2].message
        assert store.trials("study")[0] == replace(before, attempts=3)

    def test_a_driver_is_asked_to_stop(self, store: Store, other: Store) -> None:
        """Asking ends with the lease; the next driver does not hear of it."""
        store.begin_study(sample_study())
        other.acquire("study")
        assert store.ask_to_stop("study") == "another-machine:4711"
        assert other.stop_asked("study")
        other.release("study")
        assert not other.stop_asked("study")
        assert store.ask_to_stop("study") is None
        assert not store.stop_asked("study")

    def test_stopping_frees_what_a_dead_driver_held(self, store: Store, store_url: str) -> None:
        """Its lease is gone, and what it ran is queued."""
        store.begin_study(sample_study())
        with Store.open(store_url, create=True, owner=_dead_process()) as dead:
            dead.acquire("study")
            dead.start("study", 0, "w")
        assert store.ask_to_stop("study") is None
        assert store.find_study("study").owner is None
        assert [t.state for t in store.trials("study")] == ["queued", "queued"]
        assert [a.state for a in store.attempts("study")] == ["interrupted"]
