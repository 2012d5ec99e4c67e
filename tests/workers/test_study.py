"""Whole studies on a tiny model: plan, outcomes, determinism, reuse of rankings, failures as outcomes."""

from __future__ import annotations

import copy
import shutil
import threading
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

import sparsearch.workers.trials.execute as trial_module
import sparsearch.workers.trials.fit as fit_module
from sparsearch.config.study import StudyConfig
from sparsearch.errors import ExportError, InfeasibleError, LeaseError, StoreError, StructureError
from sparsearch.results.export.export import export
from sparsearch.results.records import Trial
from sparsearch.results.store.store import Store
from sparsearch.results.store.writing.lease import Owner
from sparsearch.spaces.attachment.weights_file import weights_of
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.compaction.checkpoint import load_checkpoint
from sparsearch.spaces.compaction.checkpoint_document import read_checkpoint
from sparsearch.spaces.compaction.sparsity import count_zeros
from sparsearch.workers.callbacks import StudyCallbacks
from sparsearch.workers.plan import plan
from sparsearch.workers.study import run
from sparsearch.workers.trials.session import open_session
from sparsearch.workers.trials.train_structure import train_structure


@pytest.fixture
def db(tmp_path):
    return f"sqlite:///{tmp_path / 'study.db'}"


def records(db):
    with Store.open(db, create=False) as store:
        return store.trials("tiny")


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
    record = run(study | {"baselines": everything}, db)
    assert (record.trials, record.finished) == (16, 16)
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


def test_a_second_driver_is_refused_by_name(study, db):
    run(study, db, ["baselines=[]"])
    with Store.open(db, create=True, owner=Owner("elsewhere", 7, 0.0)) as store:
        store.acquire("tiny")
    with pytest.raises(LeaseError, match="elsewhere:7"):
        run(study, db, ["baselines=[]"])


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
            session, trial, lambda key: None, lambda *told, seen=seen: seen.append(told[0])
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
        outcome = trial_module.execute(session, trial, lambda key: None)
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


def test_training_an_exported_structure_picks_it_up(study, db, tmp_path):
    run(study | {"baselines": []}, db)
    with Store.open(db, create=False) as store:
        best = store.best()
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(copy.deepcopy(study)))
    result = train_structure(best.structure, path, out=tmp_path / "spec")
    again = train_structure(best.structure, path)
    assert 0 <= result.score <= 1 and result.score == again.score
    assert "rows of split 'test' stand in split 'train' too" in " ".join(result.warnings)
    assert (tmp_path / "spec" / "modules.safetensors").is_file()


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


def test_a_second_driver_in_the_same_process_is_refused_too(study, db):
    refused = []

    class Second(StudyCallbacks):
        def finished(self, trial, outcome):
            with pytest.raises(LeaseError, match="by this process already") as caught:
                run(study, db, ["baselines=[]"])
            refused.append(caught)

    assert run(study, db, ["baselines=[]"], listener=Second()).finished == len(refused) > 0
    run(study, db, ["baselines=[]"])


def test_the_lease_is_renewed_while_nothing_is_heard(study, db, monkeypatch):
    monkeypatch.setattr("sparsearch.workers.study._RENEW_SECONDS", 0.01)
    renewed, during = [], set()
    renew = Store.renew
    monkeypatch.setattr(
        Store,
        "renew",
        lambda *a, **k: (renewed.append(threading.current_thread()), renew(*a, **k)),
    )

    class Watch(StudyCallbacks):
        def started(self, trial):
            before = len(renewed)
            time.sleep(0.3)
            during.add(len(renewed) > before)

    run(study, db, ["baselines=[]"], listener=Watch())
    assert during == {True} and threading.main_thread() not in renewed


def test_a_trial_that_kills_its_drivers_comes_last(study, db):
    class Started(StudyCallbacks):
        def __init__(self):
            self.order = []

        def started(self, trial):
            self.order.append(trial.number)
            if len(self.order) == stop_after:
                raise KeyboardInterrupt

    stop_after = 1
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(study, db, listener=Started())
    stop_after, listener = 0, Started()
    count = run(study, db, listener=listener).trials
    assert listener.order == [*range(1, count), 0]


def test_what_a_listener_raises_is_no_outcome(study, db):
    class Broken(StudyCallbacks):
        def progressed(self, trial, phase, done, total, score=None):
            raise RuntimeError("the dashboard is down")

    with pytest.raises(RuntimeError, match="dashboard"):
        run(study, db, listener=Broken())
    assert {t.state for t in records(db)} == {"queued"}
    run(study, db)
    assert {t.state for t in records(db)} == {"ok"}


def test_of_two_threads_one_drives(study, db):
    ready, refused = threading.Barrier(2), []

    def drive():
        ready.wait()
        try:
            run(study, db)
        except LeaseError as error:
            refused.append(error)

    threads = [threading.Thread(target=drive) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {t.state for t in records(db)} == {"ok"}
    with Store.open(db, create=False) as store:
        assert all(a.number == 1 for a in store.attempts("tiny")), "no trial ran twice"


def test_a_study_goes_on_with_the_weights_it_began_with(study, db, tiny_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    own = study | {"model": {"path": str(folder)}}

    class Once(StudyCallbacks):
        def finished(self, trial, outcome):
            if outcome.structure is not None:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(own, db, listener=Once())
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    changed = {n: t + 0.01 for n, t in weights.items()}
    safetensors.torch.save_file(changed, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(StoreError, match="began with other weights"):
        run(own, db)
    before = [t.number for t in records(db)]
    with pytest.raises(StoreError, match="began with other weights"):
        run(own | {"seeds": [0, 7]}, db)
    assert [t.number for t in records(db)] == before, "a growth that is refused queues nothing"
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    run(own, db)
    assert {t.state for t in records(db)} == {"ok"}


def test_a_lost_lease_stops_the_driver_and_fails_no_trial(study, db, monkeypatch):
    monkeypatch.setattr("sparsearch.workers.driver._RENEW_SECONDS", 0.0)
    monkeypatch.setattr(
        Store, "renew", lambda *a, **k: (_ for _ in ()).throw(LeaseError("the lease is lost"))
    )
    with pytest.raises(LeaseError):
        run(study, db)
    assert {t.state for t in records(db)} == {"queued"}


def test_a_checkpoint_without_a_pooler_exports_the_one_it_trained(
    study, db, tmp_path, tiny_folder
):
    """The pooler is then part of the head: any loader gets it, however it draws missing weights."""
    import shutil

    import peft
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForSequenceClassification

    from sparsearch.results.export.export import export
    from sparsearch.spaces.compaction.checkpoint_document import read_checkpoint

    folder = tmp_path / "poolerless"
    shutil.copytree(tiny_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    kept = {n: t for n, t in tensors.items() if "pooler" not in n}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    run(study | {"model": {"path": str(folder)}, "baselines": []}, db)
    with Store.open(db, create=False) as store:
        best = store.best()
        weights = store.weights("tiny", best.trial)
    assert best.head_params == 32 * 32 + 32 + 2 * 32 + 2
    export(best, weights, "checkpoint", tmp_path / "merged")
    costs = read_checkpoint(tmp_path / "merged").costs
    assert costs.head_params == best.head_params
    assert costs.backbone_params == costs.slim_params
    export(best, weights, "peft", tmp_path / "adapter")
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        fresh = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=2, ignore_mismatched_sizes=True
        )
        model = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
        with torch.no_grad():
            found.append(model(input_ids=torch.tensor([[2, 5, 6, 3]])).logits)
    assert torch.equal(found[0], found[1])


def test_a_database_that_only_a_writer_can_open_is_still_run_on(study, db, monkeypatch):
    """As one of an older revision is: readers are told to run, so a run must not ask as a reader."""
    run(study, db, ["baselines=[]"])
    real = Store.open

    def writers_only(url, *, create, owner=None):
        if not create:
            raise StoreError(
                "the database is of an older revision", "`sparsearch run` migrates it"
            )
        return real(url, create=create, owner=owner)

    monkeypatch.setattr(Store, "open", writers_only)
    assert run(study, db, ["baselines=[]"]).finished == 2


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


def test_earlyberts_ticket_is_cut_out_fine_tuned_and_exported(study, db, tmp_path):
    early = {k: v for k, v in study.items() if k not in ("space", "search", "budgets")} | {
        "space": {"preset": "earlybert"},
        "budgets": {"max_inference_flops": ["80%"]},
        "search": {"steps": 6},
        "baselines": ["random", "probe", "full"],
    }
    run(early, db)
    found = {t.strategy: t for t in records(db)}
    assert {t.state for t in found.values()} == {"ok"}
    for strategy in ("slimming", "random", "probe"):
        t = found[strategy]
        assert 0.6 < t.inference_flops_ratio <= 0.8
        assert t.trainable_params < found["full"].trainable_params
        with Store.open(db, create=False) as store:
            weights = safetensors.torch.load(store.weights("tiny", t.number))
            held = sum(v.numel() for n, v in weights.items() if n.startswith("backbone:"))
            assert held == t.trainable_params, "what is cut is gone"
    with Store.open(db, create=False) as store:
        best = store.best()
        packed = store.weights("tiny", best.trial)
    for target in ("spec", "peft"):
        with pytest.raises(ExportError, match="--to checkpoint|as a whole"):
            export(best, packed, target, tmp_path / target)
    export(best, packed, "checkpoint", tmp_path / "small")
    again = load_checkpoint(tmp_path / "small")
    stored = {n.partition(":")[2]: v for n, v in safetensors.torch.load(packed).items()}
    loaded = dict(again.named_parameters()) | dict(again.base_model.named_parameters())
    assert all(torch.equal(loaded[n], v) for n, v in stored.items())


def test_a_ticket_starts_from_what_stands_in_for_the_rest(study, db):
    kinds = {"heads": {"compensate": "linear"}, "neurons": {"block": 16, "compensate": "linear"}}
    early = {k: v for k, v in study.items() if k != "budgets"} | {
        "space": {"kinds": kinds},
        "budgets": {"max_inference_flops": ["80%"]},
        "search": {"strategy": "surgeon"},
        "train": study["train"] | {"backbone": True},
        "baselines": ["random"],
    }
    run(early, db)
    assert [t.state for t in records(db)] == ["ok", "ok"]
    assert all(0.6 < t.inference_flops_ratio <= 0.8 for t in records(db))


def test_weights_that_no_database_holds_are_left_out_and_the_outcome_kept(study, db, monkeypatch):
    monkeypatch.setattr(trial_module, "_MOST_STORED", 1000)
    run(study, db, ["baselines=[]"])
    with Store.open(db, create=False) as store:
        for t in store.trials("tiny"):
            assert t.state == "ok" and "weights were not stored" in t.message
            assert store.weights("tiny", t.number) is None


def test_dsee_trains_what_is_left_and_its_checkpoint_needs_no_stand_in(study, db, tmp_path):
    dsee = {k: v for k, v in study.items() if k not in ("space", "search", "budgets")} | {
        "space": {"preset": "dsee"},
        "budgets": {"max_trainable_params": [2500], "max_inference_flops": ["85%"]},
        "search": {"steps": 2},
        "baselines": ["update-magnitude", "random", "probe"],
    }
    run(dsee, db)
    found = {t.strategy: t for t in records(db)}
    assert {t.state for t in found.values()} == {"ok"}, [t.message for t in found.values()]
    assert set(found) == {"surgeon", "update-magnitude", "random", "probe"}
    assert all(t.trainable_params <= 2500 for t in found.values())
    assert all(t.inference_flops_ratio <= 0.85 for t in found.values())
    with Store.open(db, create=False) as store:
        best = store.best()
        packed = store.weights("tiny", best.trial)
    assert any(n.endswith("stand_in") for n in safetensors.torch.load(packed))
    export(best, packed, "spec", tmp_path / "spec")
    export(best, packed, "checkpoint", tmp_path / "small")
    names = dict(load_checkpoint(tmp_path / "small").named_buffers())
    assert not [n for n in names if "stand_in" in n]


def test_a_ticket_retrains_whole_and_goes_into_no_spec(study, db, tmp_path):
    early = {k: v for k, v in study.items() if k != "budgets"} | {
        "space": {"kinds": {"heads": {}, "neurons": {"block": 16}}},
        "budgets": {"max_inference_flops": ["80%"]},
        "search": {"strategy": "random"},
        "train": study["train"] | {"backbone": True},
        "baselines": [],
    }
    run(early, db)
    with Store.open(db, create=False) as store:
        best = store.best()
        stored = store.weights("tiny", best.trial)
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(early))
    result = train_structure(best.structure, path)
    assert result.trainable_params == best.trainable_params > 30_000
    held = safetensors.torch.load(stored)
    assert result.trainable_params == sum(
        v.numel() for n, v in held.items() if n.startswith("backbone:")
    )
    with pytest.raises(ExportError, match="--to checkpoint|a spec holds attached modules"):
        train_structure(best.structure, path, out=tmp_path / "spec")


def test_fine_tuning_what_is_left_refuses_a_structure_that_attaches(study, db, tmp_path):
    run(study | {"baselines": []}, db)
    with Store.open(db, create=False) as store:
        best = store.best()
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    with pytest.raises(StructureError, match="train.backbone fine-tunes what is left"):
        train_structure(best.structure, path, ["train.backbone=true"])


PST = {
    "space": {"preset": "pst"},
    "budgets": {"min_weight_sparsity": ["50%", "90%"]},
    "search": {"steps": 4, "batch_size": 8},
    "baselines": ["even", "magnitude", "random", "full"],
}


def test_pst_trials_are_as_sparse_as_asked_and_export(study, db, tmp_path):
    run({k: v for k, v in study.items() if k not in ("space", "search", "budgets")} | PST, db)
    found = {(t.strategy, t.budget["text"]): t for t in records(db) if t.budget}
    assert {t.state for t in found.values()} == {"ok"} and len(found) == 8
    for (strategy, text), t in found.items():
        widths = 2 * (4 * (32 + 32) + 2 * (32 + 64))
        assert t.trainable_params == (4 if strategy == "magnitude" else 4 + 3 + 1) * widths
        with Store.open(db, create=False) as store:
            best = store.find_structure(t.structure)
        share = float(text.removesuffix("% sparsity")) / 100
        assert share <= best.weight_sparsity < share + 0.05
    with Store.open(db, create=False) as store:
        assert store.best(min_weight_sparsity="96%") is None
        best = store.best(min_weight_sparsity="90%")
        packed = store.weights("tiny", best.trial)
    assert best.budget["min_weight_sparsity"] == 0.9
    export(best, packed, "checkpoint", tmp_path / "small")
    zeros, weights = count_zeros(load_checkpoint(tmp_path / "small"))
    assert zeros / weights == best.weight_sparsity >= 0.9
    assert read_checkpoint(tmp_path / "small").costs.weight_sparsity == zeros / weights
    assert read_checkpoint(tmp_path / "small").plain
    export(best, packed, "spec", tmp_path / "spec")


def test_masks_beside_cuts_are_as_sparse_as_asked_after_slimming(study, db, tmp_path):
    kinds = {"lora": {"max_rank": 1}, "weight_mask": {"rank": 1}, "heads": {}}
    both = {"max_inference_flops": ["90%"], "min_weight_sparsity": ["60%"]}
    run(study | {"space": {"kinds": kinds}, "budgets": both, "baselines": ["even"]}, db)
    with Store.open(db, create=False) as store:
        best = store.best(min_weight_sparsity="60%", max_inference_flops="90%")
        packed = store.weights("tiny", best.trial)
    assert best.inference_flops_ratio <= 0.9 and 0.6 <= best.weight_sparsity < 0.63
    export(best, packed, "checkpoint", tmp_path / "small")
    zeros, left = count_zeros(load_checkpoint(tmp_path / "small"))
    dense = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert left < dense and (zeros + dense - left) / dense == best.weight_sparsity
