"""Answers: the best structures, tasks that are told apart."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from sparsearch.errors import ConfigError, StoreError
from sparsearch.results.records import (
    BestQuery,
    FinishedState,
    Outcome,
)
from sparsearch.results.store.store import Store
from sparsearch.spaces.ranking import Ranking
from sparsearch.spaces.structure import Provenance
from sparsearch.testing.store_conformance.samples import (
    sample_outcome,
    sample_structure,
    sample_study,
    task_config,
)
from sparsearch.testing.store_reference import check_answers

__all__ = ["AnswersConformance"]


class AnswersConformance:
    """Answers: the best structures, tasks that are told apart."""

    def test_best_is_feasible_and_has_a_structure(self, store: Store) -> None:
        """Failed trials and references never win, however high their score."""
        store.begin_study(sample_study(trials=5))
        outcomes: Sequence[Outcome] = (
            sample_outcome(0.9, state="failed"),
            sample_outcome(0.8, structure=False),
            sample_outcome(0.3),
            sample_outcome(0.95, state="infeasible"),
        )
        for number, outcome in enumerate(outcomes):
            store.finish("study", number, outcome)
        best = store.best()
        assert best is not None and (best.trial, best.score) == (2, 0.3)
        assert store.find_study("study").best_score == 0.3
        assert [b.trial for b in store.pareto("study")] == [2]
        assert store.find_structure(sample_structure().hash[:4]).trial == 2

    def test_best_breaks_ties(self, store: Store) -> None:
        """Fewer parameters, then the earlier trial."""
        store.begin_study(sample_study(trials=4))
        for number, params in ((3, 50), (2, 50), (1, 60), (0, 70)):
            store.finish("study", number, sample_outcome(0.5, params))
        best = store.best()
        assert best is not None and (best.trial, best.trainable_params) == (2, 50)

    def test_best_within_limits(self, store: Store) -> None:
        """A share counts against each study's own backbone, rounded down."""
        store.begin_study(sample_study("small", 1, backbone_params=999_999))
        store.begin_study(sample_study("large", 2, model="other", backbone_params=2_000_000))
        store.finish("small", 0, sample_outcome(0.9, 100, ratio=0.75))
        store.finish("large", 0, sample_outcome(0.8, 200, ratio=0.75001))
        store.finish("large", 1, sample_outcome(0.7, 10))

        def found(**limits: str | int | float) -> tuple[str, int] | None:
            best = store.best(**limits)  # type: ignore[arg-type]
            return None if best is None else (best.study, best.trial)

        assert found() == ("small", 0)
        assert found(max_trainable_params="0.01%") == ("large", 0)
        assert found(max_trainable_params=100) == found(max_trainable_params="100") == ("small", 0)
        assert found(max_trainable_params=99) == ("large", 1)
        assert found(max_trainable_params=9) is None
        assert found(max_bytes="0.01%") == ("large", 0), "four bytes a parameter: 396 and 800"
        assert found(max_bytes="400") == ("small", 0)
        assert found(max_bytes=399) == ("large", 1)
        assert found(max_inference_flops="75%") == found(max_inference_flops=0.75) == ("small", 0)
        assert found(model="other") == found(study="lar") == ("large", 0)
        assert found(model="other", max_inference_flops="75%") is None
        assert found(task="sst2") is None

    def test_best_at_least_so_sparse(self, store: Store) -> None:
        """By what was measured; a trial without that measurement is dense."""
        store.begin_study(sample_study(trials=3))
        for number, (score, share) in enumerate(((0.7, 0.9), (0.8, 0.5))):
            store.finish("study", number, sample_outcome(score, layer=number, sparsity=share))
        store.finish("study", 2, sample_outcome(0.9, layer=2))
        found = [store.best(min_weight_sparsity=share) for share in (None, 0.5, "50%", "90%")]
        assert [(b.trial, b.weight_sparsity) for b in found if b is not None] == [
            (2, 0.0),
            (1, 0.5),
            (1, 0.5),
            (0, 0.9),
        ]
        assert store.best(min_weight_sparsity="91%") is None
        assert [b.trial for b in store.pareto("study")] == [0, 1, 2]

    @pytest.mark.parametrize("seed", range(2))
    def test_answers_are_those_of_brute_force(self, store: Store, seed: int) -> None:
        """Of ``best`` within any limits and of ``pareto``, as outcomes with many ties come in."""
        draw = random.Random(seed)
        for name in ("b", "a"):
            store.begin_study(sample_study(name, 30))
        todo = [(name, number) for name in "ab" for number in range(30)]
        draw.shuffle(todo)
        states: tuple[FinishedState, ...] = ("ok", "ok", "ok", "ok", "failed")
        for done, (name, number) in enumerate(todo):
            outcome = sample_outcome(
                draw.choice([0.0, 0.25, 0.5, 0.75, 1.0, float("nan")]),
                draw.randrange(1, 6),
                stored=draw.choice([None, None, 4, 10]),
                ratio=draw.choice([0.5, 0.75, 1.0]),
                sparsity=draw.choice([0.0, 0.0, 0.5, 0.9]),
                state=draw.choice(states),
                structure=draw.random() < 0.9,
            )
            store.finish(name, number, outcome)
            if done in (24, 59):
                check_answers(store)

    def test_tasks_of_one_name_are_told_apart_by_their_data(self, store: Store) -> None:
        """Every answer is for one of them: ``best``, also within limits, and what is transferred to another."""
        specs = [
            sample_study(name, 2, config=task_config(train), task="train")
            for name, train in (("a", "5e1f"), ("b", "0dd5"), ("again", "5e1f"))
        ]
        for spec, score in zip(specs, (0.6, 0.9, 0.7), strict=True):
            store.begin_study(spec)
            made = Ranking((0.5,), "s3pet", 0, 3, 1.0, "f00d", "5ace", "train")
            outcome = replace(sample_outcome(score), ranking=(spec.name, made))
            store.finish(spec.name, 0, outcome)
        first, other, again = (spec.task_fingerprint for spec in specs)
        assert first == again != other
        assert [s.task_fingerprint for s in store.studies()] == [first, other, first]
        for question in (
            BestQuery(),
            BestQuery(task="train"),
            BestQuery(limits={"max_trainable_params": 100}),
        ):
            found = store.best_of_each_task(question)
            assert [(b.study, b.score) for b in found] == [("again", 0.7), ("b", 0.9)]
            assert [b.task_fingerprint for b in found] == [first, other]
            with pytest.raises(
                ConfigError, match=f"study b\\), fingerprint {other[:8]}"
            ) as caught:
                store.best(task=question.task, **question.limits)  # type: ignore[arg-type]
            assert "--task or --study" in caught.value.hint
        for asked in ({"task": other[:8]}, {"study": "b"}):
            best = store.best(**asked)
            assert best is not None and best.study == "b"
        assert store.best(task=other[:3]) is None, "as short as that it is a name"
        assert store.transferable("5ace", first) == "b"
        assert store.transferable("5ace", other) == "again"
        check_answers(store)

    def test_one_task_may_have_several_names(self, store: Store) -> None:
        """A copy of the data elsewhere, other words for it, shorter inputs: scores compare."""
        changes: tuple[dict[str, Any], ...] = (
            {},
            {"data": {"path": "json", "data_files": {"train": "copy/train.jsonl"}}},
            {"name": "moods"},
            {"max_length": 64},
        )
        for number, changed in enumerate(changes):
            name, config = f"study-{number}", task_config("5e1f", **changed)
            store.begin_study(sample_study(name, 1, config=config, task=f"task-{number}"))
            store.finish(name, 0, sample_outcome(0.5 + number / 10))
        assert len({s.task_fingerprint for s in store.studies()}) == 1
        best = store.best(task="task-0")
        assert best is not None and best.study == "study-3"

    def test_a_structure_of_two_tasks_of_one_name_wants_a_study(self, store: Store) -> None:
        """Its scores on the two do not compare."""
        for name, train in (("one", "aa"), ("two", "bb")):
            store.begin_study(sample_study(name, 1, config=task_config(train)))
            store.finish(name, 0, sample_outcome())
        best = store.best(study="one")
        assert best is not None
        with pytest.raises(StoreError, match="trained on several tasks"):
            store.find_structure(best.structure.hash)
        assert store.find_structure(best.structure.hash, "two").study == "two"

    def test_a_study_of_a_folder_goes_on_whose_digests_were_not_stored(self, store: Store) -> None:
        """Version 0.1 stored those of single files alone."""
        config = {"task": {"data": {"path": "folder"}, "text": ["text"]}}
        spec = sample_study("folder", 1, config=json.dumps(config))
        store.begin_study(spec)
        now = json.dumps({**config, "data_sha256": {"train.jsonl": "aa"}})
        store.begin_study(sample_study("folder", 2, config=now))
        assert store.find_study("folder").trials == 2

    @pytest.mark.parametrize(
        "changed",
        [
            {"type": "regression"},
            {"label": "mood"},
            {"labels": [1, 0]},
            {"text": ["question"]},
            {"max_train_rows": 32},
            {"data": {"path": "json", "splits": {"validation": "train[80%:]"}}},
        ],
    )
    def test_what_changes_the_scores_makes_another_task(
        self, store: Store, changed: dict[str, Any]
    ) -> None:
        """Type, columns, labels, rows, splits."""
        store.begin_study(sample_study("a", 1, config=task_config("5e1f")))
        store.begin_study(sample_study("b", 1, config=task_config("5e1f", **changed)))
        assert len({s.task_fingerprint for s in store.studies()}) == 2

    def test_data_of_unknown_content_is_the_same_in_no_other_study(self, store: Store) -> None:
        """Early versions stored paths alone, and a path may lead to other data elsewhere; hub data has a name."""
        files = json.loads(task_config("5e1f"))
        del files["data_sha256"]
        hub = {"task": {"data": {"path": "glue", "name": "rte"}, "text": ["text"]}}
        for name, config in (("a", files), ("b", files), ("c", hub), ("d", hub)):
            store.begin_study(sample_study(name, 1, config=json.dumps(config)))
        a, b, c, d = (s.task_fingerprint for s in store.studies())
        assert a != b and c == d and c not in (a, b)

    def test_a_models_name_stands_for_one_backbone(self, store: Store) -> None:
        """A folder's weights may change, or another folder have its name: ``best`` of that model is refused."""
        weights = {"a": "2-aaaa", "b": "2-bbbb", "c": "2-aaaa", "d": "3-cccc", "e": "f00d"}
        for number, (name, fingerprint) in enumerate(weights.items()):
            task = "rte" if name == "b" else "trec"
            store.begin_study(sample_study(name, 1, model="../m", task=task))
            outcome = sample_outcome(0.5 + number / 10)
            assert outcome.structure is not None
            backbone = replace(outcome.structure.backbone, weight_fingerprint=fingerprint)
            structure = replace(outcome.structure, backbone=backbone)
            store.finish(name, 0, replace(outcome, structure=structure))
        with pytest.raises(ConfigError, match=r"'../m' had 2 different weights") as caught:
            store.best(model="../m")
        assert "study a (2-aaaa), study b (2-bbbb)" in caught.value.problems[0]
        assert "--study" in caught.value.hint
        for asked in ({"model": "../m", "study": "b"}, {"model": "../m", "task": "rte"}):
            best = store.best(**asked)
            assert best is not None and best.study == "b"
        best = store.best(model="../m", task="trec")
        assert best is not None and best.study == "e", "other forms of a fingerprint say nothing"

    def test_best_carries_its_own_provenance(self, store: Store) -> None:
        """Also where an equal structure was stored by another trial."""
        store.begin_study(sample_study())
        store.finish("study", 0, sample_outcome(0.1))
        store.finish("study", 1, sample_outcome(0.2))
        best = store.best()
        assert best is not None and best.structure == sample_structure()
        assert best.structure.provenance == Provenance("study", 1, "s3pet", 11)
        assert best.budget == {"max_trainable_params": 100, "text": "0.01%"}

    def test_an_equal_structure_of_another_study_is_told_as_that_study_has_it(
        self, store: Store
    ) -> None:
        """Its model may lie elsewhere, and its space be larger: the hash leaves both out."""
        for name, path, offered in (("first", "models/a", 40), ("second", "models/b", 90)):
            store.begin_study(sample_study(name, 1))
            outcome = sample_outcome()
            assert outcome.structure is not None
            was = outcome.structure
            structure = replace(
                was,
                backbone=replace(was.backbone, path=path, revision=name),
                provenance=replace(was.provenance, offered=offered),
            )
            store.finish(name, 0, replace(outcome, structure=structure))
        for name, path, offered in (("first", "models/a", 40), ("second", "models/b", 90)):
            for found in (
                store.find_structure(sample_structure().hash, name),
                store.best(study=name),
                store.pareto(name)[0],
                store.structures_of(name, [0])[0],
            ):
                assert found is not None
                own = found.structure
                assert (own.backbone.path, own.backbone.revision) == (path, name)
                assert own.stored_bytes == own.bytes + -(-offered // 8)
                assert own.hash == sample_structure().hash

    def test_a_structure_of_several_tasks_belongs_to_a_study(self, store: Store) -> None:
        """Uniform structures are the same on every task; their scores and weights are not."""
        for name, task, score in (("first", "trec", 0.9), ("second", "rte", 0.6)):
            store.begin_study(replace(sample_study(name, 2), task=task))
            store.finish(name, 0, sample_outcome(score, 40))
        name = sample_structure(40).hash
        with pytest.raises(StoreError, match=r"several tasks: first \(trec\), second \(rte\)"):
            store.find_structure(name)
        assert store.find_structure(name, "second").score == 0.6
        assert store.find_structure(name, study="fir").study == "first"
        store.finish("second", 1, sample_outcome(0.7, 41))
        with pytest.raises(StoreError, match="no successful trial"):
            store.find_structure(sample_structure(41).hash, "first")

    def test_structure_prefixes(self, store: Store) -> None:
        """At least four characters; two structures that fit are both named."""
        hashes: dict[str, list[int]] = {}
        params = 0
        while not any(len(same) == 2 for same in hashes.values()):
            params += 1
            hashes.setdefault(sample_structure(params).hash[:4], []).append(params)
        prefix, pair = next((p, same) for p, same in hashes.items() if len(same) == 2)
        store.begin_study(sample_study())
        for number, size in enumerate(pair):
            store.finish("study", number, sample_outcome(0.5, size))
        first, second = (sample_structure(size).hash for size in pair)
        assert store.find_structure(first.upper()).structure.hash == first
        with pytest.raises(StoreError) as caught:
            store.find_structure(prefix)
        assert first[:12] in caught.value.message and second[:12] in caught.value.message
        for wrong in (first[:3], "no hash", "%%%%", first + "0"):
            with pytest.raises(StoreError, match="names no structure"):
                store.find_structure(wrong)
        assert store.load_structure(second[:12]) == sample_structure(pair[1])
        absent = "0000" if not prefix.startswith("0000") else "1111"
        with pytest.raises(StoreError, match="no successful trial"):
            store.find_structure(absent + "0" * 20)
