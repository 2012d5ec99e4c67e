"""A family that nobody has seen goes all the way: its positions are guessed, and that is said."""

from __future__ import annotations

import shutil

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification

import sparsearch as ss
from sparsearch.errors import BackboneError
from sparsearch.results.store.store import Store
from sparsearch.spaces.attachment.attach import attach_modules, detach
from sparsearch.spaces.backbone.parameters import layers_of, positions_of
from sparsearch.spaces.coverage import find_unreached
from sparsearch.spaces.families.generic import GuessedFamilyWarning, guess_positions
from sparsearch.spaces.kinds import make_kind
from tests.helpers.command_line import answer, call
from tests.helpers.odd_family import OddConfig, OddForSequenceClassification, registered

IN_A_LAYER = {
    "calm.norm": (16, 16),
    "hush.norm": (16, 16),
    "mix": (16, 16),
    "grow": (16, 32),
    "shrink": (32, 16),
}


@pytest.fixture(scope="module")
def odd_folder(tiny_folder, tmp_path_factory):
    """A saved model of the odd family with a tokenizer."""
    folder = tmp_path_factory.mktemp("odd")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_folder / file, folder / file)
    torch.manual_seed(0)
    with registered():
        OddForSequenceClassification(OddConfig(pad_token_id=0)).save_pretrained(folder)
        yield folder


def test_positions_are_named_by_their_paths(odd_folder):
    model = AutoModelForSequenceClassification.from_pretrained(odd_folder)
    found = {p.name: p for p in positions_of(model)}
    expected = {
        f"layers.{n}.{name}": widths for n in (0, 1) for name, widths in IN_A_LAYER.items()
    }
    assert {name: (p.in_features, p.out_features) for name, p in found.items()} == {
        "portal": (16, 16),
        **expected,
    }
    assert found["layers.1.grow"].layer == 1 and not found["layers.1.grow"].has_bias
    assert found["portal"].layer is None and layers_of(model) is None
    unreached = {u.module: u.reason for u in find_unreached(model)}
    assert unreached.keys() == {
        f"storeys.{n}.gaze{part}" for n in (0, 1) for part in ("", ".out_proj")
    }
    assert all("torch's own attention" in reason for reason in unreached.values())


def test_the_guess_is_a_warning_and_is_shown(odd_folder):
    model = AutoModelForSequenceClassification.from_pretrained(odd_folder)
    with pytest.warns(GuessedFamilyWarning, match="7 linears and 4 norms were guessed"):
        space = ss.build_space(model, kinds={"lora": {"max_rank": 1}, "lnfit": {}})
    assert {c.position for c in space.candidates} == {p.name for p in space.positions}
    found = answer("space", str(odd_folder), "--preset", "s3pet-m")
    assert "'oddball' is not in the table" in found["coverage"]["guessed"]
    assert set(found["by_kind"]) == {"lora", "bitfit", "lnfit"}
    shown = " ".join(call("space", str(odd_folder)).out.split())
    assert "7 linears and 4 norms were guessed" in shown and "storeys.*.gaze" in shown


def test_it_is_searched_attached_and_exported(odd_folder, study, tmp_path):
    chosen = study | {"model": {"path": str(odd_folder)}, "baselines": []}
    chosen["space"] = {"kinds": {"lora": {"max_rank": 1}, "bitfit": {}, "lnfit": {}}}
    db, file = str(tmp_path / "odd.db"), tmp_path / "odd.yaml"
    file.write_text(yaml.safe_dump(chosen))
    ran = call("run", str(file), "--db", db)
    assert ran.code == 0, ran.err
    assert "warning: family 'oddball' is not in the table" in " ".join(ran.err.split())
    with Store.open(db, create=False) as store:
        best = store.best(study=chosen["name"])
    assert best.strategy == "s3pet" and best.structure.candidates
    shown = call("show", best.structure.hash[:8], "--db", db, "--plot", str(tmp_path / "map.html"))
    assert shown.code == 0 and (tmp_path / "map.html").exists(), shown.err
    spec = "--to", "spec", "--out", str(tmp_path / "spec"), "--db", db
    written = answer("export", best.structure.hash, *spec)
    assert written["max_difference"] < 1e-5
    model = AutoModelForSequenceClassification.from_pretrained(odd_folder).eval()
    inputs = {"input_ids": torch.arange(4, 10)[None], "attention_mask": torch.ones(1, 6).long()}
    before = model(**inputs).logits
    ss.attach(model, tmp_path / "spec")
    assert not torch.allclose(model(**inputs).logits, before)


@pytest.mark.parametrize("name", ["lora", "bitfit", "lnfit", "ia3"])
def test_each_position_changes_what_the_model_computes(name):
    """None is a module that the model never calls."""
    torch.manual_seed(0)
    model = OddForSequenceClassification(OddConfig()).eval()
    inputs = {"input_ids": torch.arange(4, 10)[None], "attention_mask": torch.ones(1, 6).long()}
    kind = make_kind(name, {})
    before = model(**inputs).logits
    for position in filter(kind.accepts, positions_of(model)):
        attachment = attach_modules(model, [(position, kind, 1, 1)], train_head=False)
        with torch.no_grad():
            for parameter in attachment.parameters():
                parameter += 0.5
        assert not torch.equal(model(**inputs).logits, before), position.name
        detach(model)


def test_a_model_without_linears_is_refused():
    with pytest.raises(BackboneError, match="no linear or norm was found in a Embedding"):
        guess_positions(torch.nn.Embedding(3, 3), "bare")
