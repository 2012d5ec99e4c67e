"""What is best, and the front: limits, several tasks, tasks and models of one name."""

from dataclasses import replace
from pathlib import Path

import pytest

from sparsearch.results import Store
from sparsearch.testing.store_conformance import sample_outcome, sample_study, task_config
from tests.helpers.command_line import answer, call

BEST_KEYS = {
    *("study", "trial", "structure", "strategy", "metric", "score", "test_score", "budget"),
    *("trainable_params", "head_params", "inference_flops_ratio"),
}


@pytest.mark.parametrize(
    ("words", "score"),
    [
        ((), 0.93),
        (("--max-trainable-params", "0.01%"), 0.85),
        (("--max-trainable-params", "100", "--task", "trec", "--model", "toy"), 0.85),
        (("--study", "trec", "--max-inference-flops", "100%"), 0.93),
        (("--max-bytes", "0.01%"), 0.85),
        (("--max-bytes", "400"), 0.85),
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
        (("--limit", "max_bytes=10"), "within --max-bytes 10"),
        (("--max-bytes", "10"), "without --max-bytes the best is"),
        (("--max-bytes", "10"), "the smallest in that study stores 288"),
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--limit", "max_bytes"), "write NAME=VALUE, with one of max_trainable_params"),
        (("--limit", "max_byte=9"), "limit max_byte=9: no limit of a budget"),
        (("--limit", "max_bytes=9", "--limit", "max_bytes=8"), "this limit is given twice"),
        (
            ("--max-trainable-params", "9", "--limit", "max_trainable_params=8"),
            "limit max_trainable_params=8: this limit is given twice",
        ),
        (("--max-bytes", "9", "--limit", "max_bytes=9"), "max_bytes=9: this limit is given twice"),
        (("--limit", "max_bytes=20.5"), "max_bytes: '20.5' is neither a whole number nor"),
    ],
)
def test_a_wrong_limit_exits_2(db: str, words: tuple[str, ...], message: str) -> None:
    done = call("best", *words, "--db", db)
    assert done.code == 2 and message in " ".join(done.err.split())


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


def test_one_task_within_the_limits_is_shown_whole(several: str) -> None:
    with Store.open(several, create=True) as store:
        store.begin_study(sample_study("small", 1, task="sst2"))
        store.finish("small", 0, sample_outcome(0.5, 20))
    assert answer("best", "--max-trainable-params", "20", "--db", several)["study"] == "small"


def test_pareto(db: str) -> None:
    front = answer("pareto", "trec", "--db", db)
    assert all(point.keys() >= BEST_KEYS for point in front)
    assert [point["score"] for point in front] == sorted({p["score"] for p in front})
    assert front[-1]["score"] == 0.93


def test_what_stores_far_more_than_it_trains_is_warned_of(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'large.db'}"
    with Store.open(url, create=True) as store:
        store.begin_study(sample_study())
        store.finish("study", 0, sample_outcome(0.5, 100, stored=4000))
        store.finish("study", 1, sample_outcome(0.6, 100, stored=4001))
    out = " ".join(call("best", "--db", url).out.split())
    assert "4,001 bytes, of them 3,601 beside the trained values" in out and "warning: " in out
    assert "warning" not in call("best", "--max-bytes", "4000", "--db", url).out
    assert answer("best", "--max-bytes", "4000", "--db", url)["stored_bytes"] == 4000
