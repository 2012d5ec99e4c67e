"""What workers of one machine share: the same tensors, mapped from files."""

from __future__ import annotations

import copy
import shutil

import pytest
import safetensors.torch
import torch
from transformers import PreTrainedModel

from sparsearch.config import StudyConfig
from sparsearch.errors import Cancelled
from sparsearch.results.values import Trial
from sparsearch.search.device import frozen_cast_once
from sparsearch.search.warm_start import WarmStart
from sparsearch.spaces.align import aligning_at
from sparsearch.spaces.backbone import head_parameters
from sparsearch.spaces.budget import Budget
from sparsearch.workers.shelf import _mapped_ranges, open_shelf
from sparsearch.workers.trial import execute
from sparsearch.workers.workbench import open_workbench, start_of


def mapped(tensor):
    return any(start <= tensor.data_ptr() < end for start, end in _mapped_ranges())


def backbone(model: PreTrainedModel):
    return dict(model.base_model.named_parameters())


@pytest.fixture(params=["float32", "float16"])
def config(request, study, tiny_folder, tmp_path):
    """Of a checkpoint in either precision; transformers maps only the first into float32."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    dtype = getattr(torch, request.param)
    tensors = {n: t.to(dtype) for n, t in tensors.items()}
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    train = study["train"] | {"precision": "bf16"}
    return StudyConfig.model_validate(study | {"model": {"path": str(folder)}, "train": train})


def test_a_second_worker_maps_what_the_first_one_wrote(config, tmp_path):
    plain = open_workbench(config)
    with open_shelf(tmp_path / "shelf") as shelf:
        benches = [open_workbench(config, shelf) for _ in range(2)]
        for bench in benches:
            for name, parameter in backbone(plain.model).items():
                shared = backbone(bench.model)[name]
                assert torch.equal(shared, parameter) and mapped(shared), name
            assert bench.task.fingerprint == plain.task.fingerprint
            assert bench.task.classes == plain.task.classes
            assert mapped(bench.task.train.inputs["input_ids"])
    assert not (tmp_path / "shelf").exists()


def test_trials_on_a_shelf_end_as_others_do(config, tmp_path):
    from sparsearch.workers.study import plan

    trials = plan(config, (Budget(600, text="600"),))
    plain = open_workbench(config)
    with open_shelf(tmp_path / "shelf") as shelf:
        bench = open_workbench(config, shelf)
        for trial in trials:
            one, other = (execute(b, trial, lambda key: None) for b in (plain, bench))
            assert one.state == "ok", one.message
            assert (one.structure, one.measurements) == (other.structure, other.measurements)
        assert all(mapped(p) for p in backbone(bench.model).values())


def test_a_brief_fine_tuning_leaves_what_is_shared_as_it_is(config, tmp_path):
    space = config.space.model_copy(update={"kinds": {"spectral": {"block": 4, "max_blocks": 2}}})
    train = config.train.model_copy(update={"start_steps": 3})
    config = config.model_copy(update={"space": space, "train": train})
    plain, trial = open_workbench(config), Trial(0, "s3pet", Budget(60, text="60"), 0)
    with open_shelf(tmp_path / "shelf") as shelf:
        bench = open_workbench(config, shelf)
        one, other = (execute(b, trial, lambda key: None) for b in (plain, bench))
        assert one.state == "ok", one.message
        assert one.structure == other.structure
        assert one.measurements == other.measurements
        weights = [safetensors.torch.load(outcome.weights) for outcome in (one, other)]
        assert all(torch.equal(t, weights[1][n]) for n, t in weights[0].items())
        for name, parameter in backbone(bench.model).items():
            assert mapped(parameter) and torch.equal(parameter, backbone(plain.model)[name]), name


TICKET = {"heads": {"compensate": "linear"}, "neurons": {"block": 16, "compensate": "linear"}}


@pytest.fixture
def ticket_config(config):
    return config.model_copy(
        update={
            "space": config.space.model_copy(update={"kinds": TICKET}),
            "train": config.train.model_copy(
                update={"start_steps": 3, "backbone": True, "full_lr": 1e-12, "epochs": 3}
            ),
        }
    )


def test_a_ticket_is_cut_from_what_the_brief_fine_tuning_left(ticket_config, tmp_path):
    config, budget = ticket_config, Budget(max_inference_flops=0.8, text="80%")
    plain, trial = open_workbench(config), Trial(0, "surgeon", budget, 0)
    aligning = aligning_at(plain.space.kinds.values(), plain.space.positions)
    start = start_of(plain.starts, 0, aligning, config.train, late=True)
    before = start_of(plain.starts, 0, aligning, config.train)
    again = WarmStart.from_bytes(start.to_bytes(), torch.device("cpu"))
    assert all(torch.equal(w, again.weights[path]) for path, w in start.weights.items())
    assert not before.weights and any(
        not torch.equal(part, other)
        for key, basis in start.bases.items()
        for part, other in zip(basis, before.bases[key], strict=True)
    ), "moments are those of the weights that are cut"
    with open_shelf(tmp_path / "shelf") as shelf:
        bench = open_workbench(config, shelf)
        one, other = (execute(b, trial, lambda key: None) for b in (plain, bench))
        assert all(mapped(p) for p in backbone(bench.model).values())
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


def test_a_trial_whose_first_steps_leave_no_training_fails_before_it_begins(ticket_config):
    config = ticket_config.model_copy(
        update={"train": ticket_config.train.model_copy(update={"start_steps": 999})}
    )
    bench, told = open_workbench(config), []
    trial = Trial(0, "surgeon", Budget(max_inference_flops=0.8, text="80%"), 0)
    outcome = execute(bench, trial, lambda key: None, lambda *event: told.append(event))
    assert outcome.state == "failed" and not told
    assert "start_steps takes" in outcome.message


@pytest.mark.parametrize("strategy", ["slimming", "update-magnitude"])
def test_what_is_cut_late_is_ranked_over_the_late_head(ticket_config, strategy, monkeypatch):
    config = ticket_config.model_copy(
        update={
            "space": ticket_config.space.model_copy(update={"kinds": {"heads": {}}}),
            "search": ticket_config.search.model_copy(update={"steps": 1}),
        }
    )
    bench, seen = open_workbench(config), []
    start = start_of(bench.starts, 0, (), config.train, late=True)
    at = {"slimming": "learn_coefficients", "update-magnitude": "train"}[strategy]

    def look(model, *others, **named):
        head = dict(head_parameters(model))
        base = backbone(model)
        seen.append(all(torch.equal(head[n], v) for n, v in start.head.items()))
        seen.append(all(torch.equal(base[f"{n}.weight"], v) for n, v in start.weights.items()))
        raise Cancelled("seen")

    monkeypatch.setattr(f"sparsearch.search.strategies.{at}", look)
    trial = Trial(0, strategy, Budget(max_inference_flops=0.8, text="80%"), 0)
    assert execute(bench, trial, lambda key: None).state == "cancelled"
    assert seen == [True, True]


def test_bf16_matrices_are_shared_but_not_copied(config, tmp_path):
    with open_shelf(tmp_path / "shelf") as shelf:
        model = open_workbench(config, shelf).model.requires_grad_(False)
        weight = model.base_model.get_parameter("encoder.layer.0.attention.self.query.weight")
        whole = weight.data
        with frozen_cast_once(model, "bf16"):
            assert weight.dtype == torch.bfloat16 and mapped(weight)
            assert torch.equal(weight, whole.to(torch.bfloat16))
        assert weight.data_ptr() == whole.data_ptr()
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.base_model.encoder.layer[0].attention.self.query.weight.add_(1.0)
        with frozen_cast_once(changed, "bf16"):
            now = changed.base_model.encoder.layer[0].attention.self.query.weight
            assert torch.equal(now, (whole + 1.0).to(torch.bfloat16))


def test_a_shelf_stays_while_another_worker_uses_it(tmp_path):
    with open_shelf(tmp_path / "shelf"):
        with open_shelf(tmp_path / "shelf"):
            pass
        assert (tmp_path / "shelf").exists()
    assert not (tmp_path / "shelf").exists()


def test_a_warm_start_survives_the_way_to_another_process(study):
    config = StudyConfig.model_validate(study | {"space": {"kinds": {"spectral": {}}}})
    bench = open_workbench(config)
    aligning = aligning_at(bench.space.kinds.values(), bench.space.positions)
    start = bench.starts.get(3, aligning)
    again = WarmStart.from_bytes(start.to_bytes(), torch.device("cpu"))
    assert start.bases and start.bases.keys() == again.bases.keys()
    for key, basis in start.bases.items():
        assert all(torch.equal(a, b) for a, b in zip(basis, again.bases[key], strict=True))
    assert all(torch.equal(tensor, again.head[name]) for name, tensor in start.head.items())
