"""YAML and JSON texts: what would be lost or would break a reader is refused, with its place."""

from __future__ import annotations

import json
import math

import pytest
from typer.testing import CliRunner

from sparsearch.cli.main import app
from sparsearch.config.reader import read_study
from sparsearch.documents import read_json, read_yaml
from sparsearch.errors import ConfigError, StructureError
from sparsearch.spaces.compaction.checkpoint_document import read_checkpoint
from sparsearch.spaces.structure import Structure

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("search: {steps: 4}\nname: a\nsearch: {steps: 2}", "'search' in lines 1 and 3"),
        ("search: {steps: 4, steps: 9}", "'steps' in line 1"),
        ("a:\n  b:\n    - c: 1\n      c: 2", "'c' in lines 3 and 4"),
        ("a: {b: [{c: {d: 1, e: 2, d: 3}}]}", "'d' in line 1"),
        ("a: 1\n'a': 2", "'a' in lines 1 and 2"),
        ("true: 1\nTrue: 2", "True in lines 1 and 2"),
        ("a: &a {x: 1}\nb:\n  <<: *a\n  <<: *a", "'<<' in lines 3 and 4"),
        ("b:\n  <<: {x: 1, x: 2}", "'x' in line 2"),
        ("a: 1\na: 2\nb: 3\nb: 4", "'a' in lines 1 and 2, 'b' in lines 3 and 4"),
    ],
)
def test_a_key_that_stands_twice_in_yaml_is_named_with_its_lines(text, message):
    with pytest.raises(ValueError, match="a key stands twice") as caught:
        read_yaml(text)
    assert str(caught.value).endswith(message)


def test_merge_keys_may_name_what_a_mapping_has_itself():
    text = "a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: [*a, *b], y: 1}\nd: {<<: *b, z: 3}"
    assert read_yaml(text) == {
        "a": {"x": 1},
        "b": {"x": 2},
        "c": {"x": 1, "y": 1},
        "d": {"x": 2, "z": 3},
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10), ("08", 8), ("+7", 7), ("-0", 0), ("0o17", 15), ("0x1F", 31),
        ("1e3", 1000.0), ("1e-3", 0.001), ("1.", 1.0), (".5", 0.5), ("-.inf", -math.inf),
        ("1:30", "1:30"), ("190:20:30", "190:20:30"), ("1_0", "1_0"), ("0b1", "0b1"), ("1e", "1e"),
        ("2026-01-01", "2026-01-01"), ("on", "on"), ("No", "No"), ("y", "y"), ("truest", "truest"),
        ("=", "="), ("true", True), ("FALSE", False), ("~", None), ("null", None),
        ("!!float 3", 3.0), ("!!int 010", 10), ("'010'", "010"),
    ],
)  # fmt: skip
def test_plain_scalars_are_those_of_yaml_1_2(text, value):
    """YAML 1.2, section 10.3.2; YAML 1.1 read 010 as 8, 1:30 as 90 and 1e-3 as a text."""
    found = read_yaml(text)
    assert (found, type(found)) == (value, type(value))


MALFORMED = {
    "a key twice": ("{search: {steps: 4}, search: {steps: 2}}", "'search' in line 1"),
    "lists": ("a: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
    "mappings": ("a: " + "{a: " * 3000 + "1" + "}" * 3000, "nested too deeply"),
    "laughs": (LAUGHS, "more than 100,000 values"),
    "list in itself": ("a: &a [*a]", "aliases hold themselves"),
    "mapping in itself": ("a: &a {b: *a}", "aliases hold themselves"),
    "nul": ("a: b\0c", "#x0000"),
    "no such day": ("a: 1\nb: !!timestamp 2024-13-45", "'2024-13-45' is no timestamp .* line 2"),
    "no timestamp": ("a: !!timestamp x", "'x' is no timestamp"),
    "no integer": ("a: !!int x", "'x' is no int"),
    "no boolean": ("a: !!bool x", "'x' is no bool"),
    "long number": ("a: " + "9" * 5000, "is no int"),
    "code": ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_whatever_a_yaml_parser_meets_is_a_wrong_study_file(name, tmp_path):
    text, message = MALFORMED[name]
    (tmp_path / "s.yaml").write_text(text)
    result = CliRunner().invoke(
        app, ["run", str(tmp_path / "s.yaml"), "--db", str(tmp_path / "d")]
    )
    assert result.exit_code == 2
    assert "is not valid YAML: " in " ".join(result.stderr.split())
    assert len(result.stderr) < 1000
    with pytest.raises(ConfigError, match=message):
        read_study(tmp_path / "s.yaml")


@pytest.mark.parametrize("name", sorted(set(MALFORMED) - {"nul"}))
def test_whatever_a_yaml_parser_meets_in_an_override_is_a_wrong_value(name):
    with pytest.raises(ConfigError, match="--set name: the value is not valid YAML"):
        read_study({}, [f"name={MALFORMED[name][0]}"])


def test_an_override_changes_no_other_place_of_an_alias(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("space: {kinds: {lora: &o {max_rank: 2}, low_rank_adapter: *o}, on: [*o]}")
    raw, _ = read_study(path, ["space.kinds.lora.max_rank=4", "space.on.0.max_rank=8"])
    kinds = {"lora": {"max_rank": 4}, "low_rank_adapter": {"max_rank": 2}}
    assert raw["space"] == {"kinds": kinds, "on": [{"max_rank": 8}]}


DOCUMENTS = {
    "deep": ("[" * 90_000 + "]" * 90_000, "nested too deeply"),
    "twice": ('{"schema_version": 1, "kinds": {"lora": {}, "lora": {}}}', "twice: 'lora'"),
    "long number": ('{"schema_version": ' + "9" * 5000 + "}", "Exceeds the limit"),
    "nul": ("{\0}", "Expecting property name"),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_whatever_a_json_parser_meets_is_a_wrong_structure_or_checkpoint(name, tmp_path):
    text, message = DOCUMENTS[name]
    (tmp_path / "structure.json").write_text(text)
    (tmp_path / "checkpoint.json").write_text(text)
    with pytest.raises(StructureError, match=message):
        Structure.load(tmp_path)
    with pytest.raises(StructureError, match=message):
        read_checkpoint(tmp_path)


def test_json_is_read_as_it_is_written():
    value = {"a": [{"b": 1}, {"b": 2}], "c": {"a": None, "b": 1.5}}
    assert read_json(json.dumps(value)) == value
