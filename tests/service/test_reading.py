"""What the API tells of a database: the objects of ``--json``, in pages."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from sparsearch.documents import plain
from sparsearch.results import Store, Trial
from sparsearch.results.report.summary import summarise
from sparsearch.service import models
from sparsearch.service.app import make_app
from sparsearch.service.settings import ServiceSettings
from sparsearch.spaces.compaction.checkpoint import load_checkpoint
from sparsearch.testing.store_conformance import sample_outcome
from tests.helpers.command_line import call
from tests.helpers.exported import furthest, logits_of, train_on
from tests.helpers.filled_study import LARGE, fill

API = "/api/v1"


def get(client, path, status=200, **query):
    answer = client.get(f"{API}{path}", params=query or None)
    assert answer.status_code == status, answer.text
    return answer.json()


@pytest.fixture
def store(filled_url):
    with Store.open(filled_url, create=False) as store:
        yield store


def test_answers_are_the_objects_of_the_command_line(client, filled_url):
    def said(*words):
        return json.loads(call(*words, "--db", filled_url, "--json").out)

    assert get(client, "/studies")["items"] == said("studies")
    assert get(client, "/studies/first/trials")["items"] == said("trials", "first")
    front = said("pareto", "first")
    assert get(client, "/studies/first/pareto") == front and len(front) > 1
    first, second = front[0]["structure"], front[1]["structure"]
    assert get(client, f"/structures/{first[:8]}", study="first") == said(
        "show", first, "--study", "first"
    )
    assert get(client, f"/structures/{first}/diff/{second}") == said("diff", first, second)
    assert get(client, "/best", study="first") == [said("best", "--study", "first")]


def test_a_summary_is_that_of_the_report(client, store):
    expected = plain(summarise(store.find_study("first"), store.trials("first")).as_dict())
    assert get(client, "/studies/first/summary") == expected
    assert len(expected["budgets"]) == 2


def test_a_study_has_its_settings(client):
    found = get(client, "/studies/fir")
    assert found["name"] == "first" and found["settings"] == {"search": {"strategy": "s3pet"}}
    assert found["trials"] == found["finished"] == 12


@pytest.mark.parametrize("size", [1, 5, 12, 13])
def test_pages_hold_every_row_once(client, size):
    for path, key, count in (("/studies", "name", 2), ("/studies/first/trials", "number", 12)):
        rows, cursor = [], None
        while True:
            page = get(client, path, limit=size, **({"cursor": cursor} if cursor else {}))
            assert len(page["items"]) <= size
            rows += page["items"]
            cursor = page["next"]
            if cursor is None:
                break
        assert [row[key] for row in rows] == list(dict.fromkeys(row[key] for row in rows))
        assert len(rows) == count


def test_best_keeps_within_limits_or_says_which_to_loosen(client):
    (best,) = get(client, "/best", study="first", limit="max_trainable_params=100")
    assert best["trainable_params"] <= 100
    error = get(client, "/best", 404, study="first", limit="max_trainable_params=1")
    assert "no successful trial has a structure within" in error["message"]
    assert "without --max-trainable-params the best is" in error["hint"]
    error = get(client, "/best", 422, limit="max_param=1")
    assert error["problems"] == ["limit max_param=1: no limit of a budget"]


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/studies/none", 404, "there is no study 'none'"),
        ("/studies/none/trials", 404, "there is no study 'none'"),
        ("/studies/first/trials?cursor=x", 422, "cursor 'x' is no number of a trial"),
        ("/studies/first/trials?limit=0", 422, "the request is not valid"),
        ("/studies/a%00b", 422, "the request is not valid"),
        ("/best?task=a%00b", 422, "the request is not valid"),
        ("/studies?cursor=none", 404, "there is no study 'none'"),
        ("/structures/zz", 404, "'zz' names no structure"),
        ("/structures/00000000", 404, "no successful trial has a structure that starts with"),
        ("/structures/00000000/export?to=pickle", 422, "the request is not valid"),
        ("/nothing", 404, "Not Found"),
        (f"/studies/{'x' * 300}", 422, "the request is not valid"),
        ("/studies/..%2f..%2fetc%2fpasswd", 404, "Not Found"),
    ],
)
def test_every_error_has_one_body(client, path, status, message):
    error = get(client, path, status)
    assert set(error) == {"error", "message", "hint", "problems"}
    assert message in error["message"]


def test_an_unexpected_error_shows_nothing_of_the_inside(client, monkeypatch):
    from sparsearch.results.store.reader import StoreReader

    def fail(*args, **kwargs):
        raise RuntimeError("secret")

    monkeypatch.setattr(StoreReader, "find_study", fail)
    answer = client.get(f"{API}/studies/first")
    assert answer.status_code == 500 and "secret" not in answer.text
    assert set(answer.json()) == {"error", "message", "hint", "problems"}
    assert answer.headers["x-frame-options"] == "DENY"


def test_models_have_the_fields_of_the_records(store):
    study, trial = store.find_study("first"), store.trials("first")[0]
    best = store.pareto("first")[0]
    pairs = {
        models.StudyModel: study.as_dict(),
        models.TrialModel: trial.as_dict(store.attempts("first")),
        models.BestModel: best.as_dict(),
        models.StructureModel: best.as_detailed_dict(),
        models.SummaryModel: summarise(study, store.trials("first")).as_dict(),
    }
    for model, record in pairs.items():
        assert set(model.model_fields) == set(record), model.__name__
    (attempt,) = trial.as_dict(store.attempts("first"))["tries"]
    assert set(models.AttemptModel.model_fields) == set(attempt)


def test_health_and_metrics(client):
    assert get(client, "/health")["status"] == "ok"
    get(client, "/studies/first")
    get(client, "/studies/none", 404)
    text = client.get(f"{API}/metrics").text
    route = '{method="GET",route="/studies/{study}",status='
    assert f'sparsearch_requests_total{route}"200"}} 1.0' in text
    assert f'sparsearch_requests_total{route}"404"}} 1.0' in text
    assert 'sparsearch_studies{state="finished"} 2.0' in text


def test_the_document_describes_every_route(client):
    document = client.get(f"{API}/openapi.json").json()
    for path, methods in document["paths"].items():
        for method in methods.values():
            assert method["summary"] and method["responses"], path
            assert path.endswith("/health") or method["security"], path
    assert client.get("/docs").status_code == 404, "that page would load foreign scripts"


def test_an_export_is_one_download_that_loads(study, tmp_path):
    """Of a real trial: what is in it is the structure that was asked for, and no other export runs beside it."""
    from sparsearch.service.routes import exports
    from sparsearch.spaces.structure import Structure
    from sparsearch.workers.study import run

    url = f"sqlite:///{tmp_path / 'real.db'}"
    run(study | {"baselines": [], "budgets": [200], "space": {"kinds": {"lora": {}}}}, url)
    with Store.open(url, create=False) as store:
        wanted = store.best().structure.hash
    path = f"{API}/structures/{wanted[:10]}/export"
    app = make_app(ServiceSettings(url, launches=tmp_path / "launches"))
    with TestClient(app, "http://localhost", client=("127.0.0.1", 1)) as client:
        spec, adapter = client.get(path), client.get(path, params={"to": "peft"})
        error = client.get(path, params={"also": "onnx"})
        small = client.get(path, params={"max_bytes": "200"})
        with exports._one_at_a_time:
            busy = client.get(path)
    assert error.status_code == 422 and "goes with to=checkpoint" in error.json()["message"]
    assert busy.status_code == 503 and "another export" in busy.json()["message"]
    assert spec.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(spec.content)) as archive:
        text = archive.read(f"{wanted[:12]}-spec/structure.json").decode()
    assert Structure.from_json(text).hash == wanted
    with zipfile.ZipFile(io.BytesIO(small.content)) as archive:
        facts = json.loads(archive.comment)
        text = archive.read(f"{facts['structure'][:12]}-spec/structure.json").decode()
    assert Structure.from_json(text).stored_bytes <= 200 and facts["structure"] != wanted
    assert facts["notes"][0].startswith("rounded from ")
    with zipfile.ZipFile(io.BytesIO(adapter.content)) as archive:
        assert f"{wanted[:12]}-peft/adapter_model.safetensors" in archive.namelist()
    assert not [*Path(tempfile.gettempdir()).glob("sparsearch-export-*")], "nothing is left behind"


def test_a_checkpoint_comes_without_the_serving_file_that_cannot_be_made(
    build, randomise, tmp_path
):
    build("t5").save_pretrained(tmp_path / "base")
    case = train_on(tmp_path / "base", {"lora": {"max_rank": 1}}, randomise)
    structure, url = case.best.structure, f"sqlite:///{tmp_path / 't5.db'}"
    outcome = replace(
        sample_outcome(0.9),
        structure=structure,
        trainable_params=structure.trainable_params,
        stored_bytes=structure.stored_bytes,
        weights=case.weights,
    )
    fill(url, "t5", [(Trial(0, "s3pet", LARGE, 0), outcome)])
    app = make_app(ServiceSettings(url, launches=tmp_path / "launches"))
    with TestClient(app, "http://localhost", client=("127.0.0.1", 1)) as client:
        path = f"{API}/structures/{structure.hash}/export"
        found = client.get(path, params={"to": "checkpoint", "also": "onnx"})
    assert found.status_code == 200, found.text
    with zipfile.ZipFile(io.BytesIO(found.content)) as archive:
        facts = json.loads(archive.comment)
        archive.extractall(tmp_path / "found")
    (why,) = [note for note in facts["notes"] if "comes without onnx" in note]
    assert "t5 model cannot be written" in why and tempfile.gettempdir() not in why
    (folder,) = (tmp_path / "found").iterdir()
    assert furthest(logits_of(load_checkpoint(folder)), case.logits) < 1e-5
