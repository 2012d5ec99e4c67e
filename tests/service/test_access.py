"""Who gets an answer: host names, tokens, and what an operator must not choose."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsearch.errors import ConfigError
from sparsearch.service.headers import HEADERS
from sparsearch.service.settings import ServiceSettings, read_secrets
from tests.service.conftest import READ, RUN

API = "/api/v1"


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("localhost:8642", True),
        ("LOCALHOST:1", True),
        ("127.0.0.1:8642", True),
        ("[::1]:8642", True),
        ("[::1]", True),
        ("search.example.org", True),
        ("search.example.org:443", True),
        ("Search.Example.Org", True),
        ("elsewhere.example", False),
        ("localhost.elsewhere.example", False),
        ("elsewhere.example:8642", False),
        ("127.0.0.1.elsewhere.example", False),
        ("", False),
    ],
)
def test_a_host_name_counts_without_its_port(client_of, host, allowed):
    client = client_of(hosts=("search.example.org",))
    answer = client.get(f"{API}/studies", headers={"host": host})
    assert answer.status_code == (200 if allowed else 400)
    if not allowed:
        assert "does not answer to the host name" in answer.json()["message"]
        assert "--allow-host" in answer.json()["hint"]


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.7"])
def test_without_a_token_strangers_get_nothing_but_health(client_of, address):
    client = client_of(address, host="search.example.org", hosts=("search.example.org",))
    near = address == "127.0.0.1"
    document = client.get(f"{API}/openapi.json").json()
    for path, methods in document["paths"].items():
        asked = path.replace("{study}", "none").replace("{structure}", "00" * 4)
        for method in methods:
            status = client.request(method, asked.replace("{other}", "00" * 4)).status_code
            opened = path.endswith("/health") or near
            assert status in ((200, 404, 422) if opened else (401,)), (method, path)


@pytest.mark.parametrize("header", ["forwarded", "x-forwarded-for", "x-real-ip"])
def test_who_comes_through_a_proxy_is_a_stranger(client, header):
    assert client.get(f"{API}/studies").status_code == 200
    assert client.get(f"{API}/studies", headers={header: "127.0.0.1"}).status_code == 401


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        (f"Basic {READ}", 401),
        (f"Bearer {READ}x", 401),
        (f"Bearer {READ[:-1]}", 401),
        (f"Bearer {READ}", 200),
        (f"Bearer {RUN}", 200),
    ],
)
@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.7"])
def test_with_tokens_everybody_needs_one(client_of, address, given, status):
    client = client_of(address, read_token=READ, run_token=RUN)
    headers = {} if given is None else {"authorization": given}
    answer = client.get(f"{API}/studies", headers=headers)
    assert answer.status_code == status
    if status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
        assert READ not in answer.text and RUN not in answer.text
    assert client.get(f"{API}/studies", params={"token": READ}).status_code == 401


def test_a_reading_token_that_is_not_set_is_no_empty_one(client_of):
    client = client_of(run_token=RUN)
    for given in ("Bearer ", "Bearer None", ""):
        assert client.get(f"{API}/studies", headers={"authorization": given}).status_code == 401


@pytest.mark.parametrize("path", ["/studies", "/studies/none", "/nothing", "/health"])
def test_every_answer_forbids_frames_and_foreign_scripts(client, path):
    answer = client.get(f"{API}{path}")
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 405),
        ("http://localhost:8642", 405),
        ("http://localhost:3000", 403),
        ("http://localhost", 403),
        ("http://elsewhere.example", 403),
        ("null", 403),
    ],
)
def test_a_foreign_page_changes_nothing(client, origin, status):
    headers = {"origin": origin} if origin else {}
    assert client.post(f"{API}/studies", headers=headers).status_code == status


def test_it_works_under_the_prefix_of_a_proxy(client_of):
    client = client_of(root_path="/search")
    assert client.get(f"/search{API}/studies").status_code == 200
    document = client.get(f"/search{API}/openapi.json").json()
    assert document["servers"] == [{"url": "/search"}]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"host": "0.0.0.0"}, "0.0.0.0 is no loopback address, and there is no token"),
        ({"host": "search.example.org"}, "is no loopback address"),
        ({"read_token": "short"}, "the reading token has fewer than 16 characters"),
        ({"read_token": RUN, "run_token": RUN}, "one token for reading and running"),
        ({"root_path": "search"}, "write it like /search"),
        ({"roots": (Path("nowhere"),)}, "nowhere' is no folder"),
        ({"rate": -1.0, "root_path": "/a"}, "rate -1.0: a number of requests a second"),
        ({"proxies": ("*",), "root_path": "/a"}, "proxy '.*' is no IP address or network"),
    ],
)
def test_what_would_be_unsafe_is_refused(settings, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        ServiceSettings("sparsearch.db", **settings)
    assert ("secrets.token_urlsafe" in caught.value.hint) == (
        "root" not in problem + str(settings)
    )


def test_tokens_are_not_shown():
    assert READ not in repr(ServiceSettings("sparsearch.db", read_token=READ, run_token=RUN))


def test_tokens_come_from_the_environment_or_from_files(tmp_path):
    (tmp_path / "token").write_text(f"{RUN}\n")
    file = {"SPARSEARCH_RUN_TOKEN_FILE": str(tmp_path / "token")}
    found = read_secrets({"SPARSEARCH_READ_TOKEN": READ} | file)
    assert found == {"read_token": READ, "run_token": RUN, "webhook_secret": None}
    assert set(read_secrets({}).values()) == {None}
    with pytest.raises(ConfigError, match="are both set"):
        read_secrets({"SPARSEARCH_RUN_TOKEN": RUN} | file)
    with pytest.raises(ConfigError, match="cannot read"):
        read_secrets({"SPARSEARCH_RUN_TOKEN_FILE": str(tmp_path / "none")})
