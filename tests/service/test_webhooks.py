"""Receivers of webhooks: real little HTTP servers, some of them slow, down or hostile."""

from __future__ import annotations

import base64
import hmac
import json
import logging
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fastapi.testclient import TestClient

from sparsearch.errors import ConfigError
from sparsearch.service.app import make_app
from sparsearch.service.launches import webhooks
from sparsearch.service.launches.folder import UNTOLD, End, find_launch, make_launch
from sparsearch.service.settings import ServiceSettings
from tests.helpers.waiting import until
from tests.service.conftest import RUN

API = "/api/v1"
KEY = b"a key of more than 24 bytes"
SECRET = f"whsec_{base64.b64encode(KEY).decode()}"


class Receiver:
    """Keeps what it is sent; ``answers`` are statuses, one after the other, the last one for ever."""

    def __init__(self, *answers):
        self.answers, self.got, self.over = list(answers or (204,)), [], threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):  # noqa: N802 - the library's name
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.got.append((self.path, dict(self.headers), body))
                answers = receiver.answers
                status = answers.pop(0) if len(answers) > 1 else answers[0]
                if status == "hang":
                    receiver.over.wait(60)
                elif isinstance(status, tuple):
                    time.sleep(status[1])
                    self.send_response(204)
                    self.end_headers()
                elif status != "close":
                    self.send_response(status)
                    self.send_header("location", f"{receiver.url}/elsewhere")
                    self.end_headers()

            do_GET = do_POST  # noqa: N815 - a redirect that is followed becomes one

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *raised):
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


def settings_of(tmp_path, *receivers, **more):
    urls = tuple(f"{r.url}/T0/very-secret" for r in receivers)
    url = f"sqlite:///{tmp_path / 'told.db'}"
    return ServiceSettings(url, launches=tmp_path / "launches", webhooks=urls, **more)


@contextmanager
def serving(settings):
    with TestClient(make_app(settings), "http://localhost", client=("127.0.0.1", 1)) as client:
        yield client


def left(settings):
    return list(settings.launches.glob(f"*/{UNTOLD}/*"))


def test_a_finished_study_is_told_signed_and_once(study, tmp_path, tiny_folder, tiny_data):
    with Receiver() as receiver:
        settings = settings_of(
            tmp_path,
            receiver,
            roots=(tiny_folder, tiny_data),
            webhook_secret=SECRET,
        )
        with serving(settings) as client:
            client.post(f"{API}/launches", json=study | {"baselines": ["head"], "budgets": [600]})
            until(lambda: receiver.got, 150)
            stored = client.get(f"{API}/studies/tiny").json()
            until(lambda: not left(settings))
        with serving(settings):
            time.sleep(1.5)
    ((path, headers, body),) = receiver.got
    assert path == "/T0/very-secret"
    told = json.loads(body)
    assert told.pop("ended_at") and told.pop("delivery") == headers["webhook-id"]
    assert told == {
        "study": "tiny",
        "state": "finished",
        "code": 0,
        "message": "",
        "hint": "",
        "finished_trials": stored["trials"],
        "best_score": stored["best_score"],
    }
    stamped = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.digest(KEY, stamped, "sha256")).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 200


def test_what_ended_while_no_server_lived_is_told(study, tmp_path):
    """Also by a receiver that dies before it answers, where only the id says that it was told before."""
    with Receiver("close", 204) as receiver:
        settings = settings_of(tmp_path, receiver)
        make_launch(settings.launches, "tiny", study).finish(End(1, "it broke", "mend it"))
        with serving(settings):
            until(lambda: not left(settings))
    told = [json.loads(body) for _, _, body in receiver.got]
    assert [(t["state"], t["code"], t["message"], t["hint"]) for t in told] == [
        ("failed", 1, "it broke", "mend it")
    ] * 2
    assert len({t["delivery"] for t in told}) == 1
    assert (told[0]["finished_trials"], told[0]["best_score"]) == (None, None)
    assert "webhook-signature" not in receiver.got[0][1]


def test_a_study_that_is_given_up_is_told_and_each_end_of_one_that_is_continued(study, tmp_path):
    with Receiver() as receiver:
        settings = settings_of(tmp_path, receiver)
        launch = make_launch(settings.launches, "tiny", study)
        launch.finish(End(1, "first"))
        launch.queue()
        for _ in range(5):
            launch.count_start()
        with serving(settings):
            until(lambda: len(receiver.got) == 2)
    told = [json.loads(body) for _, _, body in receiver.got]
    assert {t["message"] for t in told} == {"first", "its driver was killed 5 times"}
    assert len({t["delivery"] for t in told}) == 2


def test_a_stopped_study_is_not_told_and_without_receivers_nothing_is_kept(study, tmp_path):
    launch = make_launch(tmp_path / "launches", "tiny", study)
    launch.finish(End(130, "stopped"))
    assert not left(settings_of(tmp_path))
    launch.finish(End(0))
    assert left(settings_of(tmp_path))
    with serving(settings_of(tmp_path)):
        until(lambda: not left(settings_of(tmp_path)))


def test_no_receiver_delays_another_or_learns_of_it(study, tmp_path, monkeypatch, caplog):
    """One hangs, one redirects, one is down: the last one is told at once, and no log names a path."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(webhooks, "_PAUSES", (0.1, 0.1))
    with Receiver("hang") as slow, Receiver(307) as moved, Receiver() as well:
        with Receiver() as down:
            pass
        settings = settings_of(tmp_path, slow, moved, down, well)
        started = time.monotonic()
        make_launch(settings.launches, "tiny", study).finish(End(0))
        with serving(settings) as client:
            until(lambda: well.got)
            assert time.monotonic() - started < 5
            assert client.get(f"{API}/launches/tiny").json()["state"] == "finished"
            gone = until(lambda: [r for r in caplog.messages if "given up after 3" in r][1:])
            assert len(gone) == 1
        assert time.monotonic() - started < 9, "the slow one does not keep the server"
    assert [path for path, _, _ in moved.got] == ["/T0/very-secret"] * 3, "not followed"
    assert len(well.got) == 1
    assert len(left(settings)) == 4, "all but the slow one are marked"
    ours = [r for r in caplog.records if not r.name.startswith("httpcore")]
    assert not [r for r in ours if "very-secret" in r.getMessage()]
    assert any(moved.url in message for message in caplog.messages)
    assert find_launch(settings.launches, "tiny").end == End(0)


def test_a_receiver_has_the_ten_seconds_that_are_promised(study, tmp_path):
    """HTTP clients have shorter limits of their own: this one's is five."""
    with Receiver(("late", 6)) as receiver:
        settings = settings_of(tmp_path, receiver)
        make_launch(settings.launches, "tiny", study).finish(End(0))
        with serving(settings):
            until(lambda: not left(settings), 30)
    assert len(receiver.got) == 1


def test_a_folder_that_cannot_be_read_for_a_moment_ends_no_deliveries(
    study, tmp_path, monkeypatch, caplog
):
    notices, failures = webhooks.Webhooks._notices, [OSError(24, "Too many open files")]

    def fails_once(self):
        if failures:
            raise failures.pop()
        return notices(self)

    monkeypatch.setattr(webhooks.Webhooks, "_notices", fails_once)
    with Receiver() as receiver:
        settings = settings_of(tmp_path, receiver)
        make_launch(settings.launches, "tiny", study).finish(End(0))
        with serving(settings):
            until(lambda: not left(settings))
    assert len(receiver.got) == 1
    assert [m for m in caplog.messages if m.endswith(": Too many open files")]


def test_what_was_told_and_cannot_be_noted_is_not_told_again(study, tmp_path, monkeypatch):
    monkeypatch.setattr(webhooks, "_NOTE_SECONDS", 0.1)
    note, failures = webhooks.Webhooks._note, [OSError(28, "No space left on device")] * 2

    def fails_twice(self, *files):
        if failures:
            raise failures.pop()
        note(self, *files)

    monkeypatch.setattr(webhooks.Webhooks, "_note", fails_twice)
    with Receiver() as receiver:
        settings = settings_of(tmp_path, receiver)
        make_launch(settings.launches, "tiny", study).finish(End(0))
        with serving(settings):
            until(lambda: not left(settings))
    assert len(receiver.got) == 1 and not failures


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("ftp://host/very-secret", "write it like https://HOST/PATH"),
        ("https:///very-secret", "write it like"),
        ("file:///very-secret", "write it like"),
        ("https://me:pa55@host/very-secret", "it holds a user or a password"),
        ("https://me@host/very-secret", "it holds a user"),
        ("https://host:port/very-secret", "it is no URL"),
    ],
)
def test_urls_of_other_kinds_are_refused_and_not_repeated(url, problem):
    with pytest.raises(ConfigError, match=f"webhook 2: {problem}") as caught:
        ServiceSettings("sparsearch.db", webhooks=("https://host/path", url))
    assert "very-secret" not in str(caught.value) and "pa55" not in str(caught.value)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_c2hvcnQ=", f"whsec_{'?' * 40}", RUN * 3])
def test_secrets_that_sign_nothing_are_refused(secret):
    with pytest.raises(ConfigError, match="SPARSEARCH_WEBHOOK_SECRET is not whsec_") as caught:
        ServiceSettings("sparsearch.db", webhook_secret=secret)
    assert len(secret) < 8 or secret not in str(caught.value)


def test_neither_urls_nor_the_secret_are_shown():
    shown = repr(
        ServiceSettings("a.db", webhooks=("https://host/very-secret",), webhook_secret=SECRET)
    )
    assert "very-secret" not in shown and SECRET not in shown
