"""What studies store is as small as asked, and can be exported and trained again."""

from __future__ import annotations

import copy

import pytest
import safetensors.torch
import torch
import yaml

import sparsearch.workers.trials.execute as trial_module
from sparsearch.errors import ExportError, StructureError
from sparsearch.results.export.export import export
from sparsearch.results.store.store import Store
from sparsearch.spaces.compaction.checkpoint import load_checkpoint
from sparsearch.spaces.compaction.checkpoint_document import read_checkpoint
from sparsearch.spaces.compaction.sparsity import count_zeros
from sparsearch.workers.study import run
from sparsearch.workers.trials.train_structure import train_structure
from tests.helpers.study_records import records


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
