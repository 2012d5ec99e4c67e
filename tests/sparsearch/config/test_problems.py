"""What is wrong with a study is said in the words of its file."""

from __future__ import annotations

import re

import pytest

from sparsearch.config.reader import read_study, validate_study
from sparsearch.config.study import StudyConfig
from sparsearch.errors import ConfigError

KEYS = {  # a section, and keys of it that a message must list
    "": "name, model, task",
    "task.data": "path, callable, name, data_files, splits",
    "search.probe": "score, rows, cut",
    "workers": "runner, address, device",
    "outer": "sampler, trials, tune",
    "outer.tune.train.lr": "from, to, log",
}


@pytest.fixture
def problems(study):
    def of(*overrides, **changes):
        raw, folder = read_study(study | changes, overrides)
        return validate_study(raw, folder)[1]

    return of


def tuned(**settings):
    return {"tune": {path.replace("__", "."): value for path, value in settings.items()}}


@pytest.mark.parametrize("section", KEYS)
def test_an_unknown_key_of_any_section_gets_the_known_ones(problems, section):
    at = f"{section}." if section else ""
    if section == "outer.tune.train.lr":
        found = problems(outer=tuned(train__lr={"from": 1e-3, "to": 1e-2, "qqq": 1}))
    else:
        found = problems(f"{at}qqq=1")
    assert len(found) == 1
    assert found[0].startswith(f"{at}qqq: unknown key; known: {KEYS[section]}")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("train.lrr", "outer.tune.train.lrr: unknown key; did you mean 'lr'?"),
        ("train.qqq", "outer.tune.train.qqq: unknown key; known: epochs, batch_size, lr"),
        ("search.probe.rowz", "outer.tune.search.probe.rowz: unknown key; did you mean 'rows'?"),
        ("qqq", "outer.tune.qqq: no setting of search or train"),
        ("space.kinds", "outer.tune.space.kinds: no setting of search or train"),
    ],
)
def test_an_unknown_setting_that_is_tuned_gets_the_known_ones(problems, path, message):
    (found,) = problems(outer={"tune": {path: [1, 2]}})
    assert found.startswith(message)
    assert "Extra inputs" not in found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"outer": tuned(train__lr=5)},
            "outer.tune.train.lr: 5 is neither a range, {from: 1, to:",
        ),
        (
            {"outer": tuned(train__lr=[[1], {}])},
            "outer.tune.train.lr: [[1], {}] is neither a range",
        ),
        ({"outer": tuned(train__lr=None)}, "outer.tune.train.lr: None is neither a range"),
        ({"outer": tuned(train__lr={"from": 1})}, "outer.tune.train.lr.to: missing"),
        ({"train": [1]}, "train: must be a mapping of keys: epochs, batch_size, lr"),
        ({"train": 7}, "train: must be a mapping of keys: "),
        ({"seeds": 3}, "seeds: must be a list, not 3"),
        ({"search": {"allocation": {"heads": "all"}}}, "search.allocation.heads: Input should be"),
        ({"budgets": ["3%", "300%"]}, "budgets.1: '300%' is no share"),
        ({"budgets": ["1e3"]}, "budgets.0: '1e3' is no limit: write a whole number above 0, or"),
        ({"budgets": [1.5]}, "budgets.0: 1.5 is no limit"),
        (
            {"budgets": {"max_bytes": [5, -1]}},
            "budgets.max_bytes: -1 is no limit: write a whole number above 0",
        ),
    ],
)
def test_a_wrong_value_is_named_where_the_user_wrote_it(problems, changes, message):
    found = problems(**changes)
    assert any(problem.startswith(message) for problem in found), found
    words = r"literal|function-|\[key\]|Extra inputs|valid dictionary|instance of|Field required"
    assert not re.search(words, " ".join(p.partition(": Input")[0] for p in found)), found
    assert not any(re.search(r"\.(range|choices|int|float|bool|str)\b", p) for p in found), found


@pytest.mark.parametrize("written", [r"\t", '""', ";;", '"\\n"', "7"])
def test_a_wrong_delimiter_is_told_how_to_write_one(problems, written):
    (found,) = problems("task.data.path=csv", f"task.data.delimiter={written}")
    assert 'is no delimiter: write one character in quotes, as ";", or "\\t" for a tab' in found


def test_settings_of_a_proposal_are_checked_in_the_same_words(study):
    config = StudyConfig.model_validate(study)
    with pytest.raises(ConfigError) as caught:
        config.with_settings([("train.epochz", 3), ("search.probe.cut", "x")])
    first, second = sorted(caught.value.problems, reverse=True)
    assert first == "train.epochz: unknown key; did you mean 'epochs'?"
    assert second.startswith("search.probe.cut: Input should be 'greedy', 'density' or 'knapsack'")
