"""The pages: what they show, to whom, and that names are text."""

from __future__ import annotations

import html
import json
import re
import time
from dataclasses import replace

import pytest
import yaml

from sparsearch.config.reader import read_study
from sparsearch.results import Outcome, Store, StudySpec
from sparsearch.service.access import COOKIE
from sparsearch.service.launches.folder import End, make_launch
from sparsearch.service.pages.study_view import StudyViews
from tests.helpers.filled_study import CONFIG, fill, plan, run_left_out
from tests.service.conftest import READ, RUN

HTML = {"accept": "text/html"}
MARKUP = "</script><b id=x>&\"'"


def hash_of(url, study="first"):
    with Store.open(url, create=False) as store:
        return store.best(study=study, max_trainable_params="0.1%").structure.hash


def test_every_page_answers(client, filled_url):
    best = hash_of(filled_url)
    for path, words in {
        "/": "The best structure of each task",
        "/studies/first": "does not beat random",
        "/studies/first/trials": "trials of first",
        "/studies/first/trials/2": "Trial 2 of",
        f"/structures/{best}?study=first": "What stands where",
        "/compare": "best structures of two tasks",
        "/compare?first=first&second=second": "Mean and spread over seeds",
        f"/compare?first={best}&second={best}&study=first": "1 candidates are the same in both, 0 differ",
        "/compare?first=trec&second=trec": "Where they differ",
        "/places": "are on the front of their study",
        "/launch": "further settings",
        "/launch?clone=first": "Launch a study like first",
    }.items():
        answer = client.get(path, headers=HTML)
        assert answer.status_code == 200, path
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert words in answer.text or words in answer.text.replace("Trials", "trials"), path
        foreign = r"<script(?![^>]+src=)|\sstyle=|\son\w+=|https?://(?!www\.w3)"
        assert not re.search(foreign, answer.text), path


def test_figures_come_apart_single_seeds_on_demand(client):
    figures = "/studies/first/figures"
    means = client.get(f"{figures}/scores").json()
    assert [t["name"] for t in means["data"]] == ["random", "s3pet"]
    assert means["data"][1]["y"] == pytest.approx([0.81, 0.92])
    single = client.get(f"{figures}/scores?single=true").json()
    assert [t["name"] for t in single["data"]][1] == "random, single seeds"
    assert len(single["data"][1]["y"]) == 4 and single["data"][1]["visible"] is True
    intervals = client.get(f"{figures}/intervals").json()
    assert intervals["data"][0]["x"] == pytest.approx([-0.03, 0.03])
    assert client.get(f"{figures}/alpha?trial=0").status_code == 404


def test_trials_come_in_pages(client, filled_url):
    text = client.get("/studies/first/trials?after=9").text
    assert "/trials/10" in text and "/trials/9<" not in text


def test_what_a_finished_trial_changes_is_small(client):
    section = client.get("/studies/first/trials/3/section")
    assert '<section id="part-0">' in section.text and len(section.content) < 2000
    references = client.get("/studies/first/trials/0/section")
    assert '<section id="part-references">' in references.text and len(references.content) < 2000
    assert client.get("/studies/first/trials/99/section").status_code == 204


def test_errors_of_pages_are_pages(client):
    answer = client.get("/studies/nothing", headers=HTML)
    assert answer.status_code == 404 and "there is no study" in answer.text
    assert answer.text.startswith("<!doctype html>")
    assert client.get("/nothing", headers=HTML).text.startswith("<!doctype html>")
    assert client.get("/api/v1/studies/nothing", headers=HTML).json()["message"]


@pytest.mark.parametrize(
    "path",
    [
        "/studies/first/trials?after=" + "9" * 30,
        "/studies/first/trials?after=x",
        "/studies/first/trials/" + "9" * 30,
        "/studies/first/trials/-1",
        "/studies/first/trials/" + "9" * 30 + "/section",
        "/studies/first/figures/alpha?trial=" + "9" * 30,
        "/studies/first/figures/scores?axis=weight",
    ],
)
def test_numbers_that_none_has_are_refused(client, path):
    assert client.get(path).status_code == 422
    page = client.get(path, headers=HTML)
    assert page.status_code == 422 and page.text.startswith("<!doctype html>")


def test_the_list_shows_what_ended_before_it_began(client, tmp_path):
    """A launch of which the database knows nothing has its state in the list too."""
    broken = make_launch(tmp_path / "launches", "broken", {})
    broken.ask_to_stop()
    broken.finish(End(2, "its data is missing"))
    assert re.search(r'/studies/broken".*badge failed', client.get("/", headers=HTML).text)
    assert "its data is missing" in client.get("/studies/broken", headers=HTML).text
    finished = make_launch(tmp_path / "launches", "first", {})
    finished.finish(End(0))
    assert client.get("/", headers=HTML).text.count(">first</a>") == 2, "and best of its task"


def test_a_task_of_several_data_sets_is_not_one(client_of, tmp_path):
    url = f"sqlite:///{tmp_path / 'tasks.db'}"
    for name in ("one", "other"):
        data = json.loads(CONFIG) | {"task": {"data": {"path": name}}}
        fill(url, name, plan(), json.dumps(data))
    answer = client_of(db=url).get("/compare?first=trec&second=trec", headers=HTML)
    assert answer.status_code == 422 and "do not compare" in answer.text


def test_names_are_text(client_of, tmp_path):
    """Tasks, models, labels, messages and settings may hold anything."""
    url = f"sqlite:///{tmp_path / 'markup.db'}"
    config = json.dumps(json.loads(CONFIG) | {"labels": [MARKUP]})
    pairs = plan()
    failed = replace(pairs[2][1], state="failed", message=MARKUP, structure=None, measurements=())
    with Store.open(url, create=True) as store:
        trials = tuple(trial for trial, _ in pairs)
        store.begin_study(
            StudySpec("marked", config, MARKUP, MARKUP, "accuracy", 1_000_000, trials)
        )
        store.acquire("marked")
        for place, (trial, outcome) in enumerate(pairs):
            store.start("marked", trial.number)
            store.finish("marked", trial.number, failed if place == 2 else outcome)
        store.release("marked")
        best = store.best(study="marked", max_trainable_params="0.1%").structure.hash
    client = client_of(db=url)
    for path in ("/", "/studies/marked", "/studies/marked/trials", "/studies/marked/trials/2", "/places",
                 f"/structures/{best}", "/compare?first=marked&second=marked", "/launch?clone=marked",
                 f"/compare?first={best}&second={best}", "/api/v1/studies/marked/report"):  # fmt: skip
        text = client.get(path, headers=HTML).text
        assert "<b id=x>" not in text, path
    asked = client.get("/compare", params={"first": MARKUP, "second": "x"}, headers=HTML)
    assert asked.status_code == 404 and "<b id=x>" not in asked.text


def test_a_clone_is_the_study_that_was_launched(
    client_of, tmp_path, tiny_folder, tiny_data, study
):
    client = client_of(roots=(tiny_folder, tiny_data))
    page = client.get("/launch", headers=HTML).text
    fields = dict(
        re.findall(r'<input id="([^"]+)" name="[^"]+" type="text" value="([^"]*)"', page)
    )
    assert fields["name"] == "my-study" and len(fields) == 13
    for key in fields:
        value, *_ = (study,)
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        fields[key] = "" if value is None else yaml.safe_dump(value, default_flow_style=True)
    rest = {k: study[k] for k in study if k not in {f.split(".")[0] for f in fields}}
    own = ("data", "text", "label", "metric")
    rest |= {"task": {k: v for k, v in study["task"].items() if k not in own}}
    made = client.post("/launch/study", json={"fields": fields, "rest": yaml.safe_dump(rest)})
    assert made.json() == read_study(study)[0]
    unknown = client.post("/launch/study", json={"fields": {"seed": "1"}})
    assert unknown.status_code == 422 and "'seed'" in unknown.json()["problems"][0]
    wrong = client.post("/launch/study", json={"fields": {}, "rest": "a: ["})
    assert wrong.status_code == 422 and "not valid YAML" in wrong.json()["problems"][0]


@pytest.mark.parametrize(
    "text",
    ["label", "x # y", "1", "null", "a: b", "{a", " padded ", "", "no", "1e-3", "0o17", "1:30", "2020-01-01", "é",
     "[a", "a=b,c", "two\nlines", "'", '"', "- a", "true", "*a"],
)  # fmt: skip
def test_a_cloned_text_stays_that_text(client_of, tmp_path, text):
    url = f"sqlite:///{tmp_path / 'clone.db'}"
    data = {
        "path": "json",
        "data_files": {split: text for split in ("train", "validation", "test")},
    }
    settings = {
        "model": {"path": text, "revision": text},
        "task": {"data": data, "text": [text, "b"], "label": text, "title": text},
        "space": {"kinds": {"lora": {text: 1e-05}}},
        "budgets": [{"max_trainable_params": "0.01%"}],
        "search": {"strategy": "s3pet", "lr": 1e-05, "on": [text]},
    }
    fill(url, "first", plan(), json.dumps(settings))
    client = client_of(db=url)
    page = client.get("/launch?clone=first", headers=HTML).text
    found = re.findall(r'<input id="([^"]+)" name="[^"]+" type="text" value="([^"]*)"', page)
    fields = {key: html.unescape(value) for key, value in found}
    rest = re.search(r'<textarea id="rest"[^>]*>(.*?)</textarea>', page, re.S)[1]
    assert not any("\n" in value for value in fields.values()), "which a browser would leave out"
    body = {"fields": fields, "rest": html.unescape(rest)}
    made = client.post("/launch/study", json=body).json()
    assert {key: made[key] for key in settings} == settings


# Logging in


@pytest.fixture
def guarded(client_of):
    return client_of(address="10.0.0.9", read_token=READ, run_token=RUN)


def test_pages_send_who_has_no_token_to_the_form(guarded):
    answer = guarded.get("/studies/first", headers=HTML, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert guarded.get("/login").status_code == 200
    assert guarded.get("/static/style.css").status_code == 200
    assert guarded.get("/studies/first/figures/scores").status_code == 401


def test_a_session_reads_or_runs(guarded):
    origin = {"origin": "http://localhost:8642"}
    wrong = guarded.post("/login", json={"token": "x" * 20}, headers=origin)
    assert wrong.status_code == 403 and COOKIE not in wrong.cookies
    answer = guarded.post("/login", json={"token": READ}, headers=origin)
    cookie = answer.headers["set-cookie"]
    assert answer.status_code == 204 and READ not in cookie
    assert "httponly" in cookie.lower() and "samesite=strict" in cookie.lower()
    page = guarded.get("/studies/first", headers=HTML)
    assert page.status_code == 200 and "Delete" not in page.text and "Log out" in page.text
    assert guarded.get("/launch", headers=HTML).status_code == 403
    assert guarded.post("/api/v1/launches", json={}, headers=origin).status_code == 403
    guarded.post("/login", json={"token": RUN}, headers=origin)
    assert "Delete" in guarded.get("/studies/first", headers=HTML).text
    assert guarded.post("/api/v1/launches", json={}, headers=origin).status_code == 422
    without = guarded.post("/api/v1/launches", json={})
    assert without.status_code == 403, "a browser says which page it comes from"
    other = guarded.post("/api/v1/launches", json={}, headers={"origin": "http://elsewhere"})
    assert other.status_code == 403
    guarded.post("/logout", headers=origin)
    assert guarded.get("/api/v1/studies").status_code == 401


def test_sessions_end(guarded, monkeypatch):
    guarded.post("/login", json={"token": RUN}, headers={"origin": "http://localhost:8642"})
    assert guarded.get("/api/v1/studies").status_code == 200
    until, _, seal = guarded.cookies[COOKIE].partition(".")
    for forged in (f"{int(until) + 1}.{seal}", f"{until}.{seal[:-1]}0", f"{until}.", "", "²³.x"):
        answer = guarded.get("/api/v1/studies", headers={"cookie": f"{COOKIE}={forged}".encode()})
        assert answer.status_code in (200, 401) and (answer.status_code == 401 or forged.endswith(seal))  # fmt: skip
    later = time.time() + 13 * 3600
    monkeypatch.setattr("sparsearch.service.access.time.time", lambda: later)
    assert guarded.get("/api/v1/studies").status_code == 401


def test_links_stay_below_a_prefix(client_of):
    client = client_of(root_path="/search")
    text = client.get("/search/studies/first", headers=HTML).text
    links = re.findall(r'(?:href|src|data-action|data-figure-url)="(/[^"]*)"', text)
    assert links and all(link.startswith("/search/") for link in links)


def test_a_page_shows_what_a_race_left_out_and_then_ran_after_all(tmp_path):
    db, pairs = f"sqlite:///{tmp_path / 'raced.db'}", plan()
    trial, outcome = pairs[3]  # not the best, so that neither counts nor the best score tell
    fill(db, "raced", [*pairs[:3], (trial, Outcome("outraced")), *pairs[4:]])
    with Store.open(db, create=False) as store:
        views = StudyViews(store)
        before = views.of("raced")
        assert before.trials[3].state == "outraced"
        assert views.of("raced").summary is before.summary, "nothing new, nothing summed up again"
        run_left_out(db, "raced", 3, outcome)
        view = views.of("raced")
    assert (view.trials[3].state, view.trials[3].score) == ("ok", outcome.score("validation"))
    assert not any("not run" in f for b in view.summary.budgets for f in view.summary.findings(b))


def test_a_study_that_takes_the_name_of_a_deleted_one_is_summed_up_anew(tmp_path):
    db = f"sqlite:///{tmp_path / 'again.db'}"
    left_out = [(trial, Outcome("outraced")) for trial, _ in plan()]
    with Store.open(db, create=True) as store:
        views = StudyViews(store)
        for searched in ("s3pet", "random"):
            fill(db, "again", left_out, json.dumps({"search": {"strategy": searched}}))
            assert views.of("again").summary.searched == searched
            store.delete_study("again")
