"""One global step that rounds a trained structure to a budget of stored bytes."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

import sparsearch as ss
from sparsearch.errors import InfeasibleError
from sparsearch.results.export.export import export
from sparsearch.spaces.attachment.weights_file import HEAD
from sparsearch.spaces.backbone.loading import load_model
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


def test_too_few_bytes_are_told(case):
    with pytest.raises(InfeasibleError, match="max_bytes 9: this structure costs .* bytes in the"):
        ss.round_to_budget(case.best, case.weights, 9)
