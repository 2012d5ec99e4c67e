"""Who asks too often, guesses tokens, or opens too many streams."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from sparsearch.service.launches.folder import make_launch
from sparsearch.service.limits import rate_limit
from sparsearch.service.limits.rate_limit import Buckets
from tests.helpers.served import served
from tests.service.conftest import READ, RUN

API = "/api/v1"
WRONG = {"authorization": "Bearer wrong-token-0123456789"}


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def statuses(client, times, path="/studies", **headers):
    return [client.get(f"{API}{path}", headers=headers).status_code for _ in range(times)]


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Of the buckets: it stands still, however long the machine takes for an answer."""
    clock = Clock()
    monkeypatch.setattr(rate_limit, "time", SimpleNamespace(monotonic=clock))
    return clock


def test_a_bucket_fills_at_its_rate(clock):
    buckets = Buckets(rate=4, burst=2, clock=clock)
    assert [buckets.take("a") for _ in range(3)] == [0, 0, 0.25]
    assert buckets.wait("a") == 0.25 and buckets.wait("b") == 0
    clock.now += 0.25
    assert [buckets.take("a") for _ in range(2)] == [0, 0.25], "what is refused is not counted"
    clock.now += 60
    assert [buckets.take("a") for _ in range(3)] == [0, 0, 0.25], "no more than the burst"


def test_the_memory_of_buckets_is_bounded():
    buckets = Buckets(rate=1, burst=1, clock=Clock())
    assert buckets.take("first") == 0 and buckets.wait("first") > 0
    for number in range(9_999):
        buckets.take(number)
    assert buckets.wait("first") > 0
    buckets.take("one more")
    assert buckets.wait("first") == 0, "forgotten"


@pytest.mark.parametrize("path", ["/studies", "/openapi.json", "/none"])
def test_who_asks_too_often_is_told_when_to_come_back(client_of, path, clock):
    client = client_of(rate=0.5)
    (first, second) = (client.get(f"{API}{path}") for _ in range(2))
    assert first.status_code in (200, 404) and second.status_code == 429
    assert second.headers["retry-after"] == "2"
    assert set(second.json()) == {"error", "message", "hint", "problems"}
    assert second.headers["x-frame-options"] == "DENY"
    assert statuses(client, 20, "/health") == [200] * 20
    clock.now += 1.9
    assert client.get(f"{API}{path}").status_code == 429
    clock.now += 0.1
    assert client.get(f"{API}{path}").status_code == first.status_code


def test_a_rate_of_0_is_none(client_of):
    assert 429 in statuses(client_of(rate=5), 12)
    assert 429 not in statuses(client_of(rate=0), 12)


def test_addresses_and_levels_have_buckets_of_their_own(client_of):
    client = client_of("10.0.0.7", rate=1, read_token=READ, run_token=RUN)
    assert statuses(client, 3, **bearer(READ)) == [200, 200, 429]
    assert statuses(client, 3, **bearer(RUN)) == [200, 200, 429]
    forged = bearer(READ) | {"x-forwarded-for": "10.0.0.9"}
    assert statuses(client, 1, **forged) == [429], "nobody is believed to be another"
    assert statuses(client, 3) == [401, 401, 429]


def test_guessing_tokens_ends_soon(client_of):
    client = client_of("10.0.0.7", read_token=READ, run_token=RUN)
    assert statuses(client, 1, **bearer(READ)) == [200]
    assert statuses(client, 30) == [401] * 30, "no token is no guess"
    assert statuses(client, 12, **WRONG) == [401] * 10 + [429] * 2
    assert statuses(client, 1, **bearer(RUN)) == [429], "the right one is not found out"
    assert statuses(client, 1, **bearer(READ)) == [200], "a neighbour who was here goes on"
    assert statuses(client, 1, "/health", **WRONG) == [200]


def test_a_server_behind_a_proxy_that_is_believed(filled_url, study, tmp_path):
    """Each client has a bucket; beyond two streams there is no third, until one ends."""
    launch = make_launch(tmp_path / "launches", "tiny", study)
    options = ("--rate", "0.01", "--streams", "2", "--proxy", "127.0.0.1")
    tokens = {"SPARSEARCH_READ_TOKEN": READ}
    with (
        launch.lock.acquire(),  # it runs
        served(filled_url, tmp_path / "launches", *options, **tokens) as client,
    ):

        def stream(number):
            headers = bearer(READ) | {"x-forwarded-for": f"192.0.2.{number}"}
            return client.stream("GET", "/launches/tiny/events", headers=headers)

        for number, status in ((1, 200), (1, 429), (2, 200)):
            headers = bearer(READ) | {"x-forwarded-for": f"10.0.0.{number}"}
            assert client.get("/studies", headers=headers).status_code == status
        with stream(1) as first, stream(2) as second:
            assert first.status_code == second.status_code == 200
            with stream(3) as third:
                third.read()
            assert third.status_code == 503 and third.headers["retry-after"] == "10"
            assert "2 event streams are open" in third.json()["message"]
        for number in range(4, 40):
            with stream(number) as again:
                if again.status_code == 200:
                    break
            time.sleep(0.1)
        assert again.status_code == 200
