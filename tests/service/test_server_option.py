"""`sparsearch --server URL`: what it prints is what it prints of the database, and every error says what to do."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from sparsearch.cli.options import DEFAULT_DB
from sparsearch.results import BestQuery, Store
from sparsearch.service.client.connection import Connection, Unreachable
from sparsearch.service.client.launches import follow
from sparsearch.service.client.reader import RemoteReader
from sparsearch.service.settings import ServiceSettings
from tests.helpers.command_line import call
from tests.service.conftest import READ, RUN, served

pytestmark = pytest.mark.usefixtures("plain_environment")


@pytest.fixture(scope="module")
def server(filled_url, tmp_path_factory):
    settings = ServiceSettings(filled_url, launches=tmp_path_factory.mktemp("launches"))
    with served(settings) as url:
        yield url


@pytest.fixture(scope="module")
def store(filled_url):
    with Store.open(filled_url, create=False) as store:
        yield store


@pytest.fixture(scope="module")
def names(store):
    """Beginnings of the hashes of two structures."""
    return [best.structure.hash[:10] for best in store.pareto("first")[:2]]


QUESTIONS = [
    "studies",
    "trials first",
    "trials sec",
    "best --study first",
    "best --study first --max-trainable-params 0.02%",
    "best --limit max_inference_flops=75%",
    "best --model toy --task trec",
    "pareto first",
    "show A --study first",
    "diff A B",
    # what goes wrong
    "trials none",
    "trials ..",
    "show zz",
    "show 0000",
    "best --max-trainable-params 1",
    "best --task nothing",
    "best --max-trainable-params x",
    "best --limit nothing=1",
    "pareto none",
]


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["table", "json"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_a_command_says_the_same_of_a_database_and_of_a_service(
    question, form, filled_url, server, names, monkeypatch
):
    words = [dict(zip("AB", names, strict=True)).get(word, word) for word in question.split()]
    # Named by the environment, neither stands in the commands to type next.
    monkeypatch.setenv("SPARSEARCH_DB", filled_url)
    ours = call(*words, *form)
    monkeypatch.delenv("SPARSEARCH_DB")
    monkeypatch.setenv("SPARSEARCH_SERVER", server)
    theirs = call(*words, *form)
    if ".." in words:  # no path can hold it
        assert theirs.code == ours.code == 1 and "'..'" in theirs.err
    else:
        assert theirs == ours
    assert ours.out or ours.code


def test_pictures_and_the_report_are_the_same(filled_url, server, names, tmp_path):
    for command in (["show", names[0], "--study", "first", "--plot"], ["pareto", "first", "--plot"],
                    ["report", "first", "--out"]):  # fmt: skip
        files = [tmp_path / f"{command[0]}-{n}.html" for n in (1, 2)]
        assert call(*command, str(files[0]), "--db", filled_url).code == 0
        assert call("--server", server, *command, str(files[1])).code == 0
        first, second = (file.read_text() for file in files)
        assert len(first) > 3_000 and first == second


def test_records_are_the_same_over_pages(store, server, monkeypatch):
    monkeypatch.setattr("sparsearch.service.client.reader._PAGE", 5)
    with RemoteReader(Connection(f"{server}/api/v1/")) as reader:
        for study in ("first", "second"):
            assert reader.find_study(study) == store.find_study(study)
            ours = store.trials(study)
            assert repr(reader.trials(study)) == repr(ours) and len(ours) == 12
            assert reader.attempts(study) == store.attempts(study)
            front = store.pareto(study)
            assert reader.pareto(study) == front
            provenances = [b.structure.provenance for b in front]
            assert [b.structure.provenance for b in reader.pareto(study)] == provenances
        asked = BestQuery(study="first", limits={"max_trainable_params": 100})
        assert reader.best_of_each_task(asked) == store.best_of_each_task(asked)
        name = front[0].structure.hash
        assert reader.load_structure(name) == store.load_structure(name)


def test_the_command_line_counts_before_the_environment(filled_url, server, monkeypatch):
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setenv("SPARSEARCH_DB", "sqlite:///none.db")
    assert call("--server", server, "studies").code == 0
    monkeypatch.setenv("SPARSEARCH_SERVER", server)
    both = call("studies")
    assert both.code == 2 and "both given" in both.err
    monkeypatch.delenv("SPARSEARCH_DB")
    monkeypatch.setenv("SPARSEARCH_SERVER", nowhere)
    assert call("studies", "--db", filled_url).code == 0
    assert call("studies").code == 1
    both = call("--server", server, "studies", "--db", DEFAULT_DB)
    assert both.code == 2 and "leave one out" in both.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("serve",), "needs a database, not a service"),
        (("db", "check"), "needs a database, not a service"),
        (("db", "backup", "x.db"), "needs a database, not a service"),
        (("studies", "--db", "http://127.0.0.1:1"), "a service goes before the command"),
    ],
)
def test_what_needs_a_database_says_so(server, words, said):
    done = call("--server", server, *words)
    assert done.code == 2 and said in " ".join(done.err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://127.0.0.1", "begins with http:// or https://"),
        ("127.0.0.1:8642", "begins with http:// or https://"),
        ("http://", "is no URL of a service"),
        ("http://host:99999", "is no URL of a service"),
        ("http://me:secret@host", "no user and no password"),
        ("https://host/?token=secret", "no '?' and no '#'"),
    ],
)
def test_a_url_that_is_none_of_a_service(url, said):
    done = call("--server", url, "studies")
    assert done.code == 2 and said in " ".join(done.err.replace("│", " ").split())
    assert "secret" not in done.err


def test_tokens_come_from_the_environment(filled_url, serving, tmp_path, monkeypatch):
    url = serving(ServiceSettings(filled_url, read_token=READ, run_token=RUN, launches=tmp_path))
    done = call("--server", url, "studies")
    assert done.code == 1 and "needs a token" in done.err and "SPARSEARCH_RUN_TOKEN" in done.err
    monkeypatch.setenv("SPARSEARCH_READ_TOKEN", "another-token-0123456789")
    done = call("--server", url, "studies")
    assert done.code == 1 and "takes another one" in done.err and "another-token" not in done.err
    (tmp_path / "token").write_text(f"{READ}\n")
    monkeypatch.delenv("SPARSEARCH_READ_TOKEN")
    monkeypatch.setenv("SPARSEARCH_READ_TOKEN_FILE", str(tmp_path / "token"))
    assert call("--server", url, "studies").code == 0
    done = call("--server", url, "delete", "first", "--yes")
    assert done.code == 1 and "lets one read, not run" in done.err
    assert "SPARSEARCH_RUN_TOKEN_FILE" in done.err
    monkeypatch.setenv("SPARSEARCH_RUN_TOKEN", "no such\ncharacters")
    done = call("--server", url, "studies")
    assert done.code == 2 and "no such" not in done.err


def test_under_the_path_of_a_proxy(filled_url, serving, tmp_path):
    def proxy(app):
        async def strip(scope, receive, send):
            if scope["type"] == "http":
                assert scope["path"].startswith("/search/")
                path = scope["path"].removeprefix("/search")
                scope = {**scope, "path": path, "raw_path": path.encode()}
            await app(scope, receive, send)

        return strip

    url = serving(ServiceSettings(filled_url, launches=tmp_path), around=proxy)
    for end in ("/search", "/search/"):
        assert call("--server", f"{url}{end}", "trials", "first").code == 0


def test_a_host_name_that_is_not_allowed(filled_url, serving, tmp_path):
    url = serving(ServiceSettings(filled_url, launches=tmp_path), host="127.0.0.2")
    done = call("--server", url, "studies")
    assert done.code == 1 and "does not answer to the host name" in done.err
    assert "--allow-host" in done.err


@contextmanager
def answering(status, body, **headers):
    """Another program: it answers everything alike."""

    class Other(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words):
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b"<html>log in</html>", "something else than the API"),
        (404, b"<html>nothing here</html>", "something else than the API"),
        (404, json.dumps({"detail": "Not Found"}).encode(), "something else than the API"),
        (403, b"[]", "something else than the API"),
        (200, b'{"items": [{"name": "x"}], "next": null}', "does not understand"),
        (200, b'["studies"]', "does not understand"),
        (502, b"<html>bad gateway</html>", "its proxy cannot reach the service"),
        (301, b"", "which leads to https://elsewhere.example/"),
    ],
)
def test_an_answer_of_something_else(status, body, said):
    with answering(status, body, location="https://elsewhere.example/") as url:
        done = call("--server", url, "studies")
    assert done.code == 1 and said in done.err and "hint:" in done.err and not done.out


def test_a_service_that_is_not_there():
    done = call("--server", "http://127.0.0.1:9", "studies")
    assert done.code == 1 and "cannot reach http://127.0.0.1:9" in done.err
    assert "sparsearch serve" in done.err
    with pytest.raises(Unreachable, match="no longer watched"):
        next(follow(Connection("http://127.0.0.1:9"), "tiny", 0, patience=-1))
