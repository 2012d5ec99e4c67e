"""Answers that are kept for a moment: made once, for those who may see them, gone when something changes."""

from __future__ import annotations

import asyncio
import gzip

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from sparsearch.service.answer_cache import AnswerCache
from sparsearch.service.settings import ServiceSettings
from tests.service.conftest import READ, RUN

TEXT = "words " * 1000


class Asked:
    """An application that counts how often it is asked, and how long it takes."""

    def __init__(self, tmp_path, **tokens):
        self.asked, self.now, self.takes = [], 0.0, 0.0
        routes = [
            Route("/page", self.page, methods=["GET", "POST"]),
            Route("/study/events", self.page),
            Route("/missing", self.missing),
            Route("/stream", self.stream),
            Route("/breaks", self.breaks),
        ]
        inner = Starlette(routes=routes)
        inner.state.settings = ServiceSettings(f"sqlite:///{tmp_path}/x.db", **tokens)
        inner.add_middleware(AnswerCache, clock=lambda: self.now)
        self.app = inner
        self.client = TestClient(inner, client=("127.0.0.1", 1), raise_server_exceptions=False)

    async def page(self, request):
        self.asked.append(request.url.path)
        self.now += self.takes
        await asyncio.sleep(0.01)
        return PlainTextResponse(f"{len(self.asked)} {TEXT}")

    async def missing(self, request):
        self.asked.append("missing")
        return PlainTextResponse("no", 404)

    async def stream(self, request):
        self.asked.append("stream")
        return StreamingResponse(iter(["a", "b"]))

    async def breaks(self, request):
        self.asked.append("breaks")
        raise RuntimeError("broken")


@pytest.fixture
def asked(tmp_path):
    return Asked(tmp_path)


def test_an_answer_is_made_once_a_second(asked):
    first, second = (asked.client.get("/page") for _ in range(2))
    assert first.text == second.text and first.text.startswith("1 ")
    asked.now = 1.5
    assert asked.client.get("/page").text.startswith("2 ")
    assert asked.client.get("/page?a=1").text.startswith("3 "), "another question"


@pytest.mark.parametrize(("takes", "kept"), [(0.1, 5.0), (3.0, 10.0)])
def test_what_took_long_is_kept_for_longer(asked, takes, kept):
    asked.takes = takes
    asked.client.get("/page")
    asked.now = takes + kept - 0.1
    assert asked.client.get("/page").text.startswith("1 ")
    asked.now = takes + kept + 0.1
    assert asked.client.get("/page").text.startswith("2 ")


def test_who_asks_meanwhile_waits_for_the_same_answer(asked):
    async def ask():
        from httpx2 import ASGITransport, AsyncClient

        transport = ASGITransport(asked.app, client=("127.0.0.1", 1))
        async with AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await asyncio.gather(*(client.get("/page") for _ in range(20)))

    answers = asyncio.run(ask())
    assert asked.asked == ["/page"] and {a.status_code for a in answers} == {200}


def test_many_questions_do_not_fill_the_memory(asked, monkeypatch):
    monkeypatch.setattr("sparsearch.service.answer_cache._MOST", 3)
    for number in (0, 1, 2, 3, 3, 0):
        asked.client.get(f"/page?{number}")
    assert len(asked.asked) == 5, "the first one is gone"


def test_a_change_empties_it(asked):
    asked.client.get("/page")
    asked.client.post("/page")
    assert asked.client.get("/page").text.startswith("3 ")


@pytest.mark.parametrize("path", ["/study/events", "/missing", "/breaks"])
def test_these_are_not_kept(asked, path):
    statuses = {asked.client.get(path).status_code for _ in range(2)}
    assert len(asked.asked) == 2 and len(statuses) == 1


def test_a_body_in_pieces_is_kept_whole(asked):
    assert [asked.client.get("/stream").text for _ in range(2)] == ["ab", "ab"]
    assert asked.asked == ["stream"]


def test_it_is_packed_for_who_takes_that(asked):
    answer = asked.client.get("/page", headers={"accept-encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert int(answer.headers["content-length"]) < 200 and answer.text.endswith(TEXT)
    plain = asked.client.get("/page", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers and len(plain.content) > 5000
    assert len(gzip.compress(plain.content)) < 200


def test_who_has_it_is_told_so(asked):
    first = asked.client.get("/page")
    again = asked.client.get("/page", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    asked.now = 2.0
    changed = asked.client.get("/page", headers={"if-none-match": first.headers["etag"]})
    assert changed.status_code == 200


def test_each_sees_what_it_may_see(tmp_path):
    asked = Asked(tmp_path, read_token=READ, run_token=RUN)
    texts = {}
    for name, token in {"read": READ, "run": RUN, "none": "x" * 20, "again": READ}.items():
        answer = asked.client.get("/page", headers={"authorization": f"Bearer {token}"})
        texts[name] = answer.text.split()[0]
    assert texts == {"read": "1", "run": "2", "none": "3", "again": "1"}
