"""Trainings that go on from a checkpoint of the Trainer: they end as if they had never stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sparsearch as ss
from sparsearch.errors import ConfigError, ExportError
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.backbone.loading import load_model
from sparsearch.spaces.compaction.sparsity import weight_sparsity

STEPS = 10
MASKS = {"max_trainable_params": 3000, "min_weight_sparsity": "40%"}
CHANGES = {
    "matrices": ({"lora": {"max_rank": 1}}, {"max_trainable_params": 300}),
    "vectors": (
        {"lora": {"max_rank": 1}, "lnfit": {}, "bitfit": {}, "ia3": {}},
        {"max_trainable_params": 300},
    ),
    "scalings": ({"vera": {"rank": 4}, "dora": {"rank": 1}}, {"max_trainable_params": 600}),
    "bits": ({"lora": {"max_rank": 2, "bits": [4]}, "bitfit": {"bits": [8]}}, {"max_bytes": 300}),
    "scores": ({"weight_mask": {"rank": 1, "every": 1}}, MASKS),
    "masks": ({"weight_mask": {"rank": 1, "every": 1, "structured": False}}, MASKS),
    "saliency": (
        {"weight_mask": {"rank": 1, "every": 2, "structured": False, "importance": "saliency"}},
        MASKS,
    ),
}


@pytest.fixture
def fresh(tiny_folder):
    return lambda: load_model(str(tiny_folder), num_labels=2)


def search_of(kinds, budget):
    return ss.StructureCallback(
        "classification", budget, space={"kinds": kinds}, search={"steps": 3}
    )


@pytest.mark.parametrize("stop", [2, 8], ids=["before-masks-are-final", "after"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_training_that_goes_on_ends_as_if_it_had_never_stopped(
    trainer, fresh, tmp_path, change, stop
):
    search = search_of(*CHANGES[change])
    saving = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 2, "weight_decay": 0.1}
    whole = trainer(search, **saving)
    whole.train()
    checkpoint = tmp_path / "trainer" / f"checkpoint-{stop}"
    structure = ss.Structure.load(checkpoint / "structure.json")
    model = ss.attach(fresh(), structure)
    last = tmp_path / "trainer" / f"checkpoint-{STEPS}" / "structure.json"
    last.unlink()
    again = search_of(*CHANGES[change])
    trainer(again, model=model, **saving).train(resume_from_checkpoint=str(checkpoint))
    assert again.structure == structure == ss.Structure.load(last)
    assert attachment_of(model).settled
    assert weight_sparsity(model) == weight_sparsity(whole.model)
    expected = whole.model.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_the_best_checkpoint_is_one_whose_masks_are_final(trainer, tmp_path):
    search = search_of(*CHANGES["masks"])
    scores = iter([1.0, 0.9, 0.5, 0.7, 0.6])
    run = trainer(
        search, max_steps=STEPS, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2,
        load_best_model_at_end=True, metric_for_best_model="accuracy", greater_is_better=True,
    )  # fmt: skip
    run.compute_metrics = lambda _: {"accuracy": next(scores)}
    run.train()
    assert Path(run.state.best_model_checkpoint).name == "checkpoint-8"
    assert weight_sparsity(run.model) >= 0.4
    ss.save(run.model, search.structure, tmp_path / "trained")
    state = load_file(tmp_path / "trainer" / "checkpoint-4" / "model.safetensors")
    run.model.load_state_dict(state)
    with pytest.raises(ExportError, match="the masks are not final: at .* weights are pruned"):
        ss.save(run.model, search.structure, tmp_path / "early")


def two_groups(model):
    head = [p for name, p in model.named_parameters() if name.startswith("classifier")]
    known = {id(p) for p in head}
    backbone = [p for p in model.parameters() if id(p) not in known]
    return torch.optim.AdamW([{"params": backbone, "lr": 1e-2}, {"params": head, "lr": 1e-5}])


def test_an_optimiser_with_groups_of_its_own_is_refused_before_a_search(trainer, fresh):
    search, model = search_of(*CHANGES["vectors"]), fresh()
    run = trainer(search, model=model, optimizers=(two_groups(model), None))
    with pytest.raises(ConfigError, match="the optimiser has 2 groups of its own") as error:
        run.train()
    assert "leave the optimiser to the Trainer" in error.value.hint
    assert search.structure is None and attachment_of(model) is None


def test_an_optimiser_with_one_group_trains_all_in_it(trainer, fresh):
    search, model = search_of(*CHANGES["vectors"]), fresh()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    trainer(search, model=model, optimizers=(optimiser, None)).train()
    (group,) = optimiser.param_groups
    trained = [id(p) for p in model.parameters() if p.requires_grad]
    assert [id(p) for p in group["params"]] == trained


def test_masks_of_a_structure_that_was_attached_before_develop_and_learn(trainer, fresh):
    search = search_of(*CHANGES["masks"])
    trainer(search).train()
    model = ss.attach(fresh(), search.structure)
    scores = {n: p.detach().clone() for n, p in attachment_of(model).named_parameters()}
    run = trainer(search_of(*CHANGES["masks"]), model=model, max_steps=STEPS)
    sparsities = []

    def see(args, state, control, **given):
        sparsities.append(weight_sparsity(model))

    run.callback_handler.callbacks[-1].on_step_begin = see
    run.train()
    assert sparsities[0] == 0 and sparsities == sorted(sparsities) and sparsities[-1] >= 0.4
    assert len(set(sparsities)) > 3
    assert any(not torch.equal(p, scores[n]) for n, p in attachment_of(model).named_parameters())
