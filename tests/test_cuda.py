"""The same things on a GPU, where there is one."""

from __future__ import annotations

import pytest
import torch

from sparsearch.errors import ModelStateError
from sparsearch.results.store.store import Store
from sparsearch.spaces.space import build_space
from sparsearch.workers.study import run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize(
    "search", [{"order": "first"}, {"order": "second"}, {"control": "tau-theta"}]
)
def test_a_study_runs_on_the_gpu(study, tmp_path, search):
    db = f"sqlite:///{tmp_path / 'gpu.db'}"
    run(study | {"search": study["search"] | search, "workers": {"device": "cuda"}}, db)
    with Store.open(db, create=False) as store:
        trials = store.trials("tiny")
        assert all(t.state == "ok" for t in trials), [t.message for t in trials]
        assert store.weights("tiny", store.best().trial) is not None


def test_a_model_on_several_devices_is_named(build):
    model = build("bert")
    model.bert.encoder.layer[1].to("cuda")
    with pytest.raises(ModelStateError, match="on several devices: cpu, cuda:0") as error:
        build_space(model, kinds={"lora": {}})
    assert "model.to('cuda:0')" in error.value.hint
    assert build_space(model.to("cuda"), kinds={"lora": {}}).candidates
