"""Studies that go on without their launch: nothing old is told of them."""

from __future__ import annotations

import json
import re

import pytest

from sparsearch.results import Store, Trial
from sparsearch.service.launches.folder import End, find_launch, make_launch
from sparsearch.service.launches.of_study import tells_all
from tests.helpers.filled_study import SMALL, fill, plan, run_left_out

EVENTS, HTML = "/api/v1/studies/first/events", {"accept": "text/html"}


@pytest.fixture
def db(tmp_path):
    return f"sqlite:///{tmp_path / 'launched.db'}"


@pytest.fixture
def launched(db, tmp_path):
    """A study that a driver has run to its end, which may be a failure."""

    def run(pairs=(), end=None):
        pairs = pairs or plan()
        launch = make_launch(tmp_path / "launches", "first", {})
        launch.tell("checked")
        study = fill(db, "first", pairs)
        launch.begin(study)
        launch.tell("opened", study="first")
        for trial, outcome in pairs:
            launch.tell("finished", trial=trial.number, state=outcome.state)
        launch.finish(end or End(0))
        return launch

    return run


def delete(db):
    with Store.open(db, create=True) as store:
        store.delete_study("first")


def grow(db):
    """What `sparsearch run` does with a further seed."""
    trial, outcome = plan()[-1]
    with Store.open(db, create=True) as store:
        store.acquire("first")
        store.add_trial("first", Trial(12, trial.strategy, SMALL, 7))
        store.start("first", 12)
        store.finish("first", 12, outcome)
        store.release("first")


def finished(text):
    """The trials that a stream says have finished, and whether it is the launch's."""
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    told = [e["trial"] for e in events if e.get("event") == "finished"]
    return told, "event: opened" in text


def test_a_study_that_a_command_line_continued_is_told_to_its_end(launched, client_of, db):
    launch, client = launched(), client_of(db=db)
    assert finished(client.get(EVENTS).text) == (list(range(12)), True)
    places = [place for place, event in launch.events_after(0) if event["event"] == "finished"]
    grow(db)
    assert finished(client.get(EVENTS).text) == (list(range(13)), False)
    again = client.get(EVENTS, headers={"last-event-id": str(places[9])})
    assert finished(again.text) == ([10, 11, 12], False), "who had the launch's events goes on"
    wrong = client.get(EVENTS, headers={"last-event-id": str(places[9] + 1)})
    assert wrong.status_code == 422


def test_a_study_that_another_driver_holds_is_told_by_the_database(launched, db):
    launch = launched()
    with Store.open(db, create=True) as store:
        assert tells_all(launch, store.find_study("first"), store)
        store.acquire("first")
        assert not tells_all(launch, store.find_study("first"), store)
        store.release("first")


def test_a_trial_that_ran_after_all_is_told(launched, client_of, db):
    pairs = plan()
    trial, outcome = pairs[3]
    left_out = type(outcome)("outraced")
    launched([*pairs[:3], (trial, left_out), *pairs[4:]])
    client = client_of(db=db)
    assert finished(client.get(EVENTS).text)[1]
    run_left_out(db, "first", 3, outcome)
    text = client.get(EVENTS).text
    assert not finished(text)[1] and "outraced" not in text


def test_a_study_under_a_deleted_ones_name_is_not_told_of_it(launched, client_of, db):
    launch = launched(end=End(1, "its data is missing"))
    delete(db)
    client = client_of(db=db)
    assert client.get(EVENTS).status_code == 404
    fill(db, "first", plan()[:2])
    assert finished(client.get(EVENTS).text) == ([0, 1], False)
    old = {"last-event-id": str(launch.tail(0))}
    assert finished(client.get(EVENTS, headers=old).text) == ([0, 1], False)
    shown = client.get("/studies/first", headers=HTML).text
    assert "its data is missing" not in shown
    assert "Clone and change" in shown and "Continue" not in shown and "data-log" not in shown
    launch.queue()
    shown = client_of(db=db).get("/studies/first", headers=HTML).text
    assert "Stop" in shown and "data-log" in shown, "asked to run, it runs this one"


def test_a_launch_under_a_deleted_ones_name_tells_of_its_own_study(launched, client_of, db):
    launched()
    delete(db)
    launch = launched(plan()[:2])
    text = client_of(db=db).get(EVENTS).text
    assert finished(text) == ([0, 1], True) and text.count("event: checked") == 1
    launch.queue()
    with Store.open(db, create=False) as store:
        assert launch.begins(store.find_study("first")) < launch.begins(None), (
            "continued, all is told"
        )


def test_a_failure_stands_until_the_study_goes_on(launched, client_of, db, tmp_path):
    launched(end=End(1, "its data is missing"))
    with Store.open(db, create=True) as store:
        store.add_trial("first", Trial(13, "random", SMALL, 8))  # so that it is unfinished

    def shown():
        client = client_of(db=db)  # a new one has no answers that are kept
        page, listed = (client.get(path, headers=HTML).text for path in ("/studies/first", "/"))
        badges = [re.search(r'class="badge (\w+)"', text)[1] for text in (page, listed)]
        return "its data is missing" in page, badges

    assert shown() == (True, ["failed", "failed"])
    grow(db)
    assert shown() == (False, ["unfinished", "unfinished"])
    assert find_launch(tmp_path / "launches", "first").state == "failed"
