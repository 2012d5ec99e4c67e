"""Tickets that are cut from what a brief fine-tuning left, see decision 28."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from sparsearch.config.study import StudyConfig
from sparsearch.errors import Cancelled
from sparsearch.results.records import Trial
from sparsearch.search.training.warm_start import WarmStart
from sparsearch.spaces.backbone.parameters import head_parameters
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.calibration.calibrate import aligning_at
from sparsearch.workers.trials.execute import execute
from sparsearch.workers.trials.session import open_session
from sparsearch.workers.trials.shared_cache import open_shared_cache
from tests.helpers.shared_tensors import backbone, mapped

BUDGET = Budget(max_inference_flops=0.8, text="80%")


@pytest.fixture(params=["fp32", "bf16"])
def config(request, study):
    kinds = {"heads": {"compensate": "linear"}, "neurons": {"block": 16, "compensate": "linear"}}
    train = {"start_steps": 3, "backbone": True, "full_lr": 1e-12, "epochs": 3}
    return StudyConfig.model_validate(
        study
        | {
            "space": {"kinds": kinds},
            "train": study["train"] | train | {"precision": request.param},
            "budgets": {"max_inference_flops": ["80%"]},
            "baselines": [],
        }
    )


def with_training(config, **changes):
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})


def test_a_ticket_is_cut_from_what_the_brief_fine_tuning_left(config, tmp_path):
    plain, trial = open_session(config), Trial(0, "surgeon", BUDGET, 0)
    aligning = aligning_at(plain.space.kinds.values(), plain.space.positions)
    start = plain.starts.get(0, aligning, late=True)
    before = plain.starts.get(0, aligning)
    again = WarmStart.from_bytes(start.to_bytes(), torch.device("cpu"))
    assert all(torch.equal(w, again.weights[path]) for path, w in start.weights.items())
    assert not before.weights and any(
        not torch.equal(part, other)
        for key, basis in start.bases.items()
        for part, other in zip(basis, before.bases[key], strict=True)
    ), "moments are those of the weights that are cut"
    with open_shared_cache(tmp_path / "shelf") as shelf:
        session = open_session(config, shelf)
        one, other = (execute(b, trial) for b in (plain, session))
        assert all(mapped(p) for p in backbone(session.model).values())
    assert one.state == "ok", one.message
    assert (one.structure, one.measurements) == (other.structure, other.measurements)
    assert {c.kind for c in one.structure.candidates} == {"heads"}
    stored = safetensors.torch.load(one.weights)
    for path in ("encoder.layer.0.intermediate.dense", "encoder.layer.1.output.dense"):  # not cut
        left = stored[f"backbone:{path}.weight"]
        assert torch.allclose(left, start.weights[path], atol=1e-7)
        assert not torch.allclose(left, backbone(plain.model)[f"{path}.weight"], atol=1e-7)
    for name, value in start.head.items():
        assert torch.allclose(stored[f"head:{name}"], value, atol=1e-7)


def test_a_trial_whose_first_steps_leave_no_training_fails_before_it_begins(config):
    config = with_training(config, start_steps=999)
    session, told = open_session(config), []
    trial = Trial(0, "surgeon", BUDGET, 0)
    outcome = execute(session, trial, observe=lambda *event: told.append(event))
    assert outcome.state == "failed" and not told
    assert "start_steps takes" in outcome.message


@pytest.mark.parametrize("strategy", ["slimming", "update-magnitude"])
def test_what_is_cut_late_is_ranked_over_the_late_head(config, strategy, monkeypatch):
    config = config.model_copy(
        update={
            "space": config.space.model_copy(update={"kinds": {"heads": {}}}),
            "search": config.search.model_copy(update={"steps": 1}),
        }
    )
    session, seen = open_session(config), []
    start = session.starts.get(0, (), late=True)
    at = {
        "slimming": "network_slimming.learn_coefficients",
        "update-magnitude": "update_magnitude.train",
    }[strategy]

    def look(what, *others, **named):
        model = getattr(what, "model", what)
        head = dict(head_parameters(model))
        base = backbone(model)
        seen.append(all(torch.equal(head[n], v) for n, v in start.head.items()))
        seen.append(all(torch.equal(base[f"{n}.weight"], v) for n, v in start.weights.items()))
        raise Cancelled("seen")

    monkeypatch.setattr(f"sparsearch.search.strategies.{at}", look)
    trial = Trial(0, strategy, BUDGET, 0)
    assert execute(session, trial).state == "cancelled"
    assert seen == [True, True]


@pytest.mark.parametrize("steps", [0, 3])
def test_a_ticket_may_begin_with_the_warm_head(config, steps):
    config = with_training(config, start_steps=steps, head_first=True)
    session = open_session(config)
    start = session.starts.get(0, (), late=True)
    outcome = execute(session, Trial(0, "surgeon", BUDGET, 0))
    assert outcome.state == "ok", outcome.message
    stored = safetensors.torch.load(outcome.weights)
    for name, value in start.head.items():
        assert torch.allclose(stored[f"head:{name}"], value, atol=1e-7)
