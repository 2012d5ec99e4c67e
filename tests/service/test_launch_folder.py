"""The folder of a launch: what is written, and read back from a place on."""

from __future__ import annotations

import asyncio
import json
import os

import pytest

from sparsearch.errors import NotFoundError
from sparsearch.service.launches import driver
from sparsearch.service.launches.driver_runner import driver_environment
from sparsearch.service.launches.folder import End, find_launch, launches, make_launch
from sparsearch.service.routes.launches import _stream


def full_disk(value, file):
    file.write("{")
    raise OSError(28, "No space left on device")


def test_a_launch_that_cannot_be_written_leaves_its_name_free(tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(json, "dump", full_disk)
        make_launch(tmp_path, "mine", {"seeds": [0]})
    assert launches(tmp_path) == [] and not [p for p in tmp_path.rglob("*") if p.is_file()]
    with pytest.raises(NotFoundError):
        find_launch(tmp_path, "mine")
    assert make_launch(tmp_path, "mine", {"seeds": [0]}).state == "queued"


def test_a_launch_that_cannot_be_queued_again_stays_as_it_ended(tmp_path, monkeypatch):
    launch = make_launch(tmp_path, "mine", {"seeds": [0]})
    launch.finish(End(1, "its data is missing"))
    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(json, "dump", full_disk)
        make_launch(tmp_path, "mine", {"seeds": [1]})
    assert (launch.state, launch.request["study"]) == ("failed", {"seeds": [0]})
    make_launch(tmp_path, "mine", {"seeds": [1]})
    assert (launch.state, launch.request["study"]) == ("queued", {"seeds": [1]})


@pytest.mark.parametrize("path", ["launches", "studies"])
def test_an_id_beyond_the_end_is_refused_before_the_first_event_too(client_of, tmp_path, path):
    launch = make_launch(tmp_path / "launches", "mine", {})
    launch.ask_to_stop()  # else a driver would begin
    client = client_of()
    events = f"/api/v1/{path}/mine/events"
    for wrong in ("5", "99999999999999999999"):
        answer = client.get(events, headers={"last-event-id": wrong})
        assert answer.status_code == 422 and "Last-Event-ID" in answer.json()["message"]
    assert "event: idle" in client.get(events, headers={"last-event-id": "0"}).text
    launch.tell("checked")
    assert client.get(events, headers={"last-event-id": "5"}).status_code == 422


def test_the_stream_of_a_launch_ends_where_it_is_deleted(tmp_path):
    told = []

    async def watch():
        async for event in _stream(launch, 0):
            told.append(event)
            launch.forget()

    launch = make_launch(tmp_path, "mine", {})
    launch.tell("checked")
    asyncio.run(watch())
    assert len(told) == 1 and "event: checked" in told[0]


@pytest.mark.parametrize("character", ["é", "€", "😀"])
def test_no_piece_of_a_log_cuts_a_character(tmp_path, character):
    launch = make_launch(tmp_path, "mine", {})
    text = "a" * 65_535 + character * 70_000 + "\n"
    launch.log.write_text(text, "utf-8")
    place, pieces = 0, []
    while not pieces or pieces[-1]:
        piece, place = launch.log_after(place)
        pieces.append(piece)
    assert "".join(pieces) == text and place == len(text.encode())


def test_what_is_no_text_in_a_log_is_passed_over(tmp_path):
    launch = make_launch(tmp_path, "mine", {})
    launch.log.write_bytes(b"\xff" * 65_536 + b"a\xe2\x82")
    assert launch.log_after(0) == ("\ufffd" * 65_536, 65_536)
    assert launch.log_after(65_536) == ("a", 65_537), "the rest may still come"
    with launch.log.open("ab") as log:
        log.write(b"\xac")
    assert launch.log_after(65_537) == ("€", 65_540)


def test_a_study_of_which_no_trial_succeeds_ends_as_its_command_does(study, tmp_path, monkeypatch):
    (tmp_path / "sad_metric.py").write_text("def score(p, r):\n    raise ValueError('no score')\n")
    monkeypatch.syspath_prepend(tmp_path)
    task = study["task"] | {"metric": "sad_metric:score"}
    content = study | {"task": task, "baselines": ["head"], "budgets": [600], "race": False}
    launch = make_launch(tmp_path / "launches", "tiny", content)
    end = driver._run(launch, f"sqlite:///{tmp_path / 'sad.db'}")
    assert end == End(1, "no trial of study tiny succeeded", "sparsearch trials tiny says why")
    assert end.state == "failed"


def test_a_driver_finds_what_a_relative_python_path_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["mine", "/theirs"]))
    found = driver_environment("sqlite:///x.db")["PYTHONPATH"].split(os.pathsep)
    assert found == [str(tmp_path / "mine"), "/theirs"]
