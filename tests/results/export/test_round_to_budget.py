"""One global step that rounds a trained structure to a budget of stored bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import safetensors.torch
import torch

import sparsearch as ss
from sparsearch.errors import InfeasibleError
from sparsearch.results import Store
from sparsearch.results.export.export import export
from sparsearch.spaces.attachment.weights_file import HEAD
from sparsearch.spaces.backbone.loading import load_model
from sparsearch.spaces.structure import Structure
from sparsearch.testing.store_conformance import sample_outcome, sample_study
from tests.helpers.command_line import answer, call
from tests.helpers.exported import furthest, logits_of, train_on

KINDS = {
    "lora": {"max_rank": 2, "on": ["*.attn.q", "*.ffn.up"]},
    "spectral": {"block": 4, "max_blocks": 2, "directions": "seed"},
    "bitfit": {"on": ["*.attn.v"], "bits": 8},
    "heads": {},
}


@pytest.fixture
def case(tiny_folder, randomise):
    torch.manual_seed(0)  # of the units that start at random, and of the head
    return train_on(tiny_folder, KINDS, randomise, pad=0)


@pytest.mark.filterwarnings("ignore")
def test_less_is_stored_and_more_is_lost_the_smaller_the_budget(case, tmp_path):
    before = case.best.structure
    lost = []
    for share in (1.0, 0.6, 0.3, 0.15):
        budget = int(share * before.stored_bytes)
        best, weights = ss.round_to_budget(case.best, case.weights, budget)
        assert best.stored_bytes == best.structure.stored_bytes <= budget
        assert best.structure.trainable_params == before.trainable_params
        assert best.structure.problems() == []
        out = tmp_path / str(share)
        report = export(best, weights, "spec", out)
        assert report.max_difference < 1e-6
        model = load_model(str(case.folder), num_labels=3)
        model.config.pad_token_id = 0
        lost.append(furthest(logits_of(ss.attach(model, out)), case.logits))
        tensors = safetensors.torch.load(weights)
        stored = sum(t.nbytes for name, t in tensors.items() if not name.startswith(HEAD))
        assert stored == best.structure.bytes
    assert lost[0] < 1e-6 and lost[1] < lost[2] < lost[3]
    assert len({c.bits for c in best.structure.candidates if c.role == "attach"}) > 1


def test_a_budget_that_is_kept_already_changes_nothing(case):
    stored = case.best.structure.stored_bytes
    best, weights = ss.round_to_budget(case.best, case.weights, stored)
    assert best == case.best and best.structure.provenance == case.best.structure.provenance
    before = safetensors.torch.load(case.weights)
    assert {n: t.tolist() for n, t in safetensors.torch.load(weights).items()} == {
        n: t.tolist() for n, t in before.items()
    }


def test_what_need_not_be_rounded_stays_to_the_bit(case):
    stored = case.best.structure.stored_bytes
    best, weights = ss.round_to_budget(case.best, case.weights, stored - 500)
    before, after = (safetensors.torch.load(w) for w in (case.weights, weights))
    same = before.keys() & after.keys()
    assert any(not name.startswith(HEAD) for name in same) and same < before.keys()
    assert all(before[name].tolist() == after[name].tolist() for name in same)


@pytest.mark.filterwarnings("ignore")
def test_the_command_rounds_exports_and_says_so(case, tmp_path, monkeypatch):
    """What the command writes is what the function gives; the hash is the rounded structure's."""
    structure = case.best.structure
    share = f"{100 * 0.3 * structure.stored_bytes / (4 * structure.backbone.params):.4f}%"
    spec = sample_study(trials=1)
    db = f"sqlite:///{tmp_path / 'one.db'}"
    with Store.open(db, create=True) as store:
        store.begin_study(spec)
        outcome = replace(sample_outcome(), structure=structure, weights=case.weights)
        store.finish(spec.name, 0, outcome)
    asked = ("export", structure.hash[:10], "--db", db)
    report = answer(*asked, "--max-bytes", share, "--out", str(tmp_path / "small"))
    small = Structure.load(tmp_path / "small")
    assert report["structure"] == small.hash != structure.hash
    assert 0.2 * structure.stored_bytes < small.stored_bytes <= 0.3 * structure.stored_bytes
    told = f"rounded from {structure.stored_bytes:,} to {small.stored_bytes:,} stored bytes"
    assert report["notes"][0].startswith(told) and report["max_difference"] < 1e-6
    same = answer(*asked, "--max-bytes", "10000000", "--out", str(tmp_path / "same"))
    assert same["structure"] == structure.hash and "nothing was rounded" in same["notes"][0]
    for wrong, said in (
        ("0.01", "neither a whole number nor a percentage"),
        ("9", "in the fewest bits too"),
    ):
        done = call(*asked, "--max-bytes", wrong, "--out", str(tmp_path / "none"))
        assert done.code > 0 and said in done.err and not (tmp_path / "none").exists()


def test_too_few_bytes_are_told(case):
    with pytest.raises(InfeasibleError, match="max_bytes 9: this structure costs .* bytes in the"):
        ss.round_to_budget(case.best, case.weights, 9)
