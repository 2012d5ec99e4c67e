"""Bad input: one screen, the right exit code, every problem at once, and the database as it was."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sparsearch.cli.main import app
from sparsearch.results.store.store import Store
from sparsearch.results.store.writing.lease import Owner


@pytest.fixture
def call(tmp_path, study):
    """Runs `sparsearch run` on a changed study; gives exit code and stderr."""

    def make(changes=None, db=None, *more):
        path = tmp_path / "study.yaml"
        raw = json.loads(json.dumps(study))
        for key, value in (changes or {}).items():
            place = raw
            *parents, last = key.split(".")
            for parent in parents:
                place = place[parent]
            place[last] = value
        path.write_text(yaml.safe_dump(raw))
        url = db or f"sqlite:///{tmp_path / 'out.db'}"
        result = CliRunner().invoke(
            app, ["run", str(path), "--db", url, *more], env={"COLUMNS": "200"}
        )
        assert "Traceback" not in result.output
        assert len(result.stderr.splitlines()) < 40
        return result.exit_code, " ".join(result.stderr.split())

    return make


def test_unknown_key_wrong_type_and_impossible_budget_at_once(call, tmp_path):
    code, text = call(
        {
            "search.stepz": 3,
            "train.epochs": "three",
            "budgets": {"max_trainable_params": ["200%", 200]},
        }
    )
    assert code == 2
    assert "search.stepz: unknown key; did you mean 'steps'?" in text
    assert "train.epochs" in text and "'three'" in text
    assert "'200%' is no share" in text
    assert not (tmp_path / "out.db").exists()


def test_a_budget_too_small_for_the_model_is_reported_beside_other_problems(call):
    code, text = call({"search.stepz": 3, "train.epochs": "three", "budgets": [5]})
    assert code == 2
    assert "search.stepz" in text and "train.epochs" in text
    assert "too small for any candidate; the smallest is bitfit" in text


def test_budget_below_the_smallest_candidate_alone(call):
    code, text = call({"budgets": ["0.01%"]})
    assert code == 3
    assert "the smallest is bitfit at layers.0.attn.q with 32 parameters" in text
    assert "hint" in text


@pytest.mark.parametrize(
    ("sparsity", "code", "message"),
    [
        (["96%", "50%"], 3, "96% sparsity: the most that this space reaches is 95.0%"),
        (["100%"], 2, "'100%' is no share of the backbone's weights"),
        (["-1%"], 2, "'-1%' is no share of the backbone's weights"),
    ],
)
def test_sparsity_that_cannot_be(call, tmp_path, sparsity, code, message):
    pst = {"space": {"preset": "pst"}, "budgets": {"min_weight_sparsity": sparsity}}
    found, text = call(pst)
    assert found == code and message in text
    assert not (tmp_path / "out.db").exists()


def test_a_pattern_that_does_not_divide(call, tmp_path):
    kinds = {"lora": {}, "weight_mask": {"pattern": "3:5"}}
    code, text = call({"space": {"kinds": kinds}, "budgets": {"min_weight_sparsity": ["40%"]}})
    assert code == 2 and "pattern 3:5 takes groups of 5" in text
    assert not (tmp_path / "out.db").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task.data.data_files.test": "nowhere.jsonl"}, "no such file: nowhere.jsonl"),
        ({"task.label": "mood"}, "no column 'mood'; it has: text, label"),
        ({"task.text": ["a", "b", "c"]}, "task.text"),
        ({"model.path": "nobody/nothing"}, "model.path 'nobody/nothing'"),
        ({"model.path": "pkg:no_such_package/model"}, "not installed"),
        ({"model.sha256": "0" * 64}, "has SHA-256"),
        ({"space": {"preset": "s3pet-x"}}, "unknown preset 's3pet-x'"),
        ({"space": {"kinds": {"lora": {"on": ["*.attn.w"]}}}}, "matches no position"),
        ({"name": "../evil"}, "name: '../evil' is no name of a study: write 1 to 100 letters"),
        (
            {"search.strategy": "surgeom"},
            "strategy: 'surgeom' is no strategy; did you mean 'surgeon'?",
        ),
        ({"baselines": ["qqq"]}, "baselines.0: 'qqq' is no strategy; there are: s3pet, probe"),
        ({"seeds": [1, 1]}, "names something twice"),
        ({"task.metric": "pearson"}, "pearson is for regression"),
        ({"train.kind_lr": {"lore": 0.1}}, "kind_lr names ['lore']"),
        ({"model.path": "pkg:.."}, "is not installed"),
        ({"model.path": "pkg:a..b/model"}, "is not installed"),
        ({"seeds": [10**20]}, "seeds.0"),
        ({"space": {"kinds": {"lora": {"on": []}}}}, "kinds.lora.on must be a list of patterns"),
        ({"space": {"kinds": {"lora": {"alpha": math.inf}}}}, "alpha must be finite, not inf"),
    ],
)
def test_wrong_settings(call, changes, message, tmp_path):
    code, text = call(changes)
    assert code == 2 and message in text
    assert not (tmp_path / "out.db").exists()


CUTS = {"heads": {}, "neurons": {"block": 16}}
FLOPS = {"max_inference_flops": ["80%"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train.backbone": True},
            "train.backbone fine-tunes what cut heads and neurons leave of the backbone; the space also has ",
        ),
        (
            {
                "space": {"kinds": CUTS},
                "budgets": FLOPS,
                "train.backbone": True,
                "baselines": ["lora"],
            },
            "train.backbone goes with cuts alone: leave lora out",
        ),
        (
            {
                "space": {"kinds": CUTS},
                "budgets": FLOPS | {"max_trainable_params": [500]},
                "train.backbone": True,
                "baselines": [],
            },
            "trains unless train.backbone_rank is set: max_trainable_params cannot limit that",
        ),
        ({"search.strategy": "slimming"}, "slimming strategy ranks heads and neurons"),
        (
            {"space": {"kinds": CUTS}, "budgets": FLOPS, "baselines": ["surgeon"]},
            "surgeon strategy needs what is cut or pruned to be weighed on data",
        ),
    ],
)
def test_what_strategies_and_training_cannot_do(call, changes, message, tmp_path):
    code, text = call(changes)
    assert code == 2 and message in text
    assert not (tmp_path / "out.db").exists()


def test_flops_are_counted_at_the_length_that_trials_run_at(call, tiny_folder, tmp_path):
    """The tokenizer may end before the model does."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 8}))
    heads = {"space": {"kinds": {"heads": {}}}, "search.strategy": "random", "baselines": []}
    long = {"model.path": str(folder), "task.max_length": 30, **heads}

    def least(changes):
        code, text = call(changes | {"budgets": {"max_inference_flops": ["1%"]}})
        assert code == 3
        return re.search(r"least it can reach is ([\d.]+)%", text).group(1)

    short = least(long | {"task.max_length": 8})
    assert least(long) == short != least(long | {"model.path": str(tiny_folder)})


def test_empty_split_and_stray_label(call, study, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    code, text = call({"task.data.data_files.validation": str(tmp_path / "empty.jsonl")})
    assert code == 2 and "split 'validation' is empty" in text
    (tmp_path / "stray.jsonl").write_text('{"text": "good", "label": 9}\n')
    code, text = call({"task.data.data_files.validation": str(tmp_path / "stray.jsonl")})
    assert code == 2 and "label 9 is outside the classes 0, 1" in text
    assert not (tmp_path / "out.db").exists()


def test_a_family_without_a_sequence_classifier_is_refused_with_the_way_out(call, tmp_path):
    from transformers import GraniteConfig

    GraniteConfig(hidden_size=8, num_attention_heads=2, vocab_size=9).save_pretrained(
        tmp_path / "granite"
    )
    code, text = call({"model.path": str(tmp_path / "granite"), "space": {"preset": "pst"}})
    assert (
        code == 2
        and "SequenceClassification of transformers has no model of family 'granite'" in text
    )
    assert "another task.type" in text


def test_missing_and_malformed_study_files(tmp_path):
    result = CliRunner().invoke(app, ["run", str(tmp_path / "none.yaml")])
    assert result.exit_code == 2 and "none.yaml" in result.stderr
    (tmp_path / "bad.yaml").write_text("name: [")
    result = CliRunner().invoke(app, ["run", str(tmp_path / "bad.yaml")])
    assert result.exit_code == 2 and "not valid YAML" in " ".join(result.stderr.split())


def test_a_corrupt_database_is_left_alone(call, tmp_path):
    file = tmp_path / "corrupt.db"
    file.write_bytes(b"SQLite format 3\x00" + b"\xff" * 5000)
    before = file.read_bytes()
    code, text = call(None, f"sqlite:///{file}")
    assert code == 1 and "hint" in text
    assert file.read_bytes() == before


def test_a_newer_database_is_left_alone(call, tmp_path):
    import sqlite3

    file = tmp_path / "newer.db"
    Store.open(str(file), create=True).close()
    with sqlite3.connect(file) as connection:
        connection.execute("update sparsearch_version set version_num = '9999'")
    code, text = call(None, f"sqlite:///{file}")
    assert code == 1 and "upgrade sparsearch" in text


def test_two_drivers_on_one_study(call, tmp_path):
    db = f"sqlite:///{tmp_path / 'shared.db'}"
    assert call({"baselines": []}, db)[0] == 0
    with Store.open(db, create=True, owner=Owner("elsewhere", 7, 0.0)) as store:
        store.acquire("tiny")
    code, text = call({"baselines": []}, db)
    assert code == 1 and "elsewhere:7" in text


@pytest.mark.parametrize("target", ["/proc/nothing/spec", "FILE/spec"])
def test_unwritable_output_folder(call, tmp_path, target):
    db = f"sqlite:///{tmp_path / 'done.db'}"
    assert call({"baselines": []}, db)[0] == 0
    (tmp_path / "FILE").write_text("")
    with Store.open(db, create=False) as store:
        prefix = store.best().structure.hash[:12]
    out = target if target.startswith("/") else str(tmp_path / target)
    before = Path(tmp_path / "done.db").read_bytes()
    result = CliRunner().invoke(app, ["export", prefix, "--to", "spec", "--out", out, "--db", db])
    assert result.exit_code == 1 and "cannot write" in " ".join(result.stderr.split())
    assert Path(tmp_path / "done.db").read_bytes() == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("name=[x", "not valid YAML"),
        ("nonsense", "not of the form key.path=value"),
        ("seeds.9.x=1", "does not exist"),
    ],
)
def test_bad_overrides(call, override, message):
    code, text = call(None, None, "--set", override)
    assert code == 2 and message in text


def test_an_unknown_key_hides_no_problem_beside_it(call):
    code, text = call({"space": {"kinds": {"bitfit": {}}, "colour": 1}, "budgets": [5, "abc%"]})
    assert code == 2
    assert "space.colour: unknown key" in text
    assert "'abc%' is no limit: write a whole number above 0, or" in text
    assert "too small for any candidate" in text


def test_an_override_that_repeats_a_budget_leaves_it_once(call, tmp_path):
    db = f"sqlite:///{tmp_path / 'once.db'}"
    assert call({"baselines": []}, db, "--set", "budgets.0=600")[0] == 0
    with Store.open(db, create=False) as store:
        assert [t.budget["max_trainable_params"] for t in store.trials("tiny")] == [600]


def test_training_checks_its_target_first(call, study, tmp_path):
    db = f"sqlite:///{tmp_path / 'done.db'}"
    assert call({"baselines": []}, db)[0] == 0
    with Store.open(db, create=False) as store:
        prefix = store.best().structure.hash[:12]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    arguments = [
        "train",
        prefix,
        str(tmp_path / "study.yaml"),
        "--db",
        db,
        "--out",
        str(tmp_path / "full"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1 and "not an empty folder" in " ".join(result.stderr.split())
