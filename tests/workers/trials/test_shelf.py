"""What workers of one machine share: the same tensors, mapped from files."""

from __future__ import annotations

import copy
import shutil

import pytest
import safetensors.torch
import torch

from sparsearch.config.study import StudyConfig
from sparsearch.results.records import Trial
from sparsearch.search.tasks.task import Split, Task, batches
from sparsearch.search.training.device import frozen_cast_once
from sparsearch.search.training.warm_start import WarmStart
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.calibration.calibrate import aligning_at
from sparsearch.workers.trials.execute import execute
from sparsearch.workers.trials.session import open_session
from sparsearch.workers.trials.shared_cache import open_shared_cache
from tests.helpers.shared_tensors import backbone, mapped


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
    plain = open_session(config)
    with open_shared_cache(tmp_path / "shelf") as shelf:
        benches = [open_session(config, shelf) for _ in range(2)]
        for session in benches:
            for name, parameter in backbone(plain.model).items():
                shared = backbone(session.model)[name]
                assert torch.equal(shared, parameter) and mapped(shared), name
            assert session.task.fingerprint == plain.task.fingerprint
            assert session.task.classes == plain.task.classes
            assert session.task.summary == plain.task.summary and plain.task.warnings
            assert mapped(session.task.train.inputs["input_ids"])
    assert not (tmp_path / "shelf").exists()


def test_trials_on_a_shelf_end_as_others_do(config, tmp_path):
    from sparsearch.workers.plan import plan

    trials = plan(config, (Budget(max_trainable_params=600, text="600"),))
    plain = open_session(config)
    with open_shared_cache(tmp_path / "shelf") as shelf:
        session = open_session(config, shelf)
        for trial in trials:
            one, other = (execute(b, trial) for b in (plain, session))
            assert one.state == "ok", one.message
            assert (one.structure, one.measurements) == (other.structure, other.measurements)
        assert all(mapped(p) for p in backbone(session.model).values())


def test_a_brief_fine_tuning_leaves_what_is_shared_as_it_is(config, tmp_path):
    space = config.space.model_copy(update={"kinds": {"spectral": {"block": 4, "max_blocks": 2}}})
    train = config.train.model_copy(update={"start_steps": 3})
    config = config.model_copy(update={"space": space, "train": train})
    plain, trial = (
        open_session(config),
        Trial(0, "s3pet", Budget(max_trainable_params=60, text="60"), 0),
    )
    with open_shared_cache(tmp_path / "shelf") as shelf:
        session = open_session(config, shelf)
        one, other = (execute(b, trial) for b in (plain, session))
        assert one.state == "ok", one.message
        assert one.structure == other.structure
        assert one.measurements == other.measurements
        weights = [safetensors.torch.load(outcome.weights) for outcome in (one, other)]
        assert all(torch.equal(t, weights[1][n]) for n, t in weights[0].items())
        for name, parameter in backbone(session.model).items():
            assert mapped(parameter) and torch.equal(parameter, backbone(plain.model)[name]), name


def test_bf16_matrices_are_shared_but_not_copied(config, tmp_path):
    with open_shared_cache(tmp_path / "shelf") as shelf:
        model = open_session(config, shelf).model.requires_grad_(False)
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
    with open_shared_cache(tmp_path / "shelf"):
        with open_shared_cache(tmp_path / "shelf"):
            pass
        assert (tmp_path / "shelf").exists()
    assert not (tmp_path / "shelf").exists()


def test_a_warm_start_survives_the_way_to_another_process(study):
    config = StudyConfig.model_validate(study | {"space": {"kinds": {"spectral": {}}}})
    session = open_session(config)
    aligning = aligning_at(session.space.kinds.values(), session.space.positions)
    start = session.starts.get(3, aligning)
    again = WarmStart.from_bytes(start.to_bytes(), torch.device("cpu"))
    assert start.bases and start.bases.keys() == again.bases.keys()
    for key, basis in start.bases.items():
        assert all(torch.equal(a, b) for a, b in zip(basis, again.bases[key], strict=True))
    assert all(torch.equal(tensor, again.head[name]) for name, tensor in start.head.items())


def test_labels_of_tokens_are_cut_with_their_tokens(tmp_path):
    ids = torch.arange(8).reshape(2, 4)

    def split():
        inputs = {"input_ids": ids.clone(), "attention_mask": torch.ones_like(ids)}
        return Split(inputs, torch.tensor([3, 3]), ids.clone(), token_labels=True)

    task = Task("t", "causal-lm", "loss", (), 4, split(), split(), split())
    with open_shared_cache(tmp_path / "shelf") as shelf:
        (batch,) = batches(shelf.task(lambda: task).train, 2, torch.device("cpu"))
    assert torch.equal(batch["labels"], ids[:, :3])
