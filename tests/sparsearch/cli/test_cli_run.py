"""A run on the command line: its summary, JSON, exit code and errors."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparsearch.errors import InfeasibleError
from sparsearch.results import Outcome, StudyRecord, Trial
from sparsearch.testing.store_conformance import sample_outcome
from tests.helpers.command_line import answer, call, fake
from tests.helpers.filled_study import CONFIG, SMALL, fill, plan


def run_with(
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    pairs: list[tuple[Trial, Outcome]],
    config: str = CONFIG,
) -> None:
    """Let ``run`` end with these outcomes."""

    def run(study: Path, db: str, overrides: Any, listener: Any) -> StudyRecord:
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


@pytest.mark.parametrize("words", [("--ray-address", "no address"), ("--ray-address=no address",)])
def test_the_former_option_is_the_setting_that_it_is_now(
    study: dict[str, Any], tmp_path: Path, words: tuple[str, ...]
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(study | {"workers": {"runner": "ray"}}))
    done = call("run", str(path), *words, "--db", str(tmp_path / "none.db"))
    assert done.code == 2 and "'no address' is not HOST:PORT" in done.err
    assert "is called --set workers.address=HOST:PORT now" in done.err
    done = call("run", str(path), *words, "--set", "workers.runner=in-process")
    assert done.code == 2 and "it goes with runner: ray" in done.err
