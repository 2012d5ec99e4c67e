"""Studies, names and numbers that make no sense: refused with one body, never an error of the server's."""

from __future__ import annotations

import copy
import os
import random
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from sparsearch.service.app import make_app
from sparsearch.service.settings import ServiceSettings

API = "/api/v1"
COUNT = int(os.environ.get("SPARSEARCH_FUZZ", "150"))
VALUES = [
    None, True, False, 0, -1, 1, 2**70, -0.0, 1e308, "", " ", "x", "\x00", "\ud7ff", "0.01%", "-5%", "1e400%",
    "../..", "/etc/passwd", "pkg:os/..", "{}", "<b>&", "a" * 5000, [], [[]], [None], {}, {"": None}, {"a": {"b": []}},
]  # fmt: skip


REFUSED = (200, 400, 404, 405, 422)
ACCEPT = ("text/html", "application/json", "*/*")
FILES = ("a.jsonl", "b.csv", "c.parquet", "d.json")
FIELDS = ("name", "seeds", "budgets", "task.text", "task.data.data_files.train", "space")
QUESTIONS = {
    f"{API}/studies": ("cursor", "limit"),
    f"{API}/best": ("study", "model", "task", "limit"),
    "/": ("cursor",),
    "/compare": ("first", "second", "study"),
    "/places": ("model", "task"),
    "/launch": ("clone",),
}


def text(draw):
    """A name that nobody gives."""
    letters = "ab/.%\\ \x7f\u00e9*?#;:'\"<>{}[]&=,\n\x00\u2028"
    return "".join(draw.choice(letters) for _ in range(draw.randint(1, 30)))


def places(value, path=()):
    """Every place in a nested value."""
    yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(study, draw):
    """The study with one to three places replaced, removed or added to."""
    content = copy.deepcopy(study)
    for _ in range(draw.randint(1, 3)):
        *before, last = draw.choice([p for p in places(content) if p] or [("name",)])
        parent = content
        for key in before:
            parent = parent[key]
        what = draw.random()
        if what < 0.6 or isinstance(parent, list):
            parent[last] = copy.deepcopy(draw.choice(VALUES))
        elif what < 0.8:
            del parent[last]
        else:
            parent[draw.choice(["x", "", "path", "trust_remote_code", "db", "folder"])] = (
                draw.choice(VALUES)
            )
    return content


@pytest.mark.timeout(3600)
def test_no_study_is_a_servers_error(study, tmp_path, tiny_folder, tiny_data):
    draw = random.Random(0)
    url = f"sqlite:///{tmp_path / 'fuzz.db'}"
    settings = ServiceSettings(
        url, launches=tmp_path / "launches", roots=(tiny_folder, tiny_data), rate=0
    )
    statuses = set()
    with TestClient(make_app(settings), "http://localhost", client=("127.0.0.1", 1)) as client:
        for _ in range(COUNT):
            content = changed(study, draw)
            answer = client.post(f"{API}/plans", json=content)
            statuses.add(answer.status_code)
            assert answer.status_code in (200, 404, 422), (content, answer.text)
            if answer.status_code != 200:
                assert set(answer.json()) == {"error", "message", "hint", "problems"}
        for _ in range(COUNT):
            name, other = (text(draw) for _ in range(2))
            for path in (
                f"{API}/studies/{name}",
                f"{API}/structures/{name}",
                f"{API}/launches/{name}/log",
                f"{API}/studies/{name}/trials",
                f"/studies/{name}/trials/{other}",
                f"/studies/{name}/figures/scores",
                f"/structures/{name}",
                f"/static/{name}",
            ):
                answer = client.get(quote(path), headers={"accept": draw.choice(ACCEPT)})
                assert answer.status_code in REFUSED, path
            for path, keys in QUESTIONS.items():
                answer = client.get(path, params={key: text(draw) for key in keys})
                assert answer.status_code in REFUSED, (path, answer.request.url)
            body = draw.randbytes(draw.randint(0, 300)) if draw.random() < 0.5 else other.encode()
            sent = client.put(f"{API}/uploads/{draw.choice(FILES)}", content=body)
            assert sent.status_code in (*REFUSED, 201, 409), body
            filled = {"fields": {draw.choice(FIELDS): other}, "rest": name}
            assert client.post("/launch/study", json=filled).status_code in REFUSED, filled
        assert client.get(f"{API}/launches").json() == []
    assert 422 in statuses
    assert {p.name for p in settings.launches.iterdir()} <= {"uploads", "audit.jsonl"}
