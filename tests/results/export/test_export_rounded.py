"""Exports of structures whose values have few bits."""

from __future__ import annotations

import pytest
import safetensors.torch
from safetensors.torch import load_file

import sparsearch as ss
from sparsearch.results.export.export import export
from sparsearch.spaces.attachment.weights_file import HEAD
from sparsearch.spaces.backbone.loading import load_model
from tests.helpers.exported import furthest, logits_of, train_on

KINDS = {
    "lora": {"max_rank": 2, "bits": 4},
    "spectral": {"block": 4, "max_blocks": 1, "bits": [8]},
    "bitfit": {"bits": 2, "on": ["*.attn.q"]},
    "lnfit": {"bits": 16},
}


@pytest.fixture
def case(tiny_folder, randomise):
    return train_on(tiny_folder, KINDS, randomise, pad=0)


@pytest.mark.filterwarnings("ignore")
def test_a_spec_has_the_bytes_that_were_counted_and_equal_logits(case, tmp_path):
    structure = case.best.structure
    report = export(case.best, case.weights, "spec", tmp_path / "spec")
    tensors = load_file(tmp_path / "spec" / "modules.safetensors")
    assert structure.bytes == sum(
        t.nbytes for name, t in tensors.items() if not name.startswith(HEAD)
    )
    assert structure.bytes < 4 * structure.trainable_params + sum(
        c.frozen_bytes for c in structure.candidates
    )
    assert report.notes[0].startswith(f"{structure.stored_bytes:,} stored bytes")
    assert report.max_difference < 1e-6
    model = load_model(str(case.folder), num_labels=3)
    model.config.pad_token_id = 0
    assert furthest(logits_of(ss.attach(model, tmp_path / "spec")), case.logits) < 1e-6


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("to", ["peft", "checkpoint"])
def test_other_formats_compute_the_same_and_say_what_they_take(case, tmp_path, to):
    report = export(case.best, case.weights, to, tmp_path / to)
    assert report.max_difference < 1e-4
    if to == "peft":
        adapter = load_file(tmp_path / to / "adapter_model.safetensors")
        head = safetensors.torch.load(case.weights)
        taken = sum(t.nbytes for t in adapter.values())
        taken -= sum(t.nbytes for name, t in head.items() if name.startswith(HEAD))
        assert any(f"adapter's tensors take {taken:,} bytes" in note for note in report.notes)
        assert any("PEFT stores 32 bits a value" in note for note in report.notes)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_in_few_bits_stays_attached_to_a_checkpoint(tiny_folder, randomise, tmp_path):
    kinds = {"adapter": {"bottleneck": 4, "bits": 4}, "heads": {}}
    case = train_on(tiny_folder, kinds, randomise, pad=0)
    export(case.best, case.weights, "checkpoint", tmp_path / "small")
    model = ss.load_checkpoint(tmp_path / "small")
    assert furthest(logits_of(model), case.logits) < 1e-5
