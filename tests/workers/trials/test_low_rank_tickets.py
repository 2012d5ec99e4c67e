"""Tickets of which a LoRA trains, see decision 64."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from sparsearch.config.study import StudyConfig
from sparsearch.results.export.export import export
from sparsearch.results.records import Trial
from sparsearch.results.store.store import Store
from sparsearch.search.training.evaluate import evaluate
from sparsearch.spaces.backbone.loading import load_model
from sparsearch.spaces.backbone.parameters import positions_of
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.calibration.calibrate import aligning_at
from sparsearch.spaces.compaction.checkpoint import load_checkpoint
from sparsearch.workers.study import run
from sparsearch.workers.trials.execute import execute
from sparsearch.workers.trials.session import open_session
from tests.helpers.shared_tensors import backbone

RANK = 2


@pytest.fixture
def changes(study):
    kinds = {"heads": {"compensate": "linear"}, "neurons": {"block": 16, "compensate": "linear"}}
    train = {"start_steps": 3, "backbone": True, "backbone_rank": RANK, "epochs": 3}
    return study | {
        "space": {"kinds": kinds},
        "train": study["train"] | train,
        "search": {"strategy": "surgeon"},
        "budgets": {"max_inference_flops": ["80%"], "max_trainable_params": ["20%"]},
        "baselines": [],
    }


def budget(params):
    return Budget(max_inference_flops=0.8, max_trainable_params=params, text="so much")


def test_what_trains_is_a_lora_that_ends_up_in_the_weights(changes):
    session = open_session(StudyConfig.model_validate(changes))
    before = {name: p.detach().clone() for name, p in backbone(session.model).items()}
    outcome = execute(session, Trial(0, "surgeon", budget(10**6), 0))
    assert outcome.state == "ok", outcome.message
    assert all(torch.equal(p, before[name]) for name, p in backbone(session.model).items())
    aligning = aligning_at(session.space.kinds.values(), session.space.positions)
    start = session.starts.get(0, aligning, late=True)
    stored = safetensors.torch.load(outcome.weights)
    left = {n.partition(":")[2]: w for n, w in stored.items() if n.startswith("backbone:")}
    linears = {f"{p.module}.weight" for p in positions_of(session.model) if p.role == "linear"}
    trained = sum(RANK * sum(left[name].shape) for name in linears)
    assert outcome.trainable_params == trained < sum(w.numel() for w in left.values())
    cut = set()
    for name, weight in left.items():
        if name in linears:
            was = start.weights[name.removesuffix(".weight")]
            if was.shape == weight.shape:
                change = torch.linalg.matrix_rank(weight - was, rtol=1e-3)
                assert 1 <= change <= RANK
            else:
                cut.add(name)
        elif not name.endswith("bias"):
            assert torch.equal(weight, before[name])
    assert cut, "something was cut"


def test_a_lora_above_the_budget_is_infeasible_and_says_how_large_it_is(changes):
    session = open_session(StudyConfig.model_validate(changes))
    most = execute(session, Trial(0, "surgeon", budget(10**6), 0)).trainable_params
    assert execute(session, Trial(0, "surgeon", budget(most), 0)).state == "ok"
    outcome = execute(session, Trial(0, "surgeon", budget(most - 1), 0))
    assert outcome.state == "infeasible" and outcome.trainable_params == most
    assert f"has {most:,} parameters" in outcome.message
    assert "lower train.backbone_rank" in outcome.message


def test_a_study_exports_such_a_ticket_as_a_checkpoint(changes, db, tmp_path):
    run(changes, db)
    with Store.open(db, create=False) as store:
        best = store.best()
        assert best.structure is not None
        packed = store.weights("tiny", best.trial)
    export(best, packed, "checkpoint", tmp_path / "small")
    again = load_checkpoint(tmp_path / "small")
    task = open_session(StudyConfig.model_validate(changes)).task
    assert evaluate(again, task, task.test, "fp32") == pytest.approx(best.test_score)
    assert evaluate(again, task, task.validation, "fp32") == pytest.approx(best.score)


def test_a_lora_that_cannot_be_added_to_a_weight_is_refused_before_training(changes, monkeypatch):
    def load_shared(*arguments, **named):
        model = load_model(*arguments, **named)
        first, second, *_ = model.base_model.encoder.layer
        second.intermediate.dense.weight = first.intermediate.dense.weight
        return model

    monkeypatch.setattr("sparsearch.workers.trials.session.load_model", load_shared)
    heads = {"kinds": {"heads": {"compensate": "linear"}}}  # what is shared is not cut
    session = open_session(StudyConfig.model_validate(changes | {"space": heads}))
    trained = []
    outcome = execute(
        session,
        Trial(0, "surgeon", Budget(max_inference_flops=0.95), 0),
        observe=lambda phase, *_: trained.append(phase),
    )
    assert outcome.state == "failed" and "shares the weight" in outcome.message
    assert "train" not in trained


def test_a_rank_needs_a_backbone_that_trains(changes):
    with pytest.raises(ValueError, match="set backbone: true too"):
        StudyConfig.model_validate(
            changes | {"train": changes["train"] | {"backbone": False, "backbone_rank": 4}}
        )
