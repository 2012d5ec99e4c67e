"""Studies launched over HTTP: real drivers in processes of their own, killed and stopped on the way."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import pytest
from fastapi.testclient import TestClient

from sparsearch.results import Store
from sparsearch.service.app import make_app
from sparsearch.service.launches.folder import find_launch, make_launch
from sparsearch.service.settings import ServiceSettings
from sparsearch.workers.study import run
from tests.helpers.served import served
from tests.helpers.waiting import until
from tests.service.conftest import READ, RUN

API = "/api/v1"


@pytest.fixture
def settings(tmp_path, tiny_folder, tiny_data, monkeypatch):
    """The database's path starts in this folder, which is not the one that drivers run in."""
    monkeypatch.chdir(tmp_path)
    roots = (tiny_folder, tiny_data)
    return ServiceSettings("sqlite:///launched.db", launches=tmp_path / "launches", roots=roots)


@contextmanager
def serving(settings, **headers):
    near = ("127.0.0.1", 1)
    with TestClient(
        make_app(settings), "http://localhost", client=near, headers=headers
    ) as client:
        yield client


def state(client):
    return client.get(f"{API}/launches/tiny").json()["state"]


def drivers(settings):
    """The processes of a launch; what they begin has their command line too, until it has one of its own."""
    folder = str(find_launch(settings.launches, "tiny").folder)
    found = [
        process
        for process in psutil.process_iter(["cmdline", "ppid"])
        if folder in (process.info["cmdline"] or ())
    ]
    begun = {process.pid for process in found}
    return [process for process in found if process.info["ppid"] not in begun]


def rows(db):
    with Store.open(db, create=False) as store:
        return [
            (t.number, t.strategy, t.budget, t.seed, t.state, t.score, t.test_score, t.structure)
            for t in store.trials("tiny")
        ]


def events_of(client, **headers):
    """All events until the study is over, each with its id."""
    with client.stream("GET", f"{API}/launches/tiny/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = "".join(answer.iter_text())
    found = []
    for block in filter(None, text.split("\n\n")):
        fields = dict(
            line.split(": ", 1) for line in block.splitlines() if not line.startswith(":")
        )
        if fields:
            found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


def test_a_study_survives_the_server_and_the_driver(study, settings, tmp_path, monkeypatch):
    """Both are killed in the middle: the next server has the study finished, every trial once."""
    monkeypatch.setenv("SPARSEARCH_RUN_TOKEN", RUN)
    whole = f"sqlite:///{tmp_path / 'whole.db'}"
    run(study, whole)
    roots = [option for root in settings.roots for option in ("--root", str(root))]
    with served(settings.db, settings.launches, *roots, end=signal.SIGKILL) as client:
        client.headers["authorization"] = f"Bearer {RUN}"
        plan = client.post("/plans", json=study).json()
        assert (plan["trials"], plan["seconds"]) == (len(rows(whole)), None)
        assert [b["budget"]["max_trainable_params"] for b in plan["budgets"]] == [200, 600]
        answer = client.post("/launches", json=study)
        assert answer.status_code == 202 and answer.json()["state"] == "queued"
        twice = client.post("/launches", json=study)
        assert twice.status_code == 409 and "already" in twice.json()["message"]
        events = find_launch(settings.launches, "tiny").events
        until(lambda: events.exists() and '"event": "started"' in events.read_text())
        (driver,) = drivers(settings)
    assert driver.is_running(), "it outlives the server"
    assert all(RUN not in value for value in driver.environ().values())
    os.kill(driver.pid, signal.SIGKILL)
    assert find_launch(settings.launches, "tiny").end is None
    with serving(settings) as client:
        until(lambda: state(client) == "finished")
        assert rows(settings.db) == rows(whole)
        told = events_of(client)
        by_study, by_launch = (
            client.get(f"{API}/{of}/tiny/events") for of in ("studies", "launches")
        )
        assert by_study.text == by_launch.text, "its driver noted the study"
        finished = [event["trial"] for _, name, event in told if name == "finished"]
        assert sorted(finished) == [row[0] for row in rows(whole)], "each once"
        assert [name for _, name, _ in told][-2:] == ["ended", "idle"]
        middle = told[len(told) // 2]
        assert events_of(client, **{"Last-Event-ID": str(middle[0])}) == told[len(told) // 2 + 1 :]
        assert max(len(json.dumps(event)) for _, _, event in told) < 2000
        for wrong in ("x", "1", "999999999"):
            asked = client.get(f"{API}/launches/tiny/events", headers={"Last-Event-ID": wrong})
            assert asked.status_code == 422
        assert client.get(f"{API}/launches/tiny").json()["starts"] == 2
        plan = client.post(f"{API}/plans", json=study).json()
        assert plan["seconds"] > 0 and plan["seconds_from"] == plan["trials"]


def test_a_study_is_stopped_and_continued(study, settings):
    longer = study | {
        "train": study["train"] | {"epochs": 5000},
        "baselines": [],
        "budgets": [200],
    }
    with serving(settings) as client:
        client.post(f"{API}/launches", json=longer)
        until(lambda: any(t.state == "running" for t in trials(settings)))
        assert client.post(f"{API}/launches/tiny/stop").json()["state"] in ("running", "stopped")
        until(lambda: state(client) == "stopped")
        assert {t.state for t in trials(settings)} == {"queued"}
        assert client.post(f"{API}/launches/tiny/continue").json()["state"] == "queued"
        until(lambda: state(client) == "running" and drivers(settings))
        busy = client.delete(f"{API}/studies/tiny", params={"confirm": "tiny"})
        assert busy.status_code == 409 and "stop it first" in busy.json()["hint"]
        client.post(f"{API}/launches/tiny/stop")
        until(lambda: state(client) == "stopped")
        for confirm, status in (({}, 422), ({"confirm": "tin"}, 422), ({"confirm": "tiny"}, 204)):
            assert client.delete(f"{API}/studies/tiny", params=confirm).status_code == status
        assert client.get(f"{API}/studies").json()["items"] == []
        assert client.get(f"{API}/launches").json() == []
    lines = (settings.launches / "audit.jsonl").read_text().splitlines()
    noted = [json.loads(line) for line in lines]
    actions = ["launch", "stop", "continue", "stop", "delete"]
    assert [line["action"] for line in noted] == actions
    assert {(line["study"], line["address"]) for line in noted} == {("tiny", "127.0.0.1")}


def trials(settings):
    try:
        with Store.open(settings.db, create=False) as store:
            return store.trials("tiny")
    except Exception:
        return ()


def test_what_fails_says_why(study, settings):
    """A driver that cannot begin: the study in the database is another one."""
    run(study | {"baselines": [], "budgets": [200]}, settings.db)
    with serving(settings) as client:
        client.post(f"{API}/launches", json=study | {"space": {"kinds": {"bitfit": {}}}})
        until(lambda: state(client) == "failed")
        end = client.get(f"{API}/launches/tiny").json()["end"]
        assert end["code"] == 1 and "tiny" in end["message"] and end["hint"]
        log = client.get(f"{API}/launches/tiny/log").json()
        assert end["message"].splitlines()[0] in log["text"]
        rest = client.get(f"{API}/launches/tiny/log", params={"offset": log["next"]}).json()
        assert rest == {"text": "", "next": log["next"]}
        far = client.get(f"{API}/launches/tiny/log", params={"offset": 10**30})
        assert far.status_code == 422


def test_a_launch_that_never_began_is_deleted_too(study, settings):
    make_launch(settings.launches, "tiny", study).ask_to_stop()
    with serving(settings) as client:
        assert state(client) == "stopped"
        gone = client.delete(f"{API}/studies/tiny", params={"confirm": "tiny"})
        assert gone.status_code == 204
        gone = client.delete(f"{API}/studies/tiny", params={"confirm": "tiny"})
        assert gone.status_code == 404
    assert '"action": "delete"' in (settings.launches / "audit.jsonl").read_text()


def test_many_may_ask_at_once_whether_a_driver_lives(study, settings):
    launch = make_launch(settings.launches, "tiny", study)
    with ThreadPoolExecutor(8) as pool:
        assert not any(pool.map(lambda _: launch.is_running, range(4000)))
    with launch.lock.acquire():
        assert launch.is_running


@pytest.mark.parametrize("path", ["/plans", "/launches"])
@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"model": {"path": "/etc"}}, "model.path '/etc' is in no allowed folder"),
        ({"model": {"path": "owner/name"}}, "sparsearch serve --allow-hub"),
        ({"model": {"path": "pkg:os.path/x"}}, "write pkg:PACKAGE/FOLDER"),
        ({"budgets": []}, "budgets"),
        ({"modle": {}}, "modle: unknown key"),
    ],
)
def test_every_problem_is_named_and_nothing_is_queued(study, settings, path, changed, problem):
    with serving(settings) as client:
        answer = client.post(f"{API}{path}", json=study | changed | {"seeds": ["x"]})
        assert answer.status_code == 422
        problems = "\n".join(answer.json()["problems"])
        assert problem in problems and "seeds" in problems
        assert client.get(f"{API}/launches").json() == []


def test_a_reading_token_runs_nothing(study, settings, tmp_path):
    guarded = ServiceSettings(
        settings.db,
        launches=settings.launches,
        roots=settings.roots,
        read_token=READ,
        run_token=RUN,
    )
    posts = ("/plans", "/launches", "/launches/tiny/stop", "/launches/tiny/continue")
    for token, status in ((None, 401), (READ, 403)):
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        with serving(guarded, **headers) as client:
            for path in posts:
                body = study if path in posts[:2] else None
                assert client.post(f"{API}{path}", json=body).status_code == status, path
            gone = client.delete(f"{API}/studies/tiny", params={"confirm": "tiny"})
            assert gone.status_code == status
    assert not list(settings.launches.iterdir())


def test_a_body_that_is_too_large_is_refused_whatever_it_says(settings):
    def pieces():
        for _ in range(30):
            yield b" " * 100_000

    with serving(settings) as client:
        for content in (b" " * 1_000_001, pieces()):
            answer = client.post(f"{API}/launches", content=content)
            assert answer.status_code == 413 and "1,000,000 bytes" in answer.json()["message"]
        assert client.post(f"{API}/launches", content=b"[" * 900_000).status_code == 422
