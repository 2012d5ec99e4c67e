"""The summary of a study, and pictures that need no network."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest

from sparsearch.cli.tables import settings_text
from sparsearch.errors import ExportError
from sparsearch.results import Best, StudyRecord, TrialRecord
from sparsearch.results.answers import Placement, Placements
from sparsearch.results.report.grid import candidate_name, place_of, pruned_fraction_of
from sparsearch.results.report.pareto_figure import pareto_figure, write_pareto_plot
from sparsearch.results.report.structure_map import (
    PlacementMap,
    frequency_map,
    structure_map,
    write_structure_plot,
)
from sparsearch.results.report.summary import StudySummary, budget_name, summarise
from sparsearch.spaces.candidate import Candidate
from sparsearch.spaces.kinds import make_kind
from sparsearch.testing.store_conformance import sample_structure

CONFIG = json.dumps({"search": {"strategy": "s3pet"}})
STUDY = StudyRecord(
    *("study", "a<b", "trec", "accuracy", 1_000_000, CONFIG),
    *(datetime(2026, 1, 1, tzinfo=UTC), None, 4, 4, 0.9),
)
BUDGET = {"max_trainable_params": 100, "text": "0.01%"}


def trial(
    number: int, strategy: str, seed: int, score: float | None, **other: object
) -> TrialRecord:
    record = TrialRecord(
        *("study", number, strategy, seed, BUDGET, "ok", "", score),
        *(None if score is None else score - 0.1, f"{number:064x}", 90, 7, 1.0, 1.5, 2**30, 1),
    )
    return replace(record, **other)  # type: ignore[arg-type]


def reference(number: int, strategy: str, score: float) -> TrialRecord:
    params = 0 if strategy == "head" else 1_000_000
    return trial(number, strategy, 0, score, budget=None, structure=None, trainable_params=params)


def verdict(ours: list[float], theirs: list[float], rival: str = "random") -> str:
    return summary_of(s3pet=ours, **{rival: theirs}).budgets[0].verdict


def summary_of(**scores: list[float]) -> StudySummary:
    """Strategies and their scores at one budget, one per seed from 0."""
    rows = [(s, seed, x) for s, listed in scores.items() for seed, x in enumerate(listed)]
    return summarise(STUDY, [trial(n, *row) for n, row in enumerate(rows)])


def best(*candidates: Candidate) -> Best:
    structure = sample_structure()
    if candidates:
        kinds = tuple(make_kind(name, {}) for name in dict.fromkeys(c.kind for c in candidates))
        structure = replace(structure, candidates=candidates, kinds=kinds)
    return Best(
        *("study", 3, "s3pet", "accuracy", 0.9, 0.8, structure, structure.trainable_params, 7),
        *(1.0, BUDGET, 0, "a<b", "trec", structure.stored_bytes),
    )


def candidate(position: str, kind: str = "bitfit", size: int = 1, params: int = 384) -> Candidate:
    return Candidate(position, kind, size, params, 0, 0)


# Summary


def test_mean_and_spread_over_the_seeds_that_succeeded() -> None:
    trials = [
        trial(0, "s3pet", 0, 0.80),
        trial(1, "s3pet", 1, 0.90),
        trial(2, "s3pet", 2, None, state="failed", message="boom", structure=None),
        trial(3, "random", 0, 0.70, trainable_params=80),
        trial(4, "random", 1, None, state="queued", structure=None),
        reference(5, "head", 0.4),
        reference(6, "full", 0.95),
    ]
    summary = summarise(STUDY, trials)
    (budget,) = summary.budgets
    first, second = budget.strategies
    assert (first.strategy, first.validation.n) == ("s3pet", 2)
    assert first.validation.mean == pytest.approx(0.85)
    assert first.validation.std == pytest.approx(0.0707, abs=1e-4)
    assert first.test is not None and first.test.mean == pytest.approx(0.75)
    assert (second.validation.std, second.trainable_params) == (None, 80)
    assert budget.best is not None and budget.best.number == 1
    assert [r.strategy for r in summary.references] == ["full", "head"]
    assert [t.number for t in summary.unsuccessful] == [2]
    json.dumps(summary.as_dict())


def test_budgets_keep_the_studys_order() -> None:
    other = {"max_trainable_params": 10, "text": "10 params"}
    trials = [trial(0, "s3pet", 0, 0.8), trial(1, "s3pet", 0, 0.9, budget=other)]
    assert [b.name for b in summarise(STUDY, trials).budgets] == ["0.01%", "10 params"]


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ([0.8, 0.8], [0.9, 0.9], "s3pet 0.8000 does not beat random 0.9000 at 0.01%: use random"),
        ([0.9, 0.9], [0.9, 0.9], "s3pet 0.9000 does not beat random 0.9000"),
        ([0.9, 0.9], [0.8, 0.8], "s3pet 0.9000 beats random 0.8000"),
        ([0.9, 0.9], [0.8, 0.8], "by 0.1000 (mean validation over 2 seeds)"),
        ([0.9], [0.8], "one seed decides nothing"),
        ([0.8], [0.9], "one seed decides nothing"),
        ([0.9, 0.9], [0.8], "2 and 1 seeds; one seed decides nothing"),
        ([0.9, 0.8], [0.84, 0.84], "(mean validation over 2 seeds); the interval includes zero"),
        ([0.9, 0.8], [0.84, 0.84], "random is as good for all that these seeds show, and needs"),
        ([0.9, 0.9], [0.8, 0.82], "the interval includes zero"),
        ([0.9, 0.5, 0.9, 0.9], [0.8, 0.4, 0.81, 0.8], "by 0.0975 (mean validation over 4 seeds)"),
        ([0.9, 0.6, 0.7], [0.8, 0.65], "by 0.0083 (mean validation over 3 and 2 seeds); the int"),
        ([0.7, 0.6, 0.9], [0.7, 0.65], "over the 2 seeds that both have it is no better: use ran"),
        ([0.90001, 0.90001], [0.9, 0.9], "s3pet 0.90001 beats random 0.90000"),
        ([], [0.9], ""),
        ([0.9], [], "nothing to compare s3pet with at 0.01%"),
    ],
)
def test_verdict(ours: list[float], theirs: list[float], said: str) -> None:
    found = verdict(ours, theirs)
    assert said in found
    assert bool(said) == bool(found)


@pytest.mark.parametrize(
    ("ours", "theirs"), [([0.9, 0.8], [0.8, 0.7]), ([0.7, 0.7], [0.9, 0.8]), ([0.9], [0.8])]
)
def test_doubt_is_for_intervals_around_zero(ours: list[float], theirs: list[float]) -> None:
    assert "interval" not in verdict(ours, theirs)


@pytest.mark.parametrize(
    ("rival", "ending"),
    [
        ("probe", "probe is as good for all that these seeds show, and costs seconds"),
        ("lora-qv", "lora-qv is as good for all that these seeds show, and needs no search"),
    ],
)
def test_verdict_says_what_the_rival_costs(rival: str, ending: str) -> None:
    assert verdict([0.9, 0.8], [0.84, 0.84], rival).endswith(
        f"the interval includes zero: {ending}"
    )


@pytest.mark.parametrize(
    ("ours", "head", "said"),
    [
        (
            [0.80, 0.80],
            [0.80, 0.80],
            "; training the head alone (0.8000, 0 parameters) is as good",
        ),
        ([0.80, 0.80], [0.90], "; training the head alone (0.9000, 0 parameters) is as good"),
        ([0.80, 0.90], [0.82, 0.84], "is as good for all that these seeds show"),
        ([0.80, 0.90], [0.70, 0.80], ""),
        ([0.80], [0.70], ""),
    ],
)
def test_verdict_tells_of_a_head_that_is_as_good(
    ours: list[float], head: list[float], said: str
) -> None:
    trials = [trial(n, "s3pet", n, score) for n, score in enumerate(ours)]
    trials += [replace(reference(n, "head", score), seed=n) for n, score in enumerate(head)]
    (budget,) = summarise(STUDY, trials).budgets
    assert budget.verdict.endswith(said)
    assert ("head alone" in budget.verdict) == bool(said)


def test_a_language_model_has_no_head_to_train() -> None:
    study = replace(STUDY, config=json.dumps({"task": {"type": "causal-lm"}}))
    (budget,) = summarise(study, [trial(0, "s3pet", 0, -1.5), reference(1, "head", -1.4)]).budgets
    assert budget.verdict.endswith("; the model as it is (-1.4000, 0 parameters) is as good")


def test_verdict_without_a_seed_in_common() -> None:
    (budget,) = summarise(STUDY, [trial(0, "s3pet", 0, 0.9), trial(1, "random", 1, 0.8)]).budgets
    assert budget.comparisons == ()
    assert budget.verdict.endswith("(no seed in common: add seeds)")


def test_findings_are_a_line_for_each_family_and_the_verdict() -> None:
    summary = summary_of(s3pet=[0.9, 0.8], random=[0.8, 0.7], lora=[0.85, 0.8], bitfit=[0.1, 0.1])
    (budget,) = summary.budgets
    *lines, last, cheapest = summary.findings(budget)
    assert (cheapest,) == budget.recommended
    assert lines[0].startswith("s3pet against random at 0.01%: +0.1000 (95% interval ")
    assert lines[1].startswith("s3pet against uniform (lora) at 0.01%: +0.0250 (95% interval -")
    assert last == budget.verdict and "the interval includes zero: lora is" in last
    assert summary.as_dict()["budgets"][0]["comparisons"][1]["rival"] == "lora"


def test_verdict_where_every_search_failed() -> None:
    trials = [trial(0, "s3pet", 0, None, state="oom"), trial(1, "random", 0, 0.5)]
    (budget,) = summarise(STUDY, trials).budgets
    assert budget.verdict == "s3pet has no successful trial at 0.01%"


def test_study_without_trials_or_settings() -> None:
    summary = summarise(replace(STUDY, config="{}"), [])
    assert (summary.budgets, summary.references, summary.searched) == ((), (), "s3pet")


def test_budget_name() -> None:
    assert budget_name(BUDGET) == "0.01%"
    assert budget_name({"max_bytes": 4096}) == "max_bytes 4096"
    assert budget_name(None) == "none"


# Places


def test_places() -> None:
    cross = place_of("decoder.layers.11.cross.v")
    assert (cross.stack, cross.row, cross.column) == ("decoder", "layer 11", "cross.v")
    outside = {name: place_of(name).row for name in ("embeddings.norm", "norm", "encoder.norm")}
    assert outside == {"embeddings.norm": "embeddings", "norm": "final", "encoder.norm": "final"}
    assert place_of("encoder.norm").stack == "encoder"


def test_candidate_name() -> None:
    assert candidate_name(candidate("x", "lora", 2)) == "lora r2"
    assert candidate_name(candidate("x", "bitfit")) == "bitfit"
    assert candidate_name(candidate("x", "prefix", 8)) == "prefix 8"
    mask = replace(candidate("x", "weight_mask", 11), pruned_weights=11)
    assert candidate_name(mask, pruned_fraction_of(mask, best(mask).structure)) == "55% pruned"


# Pictures


def cell(found: PlacementMap, row: str, column: str, stack: str = "") -> list[str]:
    return [mark.label for mark in found.cells[stack, row, column]]


def test_map_of_a_structure_shows_kinds_sizes_and_empty_cells() -> None:
    positions = [f"layers.{i}.attn.{p}" for i in range(3) for p in "qkvo"]
    chosen = (
        candidate("layers.1.attn.v", "lora", 2, 1536),
        candidate("layers.1.attn.v"),
        candidate("embeddings.norm", "lnfit"),
    )
    found = structure_map(best(*chosen).structure, [*positions, "embeddings.norm"])
    assert [row.name for row in found.rows] == ["embeddings", "layer 0", "layer 1", "layer 2"]
    assert found.columns == ("attn.q", "attn.k", "attn.v", "attn.o", "norm")
    assert cell(found, "layer 1", "attn.v") == ["lora r2", "bitfit"]
    assert cell(found, "layer 0", "attn.q") == []
    assert ("", "embeddings", "attn.q") not in found.cells, "the backbone has no such place"
    lora, bitfit = found.cells["", "layer 1", "attn.v"]
    assert (lora.share, bitfit.share) == (1.0, 0.25), "by parameters: 1,536 and 384"
    assert (lora.side, bitfit.side) == (16.0, 8.0), "areas, not sides"
    assert "1,536 parameters" in lora.note
    assert found.rows[2].height > found.rows[1].height, "two kinds need two lines"
    assert [mark.kind for mark in found.legend] == ["lora", "bitfit", "lnfit"]
    assert len({mark.color for mark in found.legend}) == 3


def test_squares_of_what_is_cut_or_masked_say_how_much_of_it() -> None:
    mask = replace(candidate("layers.0.attn.q", "weight_mask", 11, 768), pruned_weights=11)
    heads = replace(candidate("layers.1.attn.heads", "heads", 7, 0), which=tuple(range(7)))
    fewer = replace(candidate("layers.2.attn.heads", "heads", 2, 0), which=(0, 1))
    chosen = (candidate("layers.0.attn.q", "lora", 2), mask, heads, fewer)
    found = structure_map(best(*chosen).structure)
    assert cell(found, "layer 0", "attn.q") == ["lora r2", "55% pruned"]
    assert found.cells["", "layer 0", "attn.q"][1].share == 0.55
    assert cell(found, "layer 1", "attn.heads") == ["7 heads cut"]
    shares = [found.cells["", f"layer {i}", "attn.heads"][0].share for i in (1, 2)]
    assert shares == [1.0, 2 / 7]


def test_map_without_the_backbone_spans_what_is_used() -> None:
    chosen = (candidate("layers.1.attn.q"), candidate("layers.3.ffn.up"))
    found = structure_map(best(*chosen).structure)
    assert [row.name for row in found.rows] == [f"layer {i}" for i in range(4)]
    assert found.columns == ("attn.q", "ffn.up")


def test_encoder_and_decoder_are_groups_of_rows() -> None:
    chosen = (
        candidate("encoder.layers.0.attn.q"),
        candidate("decoder.layers.1.cross.norm", "lnfit"),
        candidate("decoder.norm", "lnfit"),
    )
    found = structure_map(best(*chosen).structure)
    assert [(row.stack, row.name) for row in found.rows] == [
        ("encoder", "layer 0"),
        *(("decoder", name) for name in ("layer 0", "layer 1", "final")),
    ]
    tops = [(row.top, row.height) for row in found.rows]
    assert all(top + height == below for (top, height), (below, _) in pairwise(tops))


def test_a_structure_without_candidates_has_an_empty_map() -> None:
    found = structure_map(replace(best().structure, candidates=()))
    assert (found.rows, found.columns, found.legend) == ((), (), ())
    assert found.size[1] > 0


def test_frequencies_are_shares_of_structures() -> None:
    counts = (
        Placement("layers.0.attn.q", "lora", 3, 1, 4),
        Placement("layers.0.attn.q", "bitfit", 1, 1, 1),
    )
    found = frequency_map(Placements(4, counts))
    assert cell(found, "layer 0", "attn.q") == ["lora 75%", "bitfit 25%"]
    lora, bitfit = found.cells["", "layer 0", "attn.q"]
    assert (lora.share, bitfit.share) == (0.75, 0.25)
    assert lora.note.endswith("lora in 3 of 4 structures, size 1 to 4")
    assert bitfit.note.endswith("size 1")


def test_pareto_has_a_trace_per_strategy_and_lines_for_references() -> None:
    trials = [
        trial(0, "s3pet", 0, 0.8),
        trial(1, "random", 0, 0.7, test_score=None),
        trial(2, "random", 1, None, state="failed"),
        reference(3, "head", 0.65),
        reference(4, "full", 0.95),
    ]
    figure = pareto_figure(STUDY, trials, [best()])
    assert [t.name for t in figure.data] == ["front", "s3pet", "random"]
    assert len(figure.data[2].x) == 1
    assert figure.layout.xaxis.type == "log"
    assert [shape.y0 for shape in figure.layout.shapes] == [0.65, 0.95]


def test_reference_far_off_is_a_note_that_squeezes_nothing() -> None:
    trials = [trial(0, "s3pet", 0, 0.8), trial(1, "s3pet", 1, 0.82), reference(2, "head", 0.1)]
    figure = pareto_figure(STUDY, trials, [best()])
    assert not figure.layout.shapes
    assert figure.layout.annotations[0].text == "head 0.1000 \u2193"
    assert figure.layout.yaxis.range[0] > 0.7


def test_files_need_no_network(tmp_path: Path) -> None:
    write_structure_plot(best(), tmp_path / "structure.html")
    write_pareto_plot(STUDY, [trial(0, "s3pet", 0, 0.8)], [best()], tmp_path / "pareto.html")
    for name in ("structure.html", "pareto.html"):
        page = (tmp_path / name).read_text(encoding="utf-8")
        assert not re.search(r"<(script|link|img)[^>]+(src|href)\s*=\s*[\"']?(https?:)?//", page)
        assert ("Plotly.newPlot" in page) == (name == "pareto.html")
        assert ("<svg" in page) == (name == "structure.html") and "<title>sparsearch: " in page
        assert "a<b" not in page and len(page) < 3_000_000


def test_page_says_what_the_seeds_show(tmp_path: Path) -> None:
    budget = {"max_trainable_params": 100, "text": "a<b"}
    trials = [
        trial(0, "s3pet", 0, 0.8, budget=budget),
        trial(1, "random", 0, 0.7, budget=budget),
    ]
    write_pareto_plot(STUDY, trials, [best()], tmp_path / "pareto.html")
    page = (tmp_path / "pareto.html").read_text(encoding="utf-8")
    below = page.partition("paired over seeds")[2]
    assert "<li>s3pet against random at a&lt;b: +0.1000 (one seed decides nothing" in below
    assert "a<b" not in below.partition("<script")[0] and below.rstrip().endswith("</html>")


def test_nothing_to_draw_is_no_error(tmp_path: Path) -> None:
    write_pareto_plot(STUDY, [], [], tmp_path / "pareto.html")
    assert (tmp_path / "pareto.html").is_file()


@pytest.mark.parametrize("path", ["missing/x.html", "."])
def test_unwritable_path_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ExportError, match="cannot write") as caught:
        write_structure_plot(best(), tmp_path / path)
    assert caught.value.hint


def test_an_outer_study_lists_its_budgets_and_a_front_of_all_its_trials():
    config = {"outer": {}, "budgets": [{"max_trainable_params": "0.01%"}], "baselines": ["random"]}
    study = replace(STUDY, config=json.dumps(config))
    proposed = {"max_trainable_params": 70, "text": "70 params"}
    settings = {"search.alpha_lr": 0.123456, "search.transfer_from": "f00d"}
    trials = [
        trial(0, "s3pet", 0, 0.8),
        trial(1, "random", 0, 0.7),
        trial(2, "s3pet", 0, 0.75, budget=proposed, trainable_params=64, settings=settings),
        trial(3, "s3pet", 0, 0.6, budget=proposed, trainable_params=70),
        trial(4, "s3pet", 0, None, budget=proposed, state="cancelled", structure=None),
        trial(5, "s3pet", 0, 0.1, settings=settings),
    ]
    summary = summarise(study, trials)
    assert [(b.name, b.strategies[0].validation.n) for b in summary.budgets] == [("0.01%", 1)]
    assert [t.number for t in summary.front] == [2, 0]
    assert summary.unsuccessful == (), "what was stopped early did not fail"
    assert summarise(STUDY, trials).front == ()
    assert settings_text(settings) == "alpha_lr 0.123"
