"""What earlier versions wrote is read by this one, and identities stay what they are.

``artefacts/create.py`` says how the files were made; they are never made again. A value in ``identities.json`` changes
only with a new form of that identity, which is then found by the old one too.
"""

from __future__ import annotations

import gzip
import json
import runpy
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import sparsearch as ss
from sparsearch.config.reader import read_study
from sparsearch.config.study import StudyConfig
from sparsearch.errors import StoreError
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.backbone.legacy import legacy_space_fingerprint
from sparsearch.spaces.budget import resolve_all
from sparsearch.spaces.structure import Structure
from sparsearch.workers.plan import study_identity
from sparsearch.workers.trials.ranking_key import ranking_key
from sparsearch.workers.trials.session import open_session

ARTEFACTS = Path(__file__).parent / "artefacts"
FIRST = ARTEFACTS / "v0.1.0"
REVISIONS = sorted(file.name.split(".")[0] for file in (ARTEFACTS / "databases").iterdir())
KINDS = runpy.run_path(str(ARTEFACTS / "create.py"))["SPACES"]
GOLDEN = json.loads((ARTEFACTS / "identities.json").read_text())
WRITTEN = json.loads((FIRST / "identities.json").read_text())


@pytest.fixture
def model():
    return AutoModelForSequenceClassification.from_pretrained(ARTEFACTS / "model").eval()


@pytest.fixture
def study(tmp_path):
    for name in ("model", "study"):
        shutil.copytree(ARTEFACTS / name, tmp_path / name)
    return tmp_path / "study" / "study.yaml"


def unpack(revision, folder):
    file = folder / "study.db"
    packed = ARTEFACTS / "databases" / f"{revision}.db.gz"
    file.write_bytes(gzip.decompress(packed.read_bytes()))
    return file


def logits(model):
    ids = torch.arange(4, 28).view(3, 8)
    mask = torch.ones_like(ids)
    ids[2, 5:], mask[2, 5:] = 0, 0
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits


@pytest.mark.parametrize("name", KINDS)
def test_structures_and_spaces_keep_their_names(model, name):
    structure = Structure.load(FIRST / "structures" / f"{name}.json")
    assert structure.hash == GOLDEN["structures"][name]
    space = ss.build_space(model, kinds=KINDS[name])
    assert space.fingerprint == GOLDEN["spaces"][name]
    assert legacy_space_fingerprint(space) == WRITTEN["spaces"][name]
    ss.detach(ss.attach(model, structure))


def test_backbones_studies_and_rankings_keep_their_names(model, study):
    assert identify(model).as_dict() == GOLDEN["backbone"]
    raw, folder = read_study(study)
    config = StudyConfig.model_validate(raw)
    config._folder = folder
    assert study_identity(config) == GOLDEN["study"] == WRITTEN["study"]
    session = open_session(config)
    budget = resolve_all(config.budgets, session.space.backbone_params)[0]
    for strategy, key in GOLDEN["ranking"].items():
        assert ranking_key(session, strategy, budget, 0) == key


@pytest.mark.parametrize("revision", REVISIONS)
def test_databases_of_every_revision_open_and_find_old_hashes(revision, tmp_path):
    file = unpack(revision, tmp_path)
    with closing(sqlite3.connect(file)) as connection:
        before = connection.execute(
            "SELECT hash, document, structure_hash, number FROM structures JOIN trials ON structure_hash = hash"
        ).fetchall()
    assert len(before) == 8
    with ss.Store.open(file, create=True) as store:
        trials = {trial.number: trial for trial in store.trials("golden")}
        best = store.best(study="golden")
        assert best is not None and store.find_structure(best.structure.hash[:8]) == best
        for old, document, _, number in before:
            structure = Structure.from_json(document)
            assert trials[number].structure == structure.hash
            for name in (old, old[:12], structure.hash):
                assert store.find_structure(name).structure == structure
        assert len(store.trials("golden")) == 8
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        placed = connection.execute("SELECT DISTINCT structure_hash FROM placements").fetchall()
        known = connection.execute("SELECT hash FROM structures").fetchall()
        assert set(placed) == set(known)


@pytest.mark.parametrize("revision", [REVISIONS[0], REVISIONS[-1]])
def test_studies_of_earlier_versions_go_on(revision, study, tmp_path):
    file = unpack(revision, tmp_path)
    assert ss.run(study, str(file)).trials == 8
    with ss.open(file) as store:
        before = store.trials("golden")
    assert ss.run(study, str(file), ["seeds=[0,1]", "race=false"]).finished == 16
    with ss.open(file) as store:
        after = store.trials("golden")
    assert after[:8] == before
    assert {trial.state for trial in after} == {"ok"}


def test_a_study_of_before_refuses_other_weights_where_its_fingerprint_sees_them(
    study, tmp_path, model
):
    file = unpack(REVISIONS[-1], tmp_path)
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[3, 2] += 1
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(StoreError, match="began with other weights"):
        ss.run(study, str(file), ["seeds=[0,1]"])


def test_exports_of_earlier_versions_load_and_give_equal_logits(model):
    spec = Structure.load(FIRST / "spec")
    assert spec.hash == GOLDEN["exported"]
    expected = logits(ss.attach(model, FIRST / "spec"))
    small = ss.load_checkpoint(FIRST / "checkpoint")
    torch.testing.assert_close(logits(small), expected)
    assert AutoTokenizer.from_pretrained(FIRST / "checkpoint")("w1 good").input_ids[1:3] == [5, 44]
    plain = AutoModelForSequenceClassification.from_pretrained(ARTEFACTS / "model")
    adapted = peft.PeftModel.from_pretrained(plain, FIRST / "peft").eval()
    torch.testing.assert_close(logits(adapted), expected)
