"""What another package registers, with no change to this one: a strategy, a kind, a limit and a family."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "examples" / "plugins"

USE = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, RoFormerConfig
import sparsearch as ss
from sparsearch.results.store.store import Store

torch.manual_seed(0)
small = RoFormerConfig(
    vocab_size=60, hidden_size=32, embedding_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
)
model = AutoModelForSequenceClassification.from_config(small).eval()
rows = {"input_ids": torch.randint(5, 60, (2, 7)), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
space = ss.build_space(model, kinds={"output_scale": {"on": ["*.attn.q"]}, "heads": {}, "lora": {"max_rank": 1}})
found = {"positions": len(space.positions), "kinds": sorted(space.by_kind)}

study = json.loads(sys.argv[1])
ss.run(study, sys.argv[2])
with Store.open(sys.argv[2], create=False) as store:
    found["trials"] = [(t.strategy, t.state, t.trainable_params) for t in store.trials(study["name"])]
    best = store.best(study=study["name"])
    found["within"] = [getattr(store.best(max_rank_units=n), "trial", None) for n in (0, 1)]
    found["budget"] = best.budget
    found["chosen"] = [[c.position, c.kind] for c in best.structure.candidates]
    weights = store.weights(study["name"], best.trial)
ss.export(best, weights, "checkpoint", sys.argv[3])
print(json.dumps(found))
"""


@pytest.fixture
def site(tmp_path):
    """A folder on the path that holds the package as pip would install it."""
    site = tmp_path / "site"
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    shutil.copytree(PACKAGE / "toy_plugins", site / "toy_plugins")
    return site


_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["torch", "transformers", "datasets", "peft", "sqlalchemy", "pydantic"]
)


def _work(site, code, arguments, said):
    """In a new process: run the code with that folder on its path, and write what it says to a file."""
    stream = os.open(said, os.O_WRONLY | os.O_CREAT)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.path.insert(0, site)
    sys.argv = ["-c", *arguments]
    exec(code, {"__name__": "plugins"})


def run(site, code, *arguments):
    """The exit code, and all that was said; the process is forked from one that has imported the libraries."""
    said = site.parent / "said"
    process = _SERVER.Process(target=_work, args=(str(site), code, arguments, str(said)))
    process.start()
    process.join()
    return process.exitcode, said.read_text()


def test_a_study_uses_what_another_package_registers(study, site, tmp_path):
    chosen = study | {
        "space": {"kinds": {"output_scale": {"on": ["*.attn.q"]}}},
        "search": {"strategy": "top-layers"},
        "baselines": [],
        "budgets": {"max_trainable_params": [100], "max_rank_units": [1]},
    }
    db, out = str(tmp_path / "plugins.db"), str(tmp_path / "slim")
    code, said = run(site, USE, json.dumps(chosen), db, out)
    assert code == 0, said
    found = json.loads(said.splitlines()[-1])
    assert found["positions"] == 2 * 12 + 1
    assert found["kinds"] == ["heads", "lora", "output_scale"]
    assert found["trials"] == [["top-layers", "ok", 32]]
    assert found["within"] == [None, 0]
    assert found["budget"] == {
        "max_trainable_params": 100,
        "max_rank_units": 1,
        "text": "100 params, 1 rank units",
    }
    assert found["chosen"] == [["layers.1.attn.q", "output_scale"]]


STUDY = {
    "space": {"kinds": {"output_scale": {}}},
    "search": {"strategy": "top-layers"},
    "baselines": [],
    "budgets": [40],
}
READ = """
import json, sys
from pathlib import Path
from sparsearch.config.reader import validate_study
from sparsearch.config.registry import STRATEGIES
_, problems = validate_study(json.loads(sys.argv[1]), Path())
assert not problems, problems
STRATEGIES.load(json.loads(sys.argv[1])["search"]["strategy"])
"""
LAUNCH = """
import json, sys, sparsearch as ss
from sparsearch.results.store.store import Store
ss.run(json.loads(sys.argv[1]), sys.argv[2])
with Store.open(sys.argv[2], create=False) as store:
    print(store.trials("tiny")[0].message, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("entry_points.txt", "top-layers", "probe", "the name 'probe' of toy_plugins.strategy:TopLayers is taken"),
        ("entry_points.txt", "top-layers =", "top = toy_plugins.strategy:Gone\ntop-layers =", ""),
        ("entry_points.txt", "output_scale =", "scale =", "unknown kind 'output_scale'"),
        ("entry_points.txt", "strategy:TopLayers", "strategy:Gone", "'top-layers' cannot be imported from"),
        ("strategy.py", '"top-layers"', '"other"', "of toy_plugins.strategy:TopLayers calls itself 'other'"),
        ("strategy.py", "float(layers", "float('nan') * float(layers", "has 12 scores that are not finite"),
        ("strategy.py", "Ranking(scores,", "Ranking(scores[1:],", "gave 11 scores for 12 candidates"),
    ],
)  # fmt: skip
def test_a_plug_in_that_is_wrong_is_named(study, site, tmp_path, file, old, new, message):
    (path,) = site.rglob(file)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    arguments = json.dumps(study | STUDY), str(tmp_path / "plugins.db")
    told = READ if "top-layers" in old or "TopLayers" in old else LAUNCH
    code, said = run(site, told, *arguments)
    assert message in said
    assert message or code == 0, "what nobody asks for is not imported"


def test_a_name_that_two_packages_register_is_named(study, site, tmp_path):
    info = next(site.glob("*.dist-info"))
    other = site / info.name.replace("toy", "other")
    shutil.copytree(info, other)
    for name in ("METADATA", "entry_points.txt"):
        (other / name).write_text((other / name).read_text().replace("toy", "other"))
    arguments = json.dumps(study | STUDY), str(tmp_path / "plugins.db")
    code, said = run(site, LAUNCH, *arguments)
    assert code == 1 and "is registered twice, other_plugins." in said
