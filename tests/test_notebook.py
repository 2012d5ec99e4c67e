"""The shipped notebook: its cells run from top to bottom, and it holds no outputs of somebody's run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
CELLS = {
    file.name: json.loads(file.read_text())["cells"] for file in sorted(EXAMPLES.glob("*.ipynb"))
}


@pytest.mark.parametrize("name", CELLS)
def test_the_cells_run_one_after_the_other(name, monkeypatch, capsys):
    monkeypatch.chdir(EXAMPLES)
    names = {"__name__": "__main__"}
    for number, cell in enumerate(CELLS[name]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name} cell {number}", "exec"), names)
    told = capsys.readouterr().out
    assert names["search"].structure.trainable_params <= 1500
    assert "largest difference of the logits" in told and "merged" in told


@pytest.mark.parametrize("name", CELLS)
def test_it_holds_no_outputs(name):
    assert len(CELLS[name]) > 5
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in CELLS[name])
