"""Whole studies on a tiny model: plan, outcomes, determinism, reuse of rankings, failures as outcomes."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

import sparsearch.workers.trials.execute as trial_module
import sparsearch.workers.trials.fit as fit_module
from sparsearch.config.study import StudyConfig
from sparsearch.errors import InfeasibleError, StoreError
from sparsearch.results.records import Trial
from sparsearch.results.store.store import Store
from sparsearch.spaces.attachment.weights_file import weights_of
from sparsearch.spaces.budget import Budget
from sparsearch.workers.plan import plan
from sparsearch.workers.study import run
from sparsearch.workers.trials.session import open_session
from tests.helpers.study_records import records


def essence(db):
    """What a trial found; not how long it took."""
    return [
        (t.number, t.strategy, t.budget, t.seed, t.state, t.score, t.test_score, t.structure)
        for t in records(db)
    ]


def test_plan_runs_references_once_per_seed_and_each_strategy_per_budget(study):
    config = StudyConfig.model_validate(
        study | {"seeds": [0, 1], "baselines": ["s3pet", "random", "full"]}
    )
    budgets = (Budget(max_trainable_params=200), Budget(max_trainable_params=600))
    trials = plan(config, budgets)
    assert [t.number for t in trials] == list(range(10))
    assert [(t.strategy, t.budget, t.seed) for t in trials[:5]] == [
        ("full", None, 0),
        ("s3pet", budgets[0], 0),
        ("random", budgets[0], 0),
        ("s3pet", budgets[1], 0),
        ("random", budgets[1], 0),
    ]


def test_a_study_runs_every_strategy_to_an_outcome(study, db):
    everything = ["random", "lora", "lora-qv", "bitfit", "lnfit", "adapter", "head", "full"]
    everything += ["lora-xs@8", "ia3@4"]
    record = run(study | {"baselines": everything}, db)
    assert (record.trials, record.finished) == (20, 20)
    for t in records(db):
        assert t.state == "ok", t.message
        assert 0 <= t.score <= 1 and 0 <= t.test_score <= 1
        if t.budget is not None:
            assert 0 < t.trainable_params <= t.budget["max_trainable_params"]
            assert t.structure is not None
        assert t.seconds > 0 and t.peak_bytes > 0
    with Store.open(db, create=False) as store:
        best = store.best(task=record.task, max_trainable_params=200)
        assert best.trainable_params <= 200
        assert store.weights("tiny", best.trial) is not None


def test_sparse_deltas_on_the_gradients_places_run_like_any_kind(study, db):
    space = {"kinds": {"sparse_delta": {"smallest": 8, "support": "gradient"}}}
    record = run(study | {"space": space, "baselines": ["probe", "random"]}, db)
    assert [t.message for t in records(db) if t.state != "ok"] == []
    with Store.open(db, create=False) as store:
        best = store.best(task=record.task, max_trainable_params=600)
        weights = safetensors.torch.load(store.weights("tiny", best.trial))
    for c in best.structure.candidates:
        assert c.kind == "sparse_delta" and c.params == c.size
        rows, cols = (weights[f"{c.position}:sparse_delta.{n}"].long() for n in ("rows", "cols"))
        assert len(torch.unique(rows * 1000 + cols)) == c.size


def test_a_study_under_a_share_of_stored_bytes_chooses_precisions(study, db):
    """What is stored, head and choice apart, are the bytes of the file; the references store all or nothing."""
    bits = {"bits": [32, 4]}
    space = {"kinds": {"lora": {"max_rank": 2} | bits, "bitfit": bits, "lnfit": bits}}
    changed = {"space": space, "budgets": {"max_bytes": ["1%"]}, "baselines": ["head", "full"]}
    record = run(study | changed, db)
    trials = {t.strategy: t for t in records(db)}
    assert [t.message for t in trials.values() if t.state != "ok"] == []
    most = 4 * (record.backbone_params // 100)
    assert trials["s3pet"].budget["max_bytes"] == most
    assert trials["head"].stored_bytes == 0
    assert trials["full"].stored_bytes == 4 * record.backbone_params
    with Store.open(db, create=False) as store:
        best = store.best(max_bytes="1%")
        assert store.best(max_bytes=best.stored_bytes - 1) is None
        weights = safetensors.torch.load(store.weights("tiny", best.trial))
    assert best.stored_bytes == trials["s3pet"].stored_bytes <= most
    stored = sum(t.nbytes for name, t in weights.items() if not name.startswith("head:"))
    assert best.structure.bytes == stored
    assert best.stored_bytes == best.structure.stored_bytes > stored
    assert best.structure.provenance.offered > len(best.structure.candidates)


def test_equal_seeds_give_equal_structures_and_scores(study, db, tmp_path):
    other = f"sqlite:///{tmp_path / 'other.db'}"
    run(study, db)
    run(study, other)
    assert essence(db) == essence(other)


def test_seeds_differ(study, db):
    run(study | {"seeds": [0, 1], "baselines": []}, db)
    by_seed = {(t.seed, t.budget["max_trainable_params"]): t.structure for t in records(db)}
    assert any(by_seed[0, b] != by_seed[1, b] for b in (200, 600))


def test_the_same_command_again_changes_nothing_and_loads_nothing(study, db, monkeypatch):
    run(study, db)
    before = essence(db)
    monkeypatch.setattr("sparsearch.workers.study.open_session", lambda c: pytest.fail("loaded"))
    assert run(study, db).finished == len(before)
    assert essence(db) == before


def test_another_config_under_the_same_name_is_refused(study, db):
    run(study, db, ["baselines=[]"])
    with pytest.raises(StoreError, match=r"search.steps: 3 -> 4|search.steps"):
        run(study, db, ["baselines=[]", "search.steps=4"])


def test_a_default_written_out_is_the_same_study(study, db):
    first = run(study, db, ["baselines=[]"])
    again = run(study, db, ["baselines=[]", "search.alpha_lr=0.1", "workers.threads=1"])
    assert again == first


def test_more_seeds_are_more_trials_of_the_same_study(study, db):
    first = run(study, db, ["baselines=[]"])
    before = records(db)
    again = run(study, db, ["baselines=[]", "seeds=[0, 1]"])
    assert (first.finished, again.finished) == (len(before), 2 * len(before))
    assert records(db)[: len(before)] == before
    assert {t.seed for t in records(db)} == {0, 1}


def test_a_race_leaves_out_what_runs_when_all_is_asked_for(study, db):
    raced = study | {"seeds": [0, 1], "baselines": ["random", "full"]}
    assert run(raced, db).state == "finished"
    before = records(db)
    assert {t.state for t in before if t.seed == 0} == {"ok"}
    assert [t.state for t in before if t.seed == 1 and t.strategy == "full"] == ["decided"]
    assert run(raced, db).finished == len(before) == 10
    assert records(db) == before, "what was left out stays left out"
    run(raced, db, ["race=false"])
    after = records(db)
    assert {t.state for t in after} == {"ok"}
    assert [t for t in after if before[t.number].state == "ok"] == [
        t for t in before if t.state == "ok"
    ]


@pytest.mark.parametrize("max_attempts", [1, 3])
def test_what_goes_wrong_in_a_trial_is_its_outcome(study, db, monkeypatch, max_attempts):
    real = fit_module.train

    def failing(*arguments):
        failing.calls += 1
        if failing.calls == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if failing.calls == 2:
            raise ValueError("no idea")
        return real(*arguments)

    failing.calls = 0
    monkeypatch.setattr(fit_module, "train", failing)
    workers = {"max_attempts": max_attempts}
    run(study | {"baselines": ["random"], "workers": workers}, db)
    first, second, *others = records(db)
    assert (first.state, first.attempts) == (("oom", 1) if max_attempts == 1 else ("ok", 2))
    assert (second.state, second.attempts) == ("failed", 1) and "no idea" in second.message
    assert [t.state for t in others] == ["ok", "ok"]


def test_nan_is_an_outcome_with_advice(study, db, tmp_path, tiny_folder):
    """A backbone with a damaged embedding: every trial meets NaN, the study ends all the same."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "damaged"
    shutil.copytree(tiny_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["bert.embeddings.position_embeddings.weight"][1] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    run(study | {"model": {"path": str(folder)}, "baselines": ["random", "head"]}, db)
    assert {t.state for t in records(db)} == {"failed"}
    assert all(
        "NaN or infinity" in t.message and "lower train.lr" in t.message for t in records(db)
    )


def test_yaml_numbers_without_a_point_are_numbers(study, db):
    run(study, db, ["baselines=[]", "train.lr=1e-2", "train.kind_lr={lora: 1e-3}"])
    assert all(t.state == "ok" for t in records(db))


def test_an_infeasible_baseline_is_an_outcome(study, db):
    run(study | {"budgets": [40], "baselines": ["lora-qv"]}, db)
    search, uniform = records(db)
    assert search.state == "ok"
    assert uniform.state == "infeasible" and "smallest is lora" in uniform.message


def test_a_budget_below_every_candidate_stops_before_anything_is_written(study, tmp_path):
    with pytest.raises(InfeasibleError, match="smallest is bitfit at .* with 32 parameters"):
        run(study | {"budgets": [31]}, f"sqlite:///{tmp_path / 'none.db'}")
    assert not (tmp_path / "none.db").exists()


def test_a_stored_ranking_is_reused(study, db, monkeypatch):
    run(study | {"baselines": []}, db)
    monkeypatch.setattr(trial_module, "rank", lambda *a, **k: pytest.fail("searched again"))
    longer = {**study["train"], "epochs": 2}
    run(study | {"baselines": [], "name": "again", "train": longer}, db)
    with Store.open(db, create=False) as store:
        found = [(t.state, t.structure) for t in store.trials("again")]
    assert found == [("ok", t.structure) for t in records(db)]


def test_one_search_serves_budgets_between_its_ends_in_other_studies_too(study, db, monkeypatch):
    sampled = {**study["search"], "budget_schedule": "sampled"}
    first = study | {"budgets": {"max_trainable_params": [200, 600]}, "search": sampled}
    run(first | {"baselines": []}, db)
    made = []
    rank_on = trial_module.rank_on
    monkeypatch.setattr(
        trial_module, "rank_on", lambda *a, **k: made.append(a) or rank_on(*a, **k)
    )
    more = {"budgets": {"max_trainable_params": [200, 400, 600]}, "name": "more", "baselines": []}
    run(first | more, db)
    assert made == [], "the ranking was there"
    run(first | more | {"name": "stops", "search": sampled | {"early_stop": True}}, db)
    assert len(made) == 1


def test_an_option_that_no_cost_tells_of_is_another_ranking(study):
    keys = set()
    for alpha in (8.0, 16.0):
        config = StudyConfig.model_validate(
            study | {"space": {"kinds": {"lora": {"alpha": alpha}}}}
        )
        keys.add(
            trial_module.ranking_key(
                open_session(config), "s3pet", Budget(max_trainable_params=600), 0
            )
        )
    assert len(keys) == 2


@pytest.mark.parametrize(("kind", "rankings"), [("lora", 1), ("heads", 2)])
def test_the_length_at_which_flops_are_counted_is_part_of_a_ranking(study, kind, rankings):
    """No row is longer than either, so that both tasks have the same rows."""
    keys, rows = set(), set()
    for length in (32, 64):
        task = study["task"] | {"max_length": length}
        session = open_session(
            StudyConfig.model_validate(study | {"space": {"kinds": {kind: {}}}, "task": task})
        )
        keys.add(trial_module.ranking_key(session, "s3pet", Budget(max_bytes=600), 0))
        rows.add(session.task.fingerprint)
    assert len(rows) == 1 and len(keys) == rankings


def test_a_brief_fine_tuning_reaches_ranking_and_trial(study):
    kinds = {"spectral": {"block": 4, "max_blocks": 2}}
    budget, keys, weights, phases = Budget(max_trainable_params=60, text="60"), [], [], []
    for steps in (0, 2, 2):
        content = study | {"space": {"kinds": kinds}}
        content["train"] = content["train"] | {"start_steps": steps}
        session = open_session(StudyConfig.model_validate(content))
        trial = Trial(0, "s3pet", budget, 0)
        seen = []
        outcome = trial_module.execute(
            session, trial, observe=lambda *told, seen=seen: seen.append(told[0])
        )
        assert outcome.state == "ok", outcome.message
        keys.append(trial_module.ranking_key(session, "s3pet", budget, 0))
        weights.append(safetensors.torch.load(outcome.weights))
        phases.append(seen.count("directions"))
    assert phases == [0, 2, 2], "once for ranking and training together"
    assert keys[0] != keys[1] == keys[2]
    left = [{n: t for n, t in found.items() if n.endswith("left")} for found in weights]
    assert left[1] and left[1].keys() == left[2].keys()
    assert all(torch.equal(t, left[2][n]) for n, t in left[1].items())
    assert left[0].keys() != left[1].keys() or any(
        not torch.equal(t, left[1][n]) for n, t in left[0].items()
    )


def test_no_trial_changes_the_backbone(study):
    config = StudyConfig.model_validate(study)
    session = open_session(config)
    before = {n: p.clone() for n, p in session.model.base_model.state_dict().items()}
    for trial in plan(config, (Budget(max_trainable_params=600, text="600"),)):
        outcome = trial_module.execute(session, trial)
        assert outcome.state == "ok", outcome.message
        after = session.model.base_model.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(t, before[n]) for n, t in after.items())
        assert all(name.startswith("head:") for name in weights_of(session.model))


def test_regression_runs_end_to_end(study, db, tmp_path):
    import json

    files = {}
    for split in ("train", "validation", "test"):
        rows = [{"text": "good " * (1 + i % 4), "label": (i % 4) / 3} for i in range(40)]
        files[split] = str(tmp_path / f"{split}.jsonl")
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {**study["task"], "type": "regression", "metric": "pearson"}
    task["data"] = {"path": "json", "data_files": files}
    run(study | {"task": task, "baselines": ["full"]}, db)
    assert all(t.state == "ok" for t in records(db))


def test_changed_data_is_another_study_and_another_ranking(study, db, tmp_path):
    files = {}
    for split, source in study["task"]["data"]["data_files"].items():
        files[split] = str(tmp_path / f"{split}.jsonl")
        (tmp_path / f"{split}.jsonl").write_text(Path(source).read_text())
    task = {**study["task"], "data": {"path": "json", "data_files": files}}
    run(study | {"task": task, "baselines": []}, db)
    text = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "train.jsonl").write_text(
        text.replace('"label": 0', '"label": 2')
        .replace('"label": 1', '"label": 0')
        .replace('"label": 2', '"label": 1')
    )
    with pytest.raises(StoreError, match="the content of the data file.s. 'train' changed"):
        run(study | {"task": task, "baselines": []}, db)


def test_a_preset_is_a_recipe_that_the_study_may_change(study):
    config = StudyConfig.model_validate(
        {k: v for k, v in study.items() if k not in ("space", "search", "budgets")}
        | {
            "space": {"preset": "earlybert"},
            "budgets": {"max_inference_flops": ["80%"]},
            "search": {"steps": 7},
        }
    )
    assert config.search.strategy == "slimming" and config.search.steps == 7
    assert config.train.backbone and config.train.epochs == study["train"]["epochs"]
