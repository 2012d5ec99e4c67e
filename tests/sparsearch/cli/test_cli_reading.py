"""What a database holds: studies, trials, structures, tables, plots. And spaces, and ``stop``."""

from dataclasses import replace
from pathlib import Path

import pytest

from sparsearch.results import Outcome, Owner, Store, Trial
from sparsearch.spaces.budget import Budget
from sparsearch.testing.store_conformance import sample_outcome, sample_structure, sample_study
from tests.helpers.command_line import answer, call
from tests.helpers.filled_study import fill


def test_studies(db: str) -> None:
    (study,) = answer("studies", "--db", db)
    expected = "name model task metric trials finished best_score owner created_at"
    assert set(expected.split()) <= set(study)
    assert (study["trials"], study["finished"], study["best_score"]) == (12, 12, 0.93)
    assert "trec-toy" in call("studies", "--db", db).out


def test_trials_tell_of_attempts_in_vain(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'tries.db'}"
    with Store.open(url, create=True) as store:
        store.begin_study(sample_study())
        store.start("study", 0, "node:17")
        store.retry("study", 0, "lost", "its worker process died")
        store.start("study", 0, "node:18")
        store.finish("study", 0, sample_outcome())
    first, second = answer("trials", "study", "--db", url)
    assert [(t["number"], t["worker"], t["state"]) for t in first["tries"]] == [
        (1, "node:17", "lost"),
        (2, "node:18", "ok"),
    ]
    assert first["attempts"] == 2 and second["tries"] == []
    shown = call("trials", "study", "--db", url).out
    assert "trial 0, attempt 1 on node:17 lost: its worker process died" in shown


def test_trials_tell_of_interrupted_attempts(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'stopped.db'}"
    with Store.open(url, create=True) as store:
        store.begin_study(sample_study())
        store.acquire("study")
        store.start("study", 0, "node:17")
        store.release("study")
    shown = call("trials", "study", "--db", url).out
    assert "trial 0, attempt 1 on node:17 interrupted: its driver ended" in shown


def test_stop_frees_a_study_that_nobody_runs_and_asks_who_runs_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'stop.db'}"
    with Store.open(url, create=True, owner=Owner("elsewhere", 7, 0.0)) as store:
        store.begin_study(sample_study())
        done = call("stop", "stu", "--db", url)
        assert done.code == 0 and "nobody runs study study" in done.out
        store.acquire("study")
        monkeypatch.setattr("sparsearch.cli.commands.running.stop._STOP_SECONDS", 0)
        done = call("stop", "study", "--db", url)
        assert done.code == 1 and "elsewhere:7 still holds" in done.err
        assert store.stop_asked("study")
    assert call("stop", "other", "--db", url).code == 1


def test_stop_knows_a_finished_study(db: str) -> None:
    done = call("stop", "trec-toy", "--db", db)
    assert done.code == 0 and "all of its 12 trials are finished" in done.out
    assert "continues" not in done.out


def test_trials_take_a_prefix(db: str) -> None:
    trials = answer("trials", "trec", "--db", db)
    keys = "number strategy seed budget state score test_score structure trainable_params"
    keys += " head_params seconds peak_bytes message attempts"
    assert set(keys.split()) <= set(trials[0])
    assert [t["number"] for t in trials] == list(range(12))
    assert trials[0]["budget"] is None and trials[0]["structure"] is None
    assert trials[2]["budget"] == {"max_trainable_params": 100, "text": "0.01%"}
    assert len(trials[2]["structure"]) == 64
    assert trials[2]["started_at"] <= trials[2]["finished_at"] and "environment" in trials[2]
    table = call("trials", "trec", "--db", db).out
    assert max(map(len, table.splitlines())) <= 100
    assert trials[2]["structure"][:8] in table


def test_unknown_study_lists_those_there_are(db: str) -> None:
    done = call("trials", "sst2", "--db", db, "--json")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: ") and "trec-toy" in done.err and "hint: " in done.err


def test_tables_keep_cells_on_one_line_at_80_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    url = f"sqlite:///{tmp_path / 'wide.db'}"
    budget = Budget(max_trainable_params=113_566, max_inference_flops=0.75, text="0.5%, 75% FLOPs")
    outcome = sample_outcome(0.9, 113_504, ratio=0.75, sparsity=0.2442)
    full = replace(sample_outcome(0.96, structure=False), trainable_params=22_713_216)
    pairs = [
        (Trial(0, "full", None, 0), full),
        (Trial(1, "update-magnitude", budget, 0), replace(outcome, seconds=12_345.6)),
        (Trial(2, "s3pet", budget, 1), Outcome("infeasible", "too small")),
    ]
    fill(url, "wide", pairs)
    name = answer("best", "--db", url)["structure"]
    for words in (("trials", "wide"), ("pareto", "wide")):
        done = call(*words, "--db", url)
        assert max(map(len, done.out.splitlines())) <= 80
        (row,) = (line for line in done.out.splitlines() if "update-magnitude" in line)
        assert {"0.9000", "113,504", name[:8]} <= set(row.split())
        assert "113,566" not in row and "no room here for se" in done.out
    assert name in call("best", "--db", url).out.split()


def test_show_by_prefix(db: str) -> None:
    best = answer("best", "--db", db)
    shown = answer("show", best["structure"][:8], "--db", db)
    assert shown.items() >= best.items()
    candidate = sample_structure(best["trainable_params"]).candidates[0]
    assert shown["candidates"] == [
        {"position": "layers.0.attn.q", "kind": "lora", "size": candidate.size}
        | {"params": candidate.params, "bytes": candidate.bytes}
    ]
    table = call("show", best["structure"][:8], "--db", db).out
    assert "layer 0" in table and "attn.q" in table and best["structure"] in table


@pytest.mark.parametrize("prefix", ["abc", "not-a-hash", "0" * 64])
def test_show_refuses_what_names_no_structure(db: str, prefix: str) -> None:
    done = call("show", prefix, "--db", db, "--json")
    assert (done.code, done.out) == (1, "")
    assert "sparsearch trials" in done.err


def test_plots_are_files_beside_the_json(db: str) -> None:
    best = answer("best", "--db", db)
    for words in (("pareto", "trec"), ("show", best["structure"][:8])):
        assert answer(*words, "--plot", "out.html", "--db", db)
        assert Path("out.html").stat().st_size > 3_000
        done = call(*words, "--plot", "missing/out.html", "--db", db)
        assert done.code == 1 and "missing/out.html" in done.err


@pytest.mark.parametrize("words", [("pareto", "trec"), ("show", "abcd")])
@pytest.mark.parametrize(
    ("given", "advice"), [("x.png", "x.html"), ("x", "x.html"), (".", "out.html")]
)
def test_a_picture_is_html(db: str, words: tuple[str, ...], given: str, advice: str) -> None:
    done = call(*words, "--plot", given, "--db", db)
    assert done.code == 2 and f"write {advice}" in done.err
    assert not list(Path().iterdir())


def test_space(tmp_path: Path) -> None:
    from transformers import BertConfig

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(**sizes, intermediate_size=128, vocab_size=100)
    config.save_pretrained(tmp_path / "toy")
    found = answer("space", "toy", "--kind", "bitfit", "--kind", "lora")
    assert set(found["by_kind"]) == {"bitfit", "lora"}
    total = sum(kind["trainable_params"] for kind in found["by_kind"].values())
    assert found["trainable_params"] == total
    assert found["stored_bytes"] == 4 * total + found["choice_bytes"]
    assert found["choice_bytes"] == -(-found["candidates"] // 8)
    assert found["candidates"] == sum(kind["candidates"] for kind in found["by_kind"].values())
    assert found["backbone_params"] > 0
    assert answer("space", "toy")["preset"] == "s3pet-m"
    assert "low_rank_adapter" in call("space", "toy").out
    assert "layers.*.attn.q" in call("space", "toy").out
    assert {"layers.0.attn.q", "layers.1.ffn.neurons"} <= set(found["position_names"])
    reach = {(row["kind"], row["role"]): row for row in found["coverage"]["reach"]}
    assert reach["lora", "linear"]["layers"] == reach["lora", "linear"]["of_layers"] == 2
    assert [row["module"] for row in found["coverage"]["unreached"]] == ["pooler.dense"]
    assert "pooler.dense (1 linear" in call("space", "toy").out
    done = call("space", "toy", "--kind", "lorra")
    assert done.code == 2 and "lorra" in done.err
