"""The command line on a database filled by hand: JSON, exit codes, messages."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from sparsearch.cli.main import app
from sparsearch.errors import InfeasibleError
from sparsearch.results import Outcome, Owner, Store, StudyRecord, StudySpec, Trial
from sparsearch.results.store.store import DEFAULT_URL
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.structure import Structure
from sparsearch.testing.store_conformance import (
    sample_outcome,
    sample_structure,
    sample_study,
    task_config,
)

COMMANDS = (
    "run",
    "stop",
    "space",
    "studies",
    "trials",
    "best",
    "pareto",
    "show",
    "export",
    "train",
)
BEST_KEYS = {
    *("study", "trial", "structure", "strategy", "metric", "score", "test_score", "budget"),
    *("trainable_params", "head_params", "inference_flops_ratio"),
}
SMALL = Budget(max_trainable_params=100, text="0.01%")
LARGE = Budget(max_trainable_params=1000, text="0.1%")
SCORES = {
    (SMALL, "s3pet"): (0.80, 0.82),
    (SMALL, "random"): (0.85, 0.83),
    (LARGE, "s3pet"): (0.93, 0.91),
    (LARGE, "random"): (0.90, 0.88),
}
CONFIG = json.dumps({"search": {"strategy": "s3pet"}})


def plan() -> list[tuple[Trial, Outcome]]:
    """2 strategies x 2 budgets x 2 seeds, and both references."""
    cells: list[tuple[str, Budget | None, int, Outcome]] = []
    for seed in (0, 1):
        head = replace(sample_outcome(0.4, structure=False), trainable_params=0)
        full = replace(sample_outcome(0.96, structure=False), trainable_params=1_000_000)
        cells += [("head", None, seed, head), ("full", None, seed, full)]
        for (budget, strategy), scores in SCORES.items():
            params = (budget.get("max_trainable_params") or 0) - 10 - 2 * len(cells)
            outcome = replace(sample_outcome(scores[seed], params), weights=b"weights")
            cells.append((strategy, budget, seed, outcome))
    return [(Trial(n, s, b, seed), outcome) for n, (s, b, seed, outcome) in enumerate(cells)]


def fill(
    url: str, name: str, pairs: list[tuple[Trial, Outcome]], config: str = CONFIG
) -> StudyRecord:
    """Store a study with these outcomes, as a driver would."""
    with Store.open(url, create=True) as store:
        trials = tuple(trial for trial, _ in pairs)
        store.begin_study(StudySpec(name, config, "toy", "trec", "accuracy", 1_000_000, trials))
        store.acquire(name)
        for trial, outcome in pairs:
            store.start(name, trial.number)
            store.finish(name, trial.number, outcome)
        store.release(name)
        return store.find_study(name)


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('cli') / 'x.db'}"
    fill(url, "trec-toy", plan())
    return url


@dataclass
class Done:
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPARSEARCH_DB", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    yield


def call(*args: str) -> Done:
    result = CliRunner().invoke(app, list(args))
    return Done(result.exit_code, result.stdout, result.stderr)


def answer(*args: str) -> Any:
    """The JSON document of a command that succeeds."""
    done = call(*args, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def fake(monkeypatch: pytest.MonkeyPatch, module: str, **names: Any) -> None:
    """Stand in for a room whose work would take seconds."""
    stand_in = ModuleType(module)
    for name, value in names.items():
        setattr(stand_in, name, value)
    monkeypatch.setitem(sys.modules, module, stand_in)


# Help and usage


@pytest.mark.parametrize("command", [(), *((c,) for c in COMMANDS)])
def test_help(command: tuple[str, ...]) -> None:
    done = call(*command, "--help")
    assert done.code == 0
    assert "Usage:" in done.out and "Traceback" not in done.out
    for name in COMMANDS if not command else ("--json",):
        assert name in done.out


@pytest.mark.parametrize(
    "words",
    [
        ("no-such-command",),
        ("best", "--no-such-option"),
        ("trials",),
        ("export", "abcd"),
        ("export", "abcd", "--to", "zip", "--out", "x"),
        ("export", "abcd", "--to", "checkpoint", "--also", "tflite", "--out", "x"),
        ("export", "abcd", "--to", "peft", "--also", "onnx", "--out", "x"),
        ("space", "toy", "--preset", "s3pet-m", "--kind", "lora"),
        ("run", "missing.yaml"),
    ],
)
def test_bad_usage_exits_2(words: tuple[str, ...]) -> None:
    done = call(*words)
    assert (done.code, done.out) == (2, "")
    assert done.err


def test_command_line_starts_without_torch() -> None:
    code = (
        "import sys, sparsearch.cli.main; heavy = {'torch', 'transformers', 'sqlalchemy', 'plotly'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_questions_are_answered_without_torch(db: str, form: list[str]) -> None:
    """Importing it costs seconds; what is stored of a structure is numbers and names."""
    questions = [["studies"], ["trials", "trec"], ["best"], ["pareto", "trec"], ["show"]]
    with Store.open(db, create=False) as store:
        best = store.best()
    assert best is not None
    questions[-1].append(best.structure.hash)
    code = f"""
import sys
from typer.testing import CliRunner
from sparsearch.cli.main import app
for question in {questions}:
    done = CliRunner().invoke(app, [*question, "--db", {db!r}, *{form}])
    assert done.exit_code == 0, done.output
    print(*{{"torch", "transformers", "ray", "optuna", "plotly"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == ([], "")


def test_version() -> None:
    assert call("--version").out.startswith("sparsearch ")


def test_default_database_is_the_stores() -> None:
    from sparsearch.cli.options import DEFAULT_DB

    assert DEFAULT_DB == DEFAULT_URL


# Reading


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
        monkeypatch.setattr("sparsearch.cli.commands.stop._STOP_SECONDS", 0)
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


@pytest.mark.parametrize(
    ("words", "score"),
    [
        ((), 0.93),
        (("--max-trainable-params", "0.01%"), 0.85),
        (("--max-trainable-params", "100", "--task", "trec", "--model", "toy"), 0.85),
        (("--study", "trec", "--max-inference-flops", "100%"), 0.93),
    ],
)
def test_best(db: str, words: tuple[str, ...], score: float) -> None:
    best = answer("best", *words, "--db", db)
    assert best.keys() >= BEST_KEYS
    assert best["score"] == score


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (("--max-trainable-params", "9"), "the smallest in that study has"),
        (("--max-inference-flops", "50%"), "without --max-inference-flops"),
        (("--min-weight-sparsity", "50%"), "without --min-weight-sparsity"),
        (("--max-inference-flops", "50%"), "the fewest in that study are 100.00%"),
        (("--min-weight-sparsity", "50%"), "the sparsest in that study has 0.00%"),
        (("--task", "sst2"), "no such task; there are: trec"),
        (("--model", "nope", "--max-trainable-params", "9"), "no such model; there are: toy"),
        (("--max-inference-flops", "1%", "--max-trainable-params", "9"), "two or more"),
    ],
)
def test_best_that_finds_nothing_exits_3(db: str, words: tuple[str, ...], advice: str) -> None:
    done = call("best", *words, "--db", db, "--json")
    assert (done.code, done.out) == (3, "")
    assert advice in done.err


def test_limit_that_cannot_be_read_exits_2(db: str) -> None:
    done = call("best", "--max-trainable-params", "few", "--db", db)
    assert done.code == 2
    assert "'few'" in done.err and "study cannot run" not in done.err


@pytest.mark.parametrize("option", ["--max-inference-flops", "--min-weight-sparsity"])
def test_a_forgotten_percent_sign(db: str, option: str) -> None:
    done = call("best", option, "75", "--db", db)
    assert done.code == 2
    assert option[2:].replace("-", "_") in done.err and "write 75%" in done.err


@pytest.fixture
def several(tmp_path: Path) -> str:
    """Two tasks, of which one has two metrics, and one study of a task without any trial."""
    url = f"sqlite:///{tmp_path / 'several.db'}"
    with Store.open(url, create=True) as store:
        for name, task, metric, score in (
            ("a", "trec", "accuracy", 0.9),
            ("b", "trec", "accuracy", 0.8),
            ("c", "trec", "f1", 0.95),
            ("d", "rte", "accuracy", 0.99),
            ("e", "none", "accuracy", None),
        ):
            store.begin_study(replace(sample_study(name, 1, task=task), metric=metric))
            if score is not None:
                outcome = sample_outcome(score, 200 if name == "d" else 50)
                measured = [
                    replace(m, metric=metric)
                    for m in outcome.measurements
                    if m.metric == "accuracy"
                ]
                store.finish(name, 0, replace(outcome, measurements=tuple(measured)))
    return url


def test_scores_of_several_tasks_do_not_compete(several: str) -> None:
    done = call("best", "--db", several)
    rows = [line.split()[:3] for line in done.out.splitlines() if " s3pet " in line]
    assert rows == [
        ["trec", "accuracy", "0.9000"],
        ["trec", "f1", "0.9500"],
        ["rte", "accuracy", "0.9900"],
    ]
    done = call("best", "--db", several, "--json")
    assert (done.code, done.out) == (2, "")
    assert "trec (f1, study c)" in done.err and "--task or --study" in done.err
    assert answer("best", "--study", "b", "--db", several)["score"] == 0.8
    assert answer("best", "--task", "rte", "--db", several)["study"] == "d"
    assert call("best", "--task", "trec", "--db", several, "--json").code == 2
    assert call("best", "--max-trainable-params", "9", "--db", several).code == 3


@pytest.fixture
def namesakes(tmp_path: Path) -> str:
    """Two tasks called "train", of different data, and two backbones called "toy"."""
    url = f"sqlite:///{tmp_path / 'namesakes.db'}"
    with Store.open(url, create=True) as store:
        for name, digest, score in (("a", "5e1f", 0.6), ("b", "0dd5", 0.9)):
            spec = sample_study(name, 1, config=task_config(digest), task="train")
            store.begin_study(spec)
            outcome = sample_outcome(score)
            assert outcome.structure is not None
            backbone = replace(outcome.structure.backbone, weight_fingerprint=f"2-{digest}")
            structure = replace(outcome.structure, backbone=backbone)
            store.finish(name, 0, replace(outcome, structure=structure))
    return url


def test_tasks_of_one_name_are_listed_with_their_fingerprints(namesakes: str) -> None:
    first, other = (s["task_fingerprint"] for s in answer("studies", "--db", namesakes))
    for words in (("best",), ("best", "--task", "train"), ("studies",)):
        done = call(*words, "--db", namesakes)
        assert f"train ({first[:8]})" in done.out and f"train ({other[:8]})" in done.out
    done = call("best", "--db", namesakes, "--json")
    assert (done.code, done.out) == (2, "")
    text = " ".join(done.err.split())
    assert f"train (accuracy, study b), fingerprint {other[:8]}" in text
    assert "--task takes a name or the beginning of a fingerprint" in text
    assert answer("best", "--task", other[:8], "--db", namesakes)["study"] == "b"
    assert answer("best", "--study", "a", "--db", namesakes)["task_fingerprint"] == first
    assert first[:8] in call("best", "--study", "a", "--db", namesakes).out
    done = call("best", "--task", other[:8], "--max-trainable-params", "9", "--db", namesakes)
    assert done.code == 3 and "without --max-trainable-params" in done.err
    done = call("best", "--task", "0" * 8, "--db", namesakes)
    assert done.code == 3 and "no such task" in done.err


def test_a_model_that_had_other_weights_wants_a_study(namesakes: str) -> None:
    done = call("best", "--model", "toy", "--db", namesakes)
    assert (done.code, done.out) == (2, "")
    assert "study a (2-5e1f), study b (2-0dd5)" in done.err and "--study" in done.err
    assert answer("best", "--model", "toy", "--study", "a", "--db", namesakes)["study"] == "a"
    done = call("best", "--model", "toy", "--study", "a", "--task", "x", "--db", namesakes)
    assert done.code == 3 and "no such task" in done.err


def test_next_commands_of_a_url_with_a_password_can_be_pasted(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They hold neither the password nor stars; where the environment names the database, no URL at all."""
    fill(postgres_url, "trec-toy", plan())
    db = postgres_url.replace("postgres@", "postgres:secret@")
    done = call("best", "--db", db)
    assert "secret" not in done.out and "***" not in done.out
    assert "the password is left out: set PGPASSWORD" in done.out
    command = done.out.partition("next: sparsearch ")[2].splitlines()[0]
    assert "postgresql://postgres@/" in command
    assert call(*shlex.split(command)).code == 0
    monkeypatch.setenv("SPARSEARCH_DB", db)
    done = call("best")
    assert "--db" not in done.out and "PGPASSWORD" not in done.out


@pytest.mark.parametrize("words", [("studies",), ("best",), ("stop", "x"), ("train", "abcd", "s")])
def test_nothing_of_a_password_is_shown(words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "s").write_text("name: x\n")
    done = call(*words, "--db", "postgresql://me:Q1@Q2/Q3:Q4#Q5%20@127.0.0.1:5432/studies")
    assert done.code in (1, 2)
    assert "Q" not in done.out + done.err


def test_one_task_within_the_limits_is_shown_whole(several: str) -> None:
    with Store.open(several, create=True) as store:
        store.begin_study(sample_study("small", 1, task="sst2"))
        store.finish("small", 0, sample_outcome(0.5, 20))
    assert answer("best", "--max-trainable-params", "20", "--db", several)["study"] == "small"


def test_tables_keep_cells_on_one_line_at_80_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    url = f"sqlite:///{tmp_path / 'wide.db'}"
    budget = Budget(113_566, max_inference_flops=0.75, text="0.5%, 75% FLOPs")
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


def test_pareto(db: str) -> None:
    front = answer("pareto", "trec", "--db", db)
    assert all(point.keys() >= BEST_KEYS for point in front)
    assert [point["score"] for point in front] == sorted({p["score"] for p in front})
    assert front[-1]["score"] == 0.93


def test_show_by_prefix(db: str) -> None:
    best = answer("best", "--db", db)
    shown = answer("show", best["structure"][:8], "--db", db)
    assert shown.items() >= best.items()
    candidate = sample_structure(best["trainable_params"]).candidates[0]
    assert shown["candidates"] == [
        {"position": "layers.0.attn.q", "kind": "lora", "size": candidate.size}
        | {"params": candidate.params}
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
        assert Path("out.html").stat().st_size > 1_000_000
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


@pytest.mark.parametrize(
    "words", [("studies",), ("trials", "x"), ("best",), ("pareto", "x"), ("show", "abcd")]
)
def test_missing_database(words: tuple[str, ...]) -> None:
    done = call(*words, "--json")
    assert (done.code, done.out) == (1, "")
    assert "sparsearch.db" in done.err and "hint:" in done.err
    assert not list(Path().iterdir())


def test_database_from_the_environment(db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEARCH_DB", db)
    assert len(answer("studies")) == 1


def test_space(tmp_path: Path) -> None:
    from transformers import BertConfig

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(**sizes, intermediate_size=128, vocab_size=100)
    config.save_pretrained(tmp_path / "toy")
    found = answer("space", "toy", "--kind", "bitfit", "--kind", "lora")
    assert set(found["by_kind"]) == {"bitfit", "lora"}
    total = sum(kind["trainable_params"] for kind in found["by_kind"].values())
    assert found["trainable_params"] == total
    assert found["candidates"] == sum(kind["candidates"] for kind in found["by_kind"].values())
    assert found["backbone_params"] > 0
    assert answer("space", "toy")["preset"] == "s3pet-m"
    assert "low_rank_adapter" in call("space", "toy").out
    assert "layers.*.attn.q" in call("space", "toy").out
    assert {"layers.0.attn.q", "layers.1.ffn.neurons"} <= set(found["position_names"])
    done = call("space", "toy", "--kind", "lorra")
    assert done.code == 2 and "lorra" in done.err


# Running


def run_with(
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    pairs: list[tuple[Trial, Outcome]],
    config: str = CONFIG,
) -> None:
    """Let ``run`` end with these outcomes."""

    def run(study: Path, db: str, overrides: Any, listener: Any, address: Any) -> StudyRecord:
        print("a library prints")
        record = fill(url, "trec-toy", pairs, config)
        listener.opened("trec-toy", [trial for trial, _ in pairs], 0)
        for trial, outcome in pairs:
            listener.started(trial)
            listener.progressed(trial, "train", 1, 2, 0.5)
            listener.finished(trial, outcome)
        return record

    Path("study.yaml").write_text("name: trec-toy\n")
    fake(monkeypatch, "sparsearch.workers.study", run=run)


@pytest.fixture
def new_db(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'new.db'}"


def test_run_ends_with_an_honest_summary(monkeypatch: pytest.MonkeyPatch, new_db: str) -> None:
    run_with(monkeypatch, new_db, plan())
    done = call("run", "study.yaml", "--db", new_db)
    assert done.code == 0, done.err
    text = " ".join(done.out.split())
    assert "s3pet 0.8100 does not beat random 0.8400 at 0.01%: use random" in text
    assert "s3pet 0.9200 beats random 0.8900" in text and "by 0.0300" in text
    assert (
        "s3pet against random at 0.01%: -0.0300 (95% interval -0.2841 to +0.2241, 2 seeds)" in text
    )
    assert text.index("0.01% (100)") < text.index("0.1% (1,000)") < text.index("references full")
    assert f"stored in {new_db}" in done.out
    for command in ("best --study trec-toy", "show ", "pareto trec-toy", "export "):
        line = next(x for x in done.out.splitlines() if f"sparsearch {command}" in x)
        assert line.endswith(f"--db {new_db}")
    assert done.err.count("validation ") == 12


@pytest.mark.parametrize("whole", [True, False])
def test_next_export_is_one_that_works(
    whole: bool, monkeypatch: pytest.MonkeyPatch, new_db: str
) -> None:
    """What is left of a backbone, fine-tuned as a whole, is no spec."""
    run_with(monkeypatch, new_db, plan(), json.dumps({"train": {"backbone": whole}}))
    following = answer("run", "study.yaml", "--db", new_db)["next"]
    (command,) = (line for line in following if "sparsearch export" in line)
    assert f"--to {'checkpoint' if whole else 'spec'} " in command


def test_run_json_is_one_document(monkeypatch: pytest.MonkeyPatch, new_db: str) -> None:
    run_with(monkeypatch, new_db, plan())
    document = answer("run", "study.yaml", "--db", new_db)
    assert document["study"]["finished"] == 12
    first = document["summary"]["budgets"][0]
    assert [s["strategy"] for s in first["strategies"]] == ["random", "s3pet"]
    assert first["strategies"][0]["validation"]["n"] == 2
    assert first["best"]["score"] == 0.85
    (rival,) = first["comparisons"]
    assert (rival["family"], rival["rival"], rival["n"]) == ("random", "random", 2)
    assert rival["low"] < rival["difference"] < rival["high"]


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (("infeasible", "infeasible"), 3),
        (("failed", "oom"), 1),
        (("failed", "ok"), 0),
        (("infeasible", "failed"), 1),
    ],
)
def test_run_exit_code(
    monkeypatch: pytest.MonkeyPatch, new_db: str, states: tuple[Any, ...], code: int
) -> None:
    pairs = []
    for number, state in enumerate(states):
        outcome = replace(sample_outcome(state=state), message=f"why {number}")
        outcome = outcome if state == "ok" else replace(outcome, measurements=(), structure=None)
        pairs.append((Trial(number, "s3pet", SMALL, number), outcome))
    run_with(monkeypatch, new_db, pairs)
    done = call("run", "study.yaml", "--db", new_db)
    assert done.code == code
    assert f"{states[0]}: why 0" in done.out


def test_references_do_not_hide_infeasible_budgets(
    monkeypatch: pytest.MonkeyPatch, new_db: str
) -> None:
    head = (Trial(0, "head", None, 0), sample_outcome(structure=False))
    none = (Trial(1, "s3pet", SMALL, 0), Outcome("infeasible", "too small"))
    run_with(monkeypatch, new_db, [head, none])
    assert call("run", "study.yaml", "--db", new_db).code == 3


def _raise(error: BaseException) -> Any:
    def run(*args: Any) -> StudyRecord:
        raise error

    return run


def test_interrupted_run_says_how_to_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("study.yaml").write_text("name: x\n")
    fake(monkeypatch, "sparsearch.workers.study", run=_raise(KeyboardInterrupt()))
    done = call("run", "study.yaml", "--db", "y.db", "--set", "seeds=[0, 1]")
    assert (done.code, done.out) == (130, "")
    assert "sparsearch run study.yaml --set 'seeds=[0, 1]' --db y.db" in done.err


def test_errors_are_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("study.yaml").write_text("name: x\n")
    fake(monkeypatch, "sparsearch.workers.study", run=_raise(InfeasibleError("a", "b")))
    done = call("run", "study.yaml", "--json")
    assert (done.code, done.out, done.err) == (3, "", "error: a\nhint: b\n")
    fake(monkeypatch, "sparsearch.workers.study", run=_raise(KeyError("[bold]x")))
    done = call("run", "study.yaml")
    assert done.code == 1
    assert "KeyError: '[bold]x'" in done.err and "SPARSEARCH_DEBUG=1" in done.err
    assert "Traceback" not in done.err
    monkeypatch.setenv("SPARSEARCH_DEBUG", "1")
    assert "Traceback" in call("run", "study.yaml").err


# Export and train


def test_export(db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsearch.results.export.export import ExportReport

    asked: dict[str, Any] = {}

    def export(
        best: Any, weights: bytes, to: str, out: Path, also: tuple[str, ...]
    ) -> ExportReport:
        asked.update(weights=weights, to=to, also=also)
        return ExportReport(out, ("structure.json",), ("a note",), 1e-7)

    monkeypatch.setattr("sparsearch.results.export.export.export", export)
    name = answer("best", "--db", db)["structure"]
    report = answer("export", name[:8], "--to", "peft", "--out", "x", "--db", db)
    assert asked == {"weights": b"weights", "to": "peft", "also": ()}
    assert report["structure"] == name and report["path"] == "x"
    assert report["files"] == ["structure.json"] and report["max_difference"] == 1e-7
    assert "a note" in call("export", name[:8], "--out", "x", "--db", db).out
    both = ("--to", "checkpoint", "--also", "torch", "--also", "onnx", "--out", "x", "--db", db)
    answer("export", name[:8], *both)
    assert asked == {"weights": b"weights", "to": "checkpoint", "also": ("torch", "onnx")}


def test_export_without_weights(new_db: str) -> None:
    spec = sample_study(trials=1)
    with Store.open(new_db, create=True) as store:
        store.begin_study(spec)
        store.finish(spec.name, 0, sample_outcome())
    done = call("export", sample_structure().hash[:8], "--out", "x", "--db", new_db)
    assert done.code == 1 and "sparsearch train" in done.err


def test_train_takes_a_folder_or_a_hash(db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class TrainedStructure:
        structure: Structure
        trainable_params: int = 7
        metric: str = "accuracy"
        score: float = 0.9
        test_score: float = float("nan")
        epoch: int = 2
        seconds: float = 1.0
        out: Path | None = None
        warnings: tuple[str, ...] = ("rows stand in two splits",)

    def train(structure: Structure, study: Path, **rest: Any) -> TrainedStructure:
        rest["observe"]("train", 1, 2)
        assert rest["overrides"] == ("seeds=[1]",)
        return TrainedStructure(structure, out=rest["out"])

    fake(monkeypatch, "sparsearch.workers.trials.train_structure", train_structure=train)
    Path("study.yaml").write_text("name: x\n")
    Path("spec").mkdir()
    Path("spec/structure.json").write_text(sample_structure().to_json())
    words = ("study.yaml", "--set", "seeds=[1]", "--db", db)
    done = answer("train", "spec", *words, "--out", "trained")
    assert done["structure"] == sample_structure().hash
    assert (done["test_score"], done["out"]) == (None, "trained")
    assert done["warnings"] == ["rows stand in two splits"]
    name = answer("best", "--db", db)["structure"]
    assert answer("train", name[:8], *words)["structure"] == name
    shown = call("train", "spec", *words).out
    assert "0.9000" in shown and "warning: rows stand in two splits" in shown
    neither = call("train", "nope", *words)
    assert neither.code == 1 and "'nope' is neither a file or folder nor found" in neither.err
    missing = call("train", "spec/nothing", *words)
    assert missing.code == 1 and "no file or folder" in missing.err
