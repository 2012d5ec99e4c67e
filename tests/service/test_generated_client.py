"""A client that a generator makes of the API's document: a study there and back."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time

import pytest

from sparsearch.results import Store
from sparsearch.service.settings import ServiceSettings
from tests.service.conftest import RUN

CONFIG = """
package_name_override: generated_client
post_hooks: []
content_type_overrides: {application/zip: application/octet-stream}
"""


@pytest.fixture
def url(serving, tmp_path, tiny_folder, tiny_data):
    db, roots = f"sqlite:///{tmp_path / 'db.db'}", (tiny_folder, tiny_data)
    launches = tmp_path / "launches"
    return serving(ServiceSettings(db, launches=launches, roots=roots, run_token=RUN))


@pytest.fixture
def generated(url, tmp_path, monkeypatch):
    """Imports modules of the client that is generated from the document of a service that runs."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    words = ["--url", f"{url}/api/v1/openapi.json", "--config", str(tmp_path / "config.yaml")]
    target = ["--meta", "none", "--output-path", str(tmp_path / "generated_client")]
    done = subprocess.run(
        [sys.executable, "-m", "openapi_python_client", "generate", "--fail-on-warning", *words, *target],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "arning" not in done.stdout, done.stdout + done.stderr
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield lambda name: importlib.import_module(f"generated_client{name}")
    for name in set(sys.modules) - before:
        if name.startswith("generated_client"):
            del sys.modules[name]


def test_a_study_there_and_back(study, url, generated, tmp_path):
    models, client = generated(".models"), generated("").AuthenticatedClient(url, token=RUN)

    def ask(route, *words, **named):
        return generated(f".api.{route}").sync(*words, client=client, **named)

    small = study | {"baselines": ["lora-qv"], "budgets": [200]}
    launched = ask("launches.launch_study", body=models.StudyFile.from_dict(small))
    assert isinstance(launched, models.LaunchModel) and launched.state == "queued"
    twice = ask("launches.launch_study", body=models.StudyFile.from_dict(small))
    assert isinstance(twice, models.ProblemModel) and twice.error == "LeaseError"
    end = time.monotonic() + 150
    while (state := ask("launches.show_launch", "tiny").state) in ("queued", "running"):
        assert time.monotonic() < end
        time.sleep(0.2)
    assert state == "finished"
    with Store.open(f"sqlite:///{tmp_path / 'db.db'}", create=False) as store:
        stored, best = store.trials("tiny"), store.best()
    first = ask("studies.list_trials", "tiny", limit=1)
    rest = ask("studies.list_trials", "tiny", cursor=first.next_)
    told = [(t.number, t.score, t.structure) for t in (*first.items, *rest.items)]
    assert told == [(t.number, t.score, t.structure) for t in stored] and len(told) > 1
    (found,) = ask("structures.find_best", limit=["max_trainable_params=200"])
    assert (found.structure, found.score) == (best.structure.hash, best.score)
    shown = ask("structures.show_structure", found.structure)
    assert [c.position for c in shown.candidates] == [
        c.position for c in best.structure.candidates
    ]
    document = ask("structures.structure_document", found.structure[:8])
    assert document.to_dict()["costs"]["trainable_params"] == best.trainable_params
    export = ask("structures.export_structure", found.structure)
    assert export.payload.read(2) == b"PK"
    gone = generated(".api.studies.delete_study").sync_detailed(
        "tiny", client=client, confirm="tiny"
    )
    assert gone.status_code == 204
    assert ask("studies.list_studies").items == []
    assert ask("studies.show_study", "tiny").error == "NotFoundError"
