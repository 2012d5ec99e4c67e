"""What a strategy ranks: a tiny model, its space and a tiny task."""

from __future__ import annotations

import torch

from sparsearch.config.study import SearchConfig, TrainConfig
from sparsearch.search.strategies.base import RankingContext
from sparsearch.search.training.warm_start import WarmStarts
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.calibration.calibrate import aligning_at
from sparsearch.spaces.space import build_space
from tests.helpers.tiny_task import TRAIN, make_task

BUDGETS = (Budget(max_trainable_params=300), Budget(max_trainable_params=900))


def make_problem(build, family="bert", **search) -> RankingContext:
    model = build(family, labels=2)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = search.pop("dropout", module.p)
    space = build_space(model, kinds={"lora": {"max_rank": 2}, "bitfit": {}, "lnfit": {}})
    task = make_task(end=model.config.eos_token_id if family == "t5" else None)
    starts = WarmStarts(model, task, TrainConfig(precision="fp32"))
    return RankingContext(
        model,
        space,
        task,
        SearchConfig(**{"steps": 4, "batch_size": 8} | search),
        TRAIN,
        BUDGETS,
        lambda: starts.get(0, aligning_at(space.kinds.values(), space.positions)),
    )
