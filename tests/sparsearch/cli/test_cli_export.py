"""Export of a stored structure, and training one again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sparsearch.results import Store
from sparsearch.spaces.structure import Structure
from sparsearch.testing.store_conformance import sample_outcome, sample_structure, sample_study
from tests.helpers.command_line import answer, call, fake


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
        stored_bytes: int = 29
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
