"""Events of studies that were launched elsewhere: another process writes them while they are watched."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sparsearch.results import Outcome, Store
from sparsearch.service.launches.folder import End, make_launch
from sparsearch.service.study_events import StudyWatches, told_by
from tests.helpers.filled_study import fill, plan, run_left_out
from tests.helpers.served import served

API = "/api/v1"

WRITER = """
import sys, time
from sparsearch.results import Store, StudySpec
from tests.helpers.filled_study import CONFIG, plan
pairs = plan()
trials = tuple(trial for trial, _ in pairs)
with Store.open(sys.argv[1], create=True) as store:
    store.begin_study(StudySpec("slow", CONFIG, "toy", "trec", "accuracy", 1_000_000, trials))
    store.acquire("slow")
    print(len(pairs), flush=True)
    for trial, outcome in [*pairs[::2], *pairs[1::2]]:  # not in the order of their numbers
        time.sleep(0.4)
        store.start("slow", trial.number)
        store.finish("slow", trial.number, outcome)
    store.release("slow")
"""


def events_of(lines):
    """Each event as its id, its name and its data, as soon as it is there."""
    fields = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if line:
            fields[name] = value
        elif "event" in fields:
            yield fields["id"], fields["event"], json.loads(fields["data"])
            fields = {}


def watch(client, most=None, **headers):
    """Events of a study, at most so many: then the client goes away."""
    found = []
    with client.stream("GET", "/studies/slow/events", headers=headers) as answer:
        assert answer.status_code == 200
        for event in events_of(answer.iter_lines()):
            found.append(event)
            if len(found) == most:
                break
    return found


def watch_with_breaks(client):
    """Go away after each second event, and come back."""
    found = []
    while not found or found[-1][1] != "idle":
        headers = {"last-event-id": found[-1][0]} if found else {}
        found += watch(client, 2, **headers)
    return found


def test_a_study_of_another_process_is_watched_and_nothing_comes_twice(tmp_path):
    db = f"sqlite:///{tmp_path / 'slow.db'}"
    Store.open(db, create=True).close()
    with served(db, tmp_path / "launches") as client:
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, db], stdout=subprocess.PIPE, text=True
        )
        count = int(writer.stdout.readline())
        with ThreadPoolExecutor(2) as pool:
            whole, broken = (pool.submit(w, client) for w in (watch, watch_with_breaks))
            whole, broken = whole.result(90), broken.result(90)
        assert writer.wait(30) == 0
        stored = client.get("/studies/slow/trials").json()["items"]
        again = watch(client, **{"last-event-id": whole[-2][0]})
    assert [e[1] for e in whole] == ["finished"] * count + ["idle"]
    told = [data["trial"] for _, name, data in whole if name == "finished"]
    assert sorted(told) == list(range(count)) and told != sorted(told)
    assert [data for _, _, data in broken if "trial" in data] == [e[2] for e in whole[:-1]]
    by_number = {trial["number"]: trial for trial in stored}
    for _, _, data in whole[:-1]:
        trial = by_number[data["trial"]]
        for name in ("state", "score", "trainable_params", "structure", "seconds", "message"):
            assert data[name] == trial[name]
    assert whole[-1][0] == f"t0-{count - 1}"
    assert whole[-1][2]["finished"] == count and whole[-1][2]["owner"] is None
    assert again == whole[-1:]


def test_a_trial_that_a_race_left_out_is_told_again_once_it_has_run(tmp_path):
    db, pairs = f"sqlite:///{tmp_path / 'raced.db'}", plan()
    trial, outcome = pairs[3]
    fill(db, "slow", [*pairs[:3], (trial, Outcome("outraced")), *pairs[4:]])
    with served(db, tmp_path / "launches") as client:
        before = watch(client)
        run_left_out(db, "slow", 3, outcome)
        after = watch(client, **{"last-event-id": before[-2][0]})
    assert [data["state"] for _, _, data in before if data.get("trial") == 3] == ["outraced"]
    told = [(data["trial"], data["state"], data["score"]) for _, _, data in after[:-1]]
    assert told == [(3, "ok", outcome.score("validation"))]


def test_a_study_that_was_launched_here_has_the_events_of_its_launch(
    client_of, filled_url, study, tmp_path
):
    launch = make_launch(tmp_path / "launches", "first", study)
    with Store.open(filled_url, create=False) as store:
        launch.begin(store.find_study("first"))
    launch.tell("opened", study="first")
    for trial, outcome in plan():
        launch.tell("finished", trial=trial.number, state=outcome.state)
    launch.finish(End(0))
    client = client_of()
    asked = [client.get(f"{API}/{path}/first/events") for path in ("studies", "launches")]
    assert asked[0].text == asked[1].text and "event: opened" in asked[0].text
    in_database = client.get(f"{API}/studies/first/events", headers={"last-event-id": "t"})
    assert in_database.text.count("event: finished") == 12, "who came with such an id goes on"
    assert client.get(f"{API}/studies/sec/events").text.count("event: finished") == 12


@pytest.mark.parametrize("wrong", ["x", "5", "t0-", "t1.", "t0-999999999", "0-5"])
def test_ids_that_are_none_are_refused(client, wrong):
    answer = client.get(f"{API}/studies/first/events", headers={"last-event-id": wrong})
    assert answer.status_code == 422 and "Last-Event-ID" in answer.json()["message"]


def test_no_study_no_events(client):
    assert client.get(f"{API}/studies/none/events").status_code == 404


@pytest.mark.parametrize(
    ("text", "numbers"), [("t", set()), ("t3", {3}), ("t0-2.5.7-8", {0, 1, 2, 5, 7, 8})]
)
def test_an_id_says_which_trials_were_told(text, numbers):
    assert told_by(text) == numbers


def test_streams_of_a_study_share_what_is_read(filled_url):
    class Counting:
        asked = 0

        def __init__(self, store):
            self.store = store

        def progress(self, study, above):
            self.asked += 1
            return self.store.progress(study, above)

    async def look_often(counting):
        watches = StudyWatches(counting)
        with watches.watching("first") as one, watches.watching("first") as other:
            assert one is other
            await asyncio.gather(*(one.look() for _ in range(50)))
            return len(one.arrived)

    with Store.open(filled_url, create=False) as store:
        counting, started = Counting(store), time.monotonic()
        assert asyncio.run(look_often(counting)) == 12
        assert counting.asked <= 1 + time.monotonic() - started
