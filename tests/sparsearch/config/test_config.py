from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from sparsearch.config.reader import read_study
from sparsearch.config.study import BudgetConfig, StudyConfig, TrainConfig, spread_budgets
from sparsearch.config.train import KIND_LR


def test_naming_one_rate_keeps_the_others():
    assert TrainConfig(kind_lr={"bitfit": 0.5}).kind_lr == {**KIND_LR, "bitfit": 0.5}
    assert TrainConfig(kind_lr={"lora": 0.5}).kind_lr["lora"] == 0.5
    with pytest.raises(ValidationError, match="kind_lr names"):
        TrainConfig(kind_lr={"lore": 0.5})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"max_trainable_params": ["1%", 7]},
            [{"max_trainable_params": "1%"}, {"max_trainable_params": 7}],
        ),
        (["1%", {"max_bytes": 9}], [{"max_trainable_params": "1%"}, {"max_bytes": 9}]),
        (
            {"max_trainable_params": ["1%", "2%"], "max_inference_flops": "100%"},
            [{"max_trainable_params": p, "max_inference_flops": "100%"} for p in ("1%", "2%")],
        ),
    ],
)
def test_budgets_spread_into_one_mapping_each(given, expected):
    assert spread_budgets(given) == expected


@pytest.mark.parametrize("limit", ["0%", "-1%", "101%", "abc%", "1e-1%", "5", 0, -3, 1.5, True])
def test_impossible_limits_are_refused(limit):
    with pytest.raises(ValidationError):
        BudgetConfig(max_trainable_params=limit)


def test_a_study_is_frozen(study):
    config = StudyConfig.model_validate(study)
    with pytest.raises(ValidationError):
        config.name = "other"


def test_only_true_and_false_are_booleans(tmp_path):
    """The guide's own space says ``on`` without quotes, which YAML 1.1 takes for true."""
    text = (Path(__file__).parents[3] / "docs" / "guide" / "spaces.md").read_text()
    (block,) = [
        b for b in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "bottleneck: 8" in b
    ]
    (tmp_path / "study.yaml").write_text(f"{block}train: {{dropout: true}}\n")
    raw, _ = read_study(tmp_path / "study.yaml", ["space.kinds.ia3={on: [no, 'off']}"])
    assert raw["space"]["kinds"]["bitfit"] == {"on": ["*norm"]}
    assert raw["space"]["kinds"]["ia3"] == {"on": ["no", "off"]}
    assert raw["train"]["dropout"] is True
