"""Preflight: everything that can be known to be wrong before a weight is loaded, reported together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsearch.config.reader import read_study, validate_study
from sparsearch.config.registry import STRATEGIES
from sparsearch.config.study import StudyConfig
from sparsearch.config.tasks.imports import find_function, is_import_path
from sparsearch.errors import ConfigError, InfeasibleError, SparsearchError
from sparsearch.search.selection.caps import Caps, smallest
from sparsearch.search.selection.selector import Selector
from sparsearch.search.strategies.registry import find_strategy
from sparsearch.spaces.backbone.inputs.readers import READERS
from sparsearch.spaces.backbone.loading import (
    check_head,
    load_config,
    locate,
    skeleton,
)
from sparsearch.spaces.backbone.quantised.settings import check_installed
from sparsearch.spaces.budget import Budget, resolve_all
from sparsearch.spaces.candidate import Candidate
from sparsearch.spaces.coverage import Unreached, describe_unreached, find_unreached
from sparsearch.spaces.space import Space
from sparsearch.workers.preflight_quantised import quantised_problems
from sparsearch.workers.preflight_summary import Feasibility, PreflightSummary
from sparsearch.workers.resources import worker_problems
from sparsearch.workers.trials.session import space_of

__all__ = ["Preflight", "check_study"]


@dataclass(frozen=True)
class Preflight:
    """A study that may run.

    Attributes:
        config: The study.
        space: On the model's skeleton.
        budgets: Resolved, in order.
        feasibility: What each budget buys.
        smallest: The smallest candidate that could be attached, if the space has any.
        unreached: Linears, norms and experts of the backbone that no position reaches.
    """

    config: StudyConfig
    space: Space
    budgets: tuple[Budget, ...]
    feasibility: tuple[Feasibility, ...]
    smallest: Candidate | None
    unreached: tuple[Unreached, ...] = ()

    @property
    def summary(self) -> PreflightSummary:
        """Names and numbers of it."""
        least, space = self.smallest, self.space
        return PreflightSummary(
            self.config.name,
            space.backbone_params,
            len(space.candidates),
            space.trainable_params,
            f"{least.kind} at {least.position}, {least.params:,} parameters" if least else "",
            self.feasibility,
            describe_unreached(self.unreached, space.backbone_params),
            space.guessed,
        )


def check_study(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
) -> Preflight:
    """Validate a study as a whole, against its model's architecture too; nothing is loaded or written.

    Args:
        source: A study file, its content, or a StudyConfig.
        overrides: Settings that win over the file.

    Raises:
        ConfigError: With every problem found.
        InfeasibleError: If the only problems are budgets that are too small.
    """
    if isinstance(source, StudyConfig) and overrides:
        raise ConfigError(["overrides change a study file; change the StudyConfig itself"])
    if isinstance(source, StudyConfig):
        sections: dict[str, Any] = {n: getattr(source, n) for n in StudyConfig.model_fields}
        sections["study"] = source
        problems: list[str] = []
    else:
        sections, problems = validate_study(*read_study(source, overrides))
    folder = sections["study"].folder if "study" in sections else _folder(source)
    problems += _data_problems(sections, folder)
    problems += _import_problems(sections)
    if "workers" in sections:
        problems += worker_problems(sections["workers"])
    tokens = sections["task"].max_length if "task" in sections else 128
    space: Space | None = None
    unreached: tuple[Unreached, ...] = ()
    hint = ""
    if "model" in sections and "space" in sections:
        try:
            model = sections["model"]
            path = locate(model.location, folder)
            built = (sections["task"].facts.auto_model,) if "task" in sections else ()
            bare = skeleton(path, model.revision, *built)
            space = space_of(bare, sections["space"])
            if "task" in sections and sections["task"].facts.has_head:
                check_head(path, bare)
            unreached = find_unreached(bare)
            settings = load_config(path, model.revision)
            reader = READERS[sections["task"].facts.reads if "task" in sections else "text"]
            processor = reader.load(path, model.revision)
            reader.check(path, settings, processor)
            most = reader.most_tokens(settings, processor, lambda: bare)
            tokens = reader.row_tokens(tokens, processor, most)
            if model.quantise is not None:
                check_installed()
        except ConfigError as error:
            problems += [p if p.startswith("space") else f"space: {p}" for p in error.problems]
        except SparsearchError as error:
            message = error.message
            problems.append(message if message.startswith("model") else f"model.path: {message}")
            hint = error.hint
    if space is not None and "study" in sections:
        problems += _misfits(sections["study"], space)
    budgets: tuple[Budget, ...] = ()
    too_small: list[InfeasibleError] = []
    if space is not None and "budgets" in sections:
        budgets = resolve_all(sections["budgets"], space.backbone_params)
        too_small = [e for b in budgets if (e := _why_not(space, b, tokens)) is not None]
    if problems:
        raise ConfigError([*problems, *(f"budgets: {e.message}" for e in too_small)], hint)
    if too_small:
        raise InfeasibleError("\n".join(e.message for e in too_small), too_small[0].hint)
    assert space is not None
    feasibility = tuple(_feasibility(space, b, tokens) for b in budgets)
    attachable = any(c.role == "attach" for c in space.candidates)
    least = smallest(space) if attachable else None
    return Preflight(sections["study"], space, budgets, feasibility, least, unreached)


def _feasibility(space: Space, budget: Budget, tokens: int) -> Feasibility:
    caps = Caps(space, budget.without("max_inference_flops"), tokens)
    alone = sum(caps.fits([c]) for c in space.candidates if c.role == "attach")
    return Feasibility(budget, alone, len(_most(space, budget, tokens)))


def _folder(source: str | Path | Mapping[str, Any] | StudyConfig) -> Path:
    return Path(source).resolve().parent if isinstance(source, str | Path) else Path.cwd()


def _data_problems(sections: Mapping[str, Any], folder: Path) -> list[str]:
    """Local data files that do not exist."""
    entries = sections["task"].data.files if "task" in sections else {}
    return [
        f"task.data.data_files.{split}: no such file: {file} (relative to {folder})"
        + ("; patterns are not expanded: list the files" if "*" in file or "?" in file else "")
        for split, files in entries.items()
        for file in files
        if not (folder / file).is_file()
    ]


def _import_problems(sections: Mapping[str, Any]) -> list[str]:
    """Functions of the user's own that cannot be imported."""
    if "task" not in sections:
        return []
    task, problems = sections["task"], []
    for key, path in (("metric", task.metric), ("data.callable", task.data.callable)):
        try:
            if is_import_path(path):
                find_function(path)
        except ConfigError as error:
            problems += [f"task.{key}: {problem}; {error.hint}" for problem in error.problems]
    return problems


def _misfits(config: StudyConfig, space: Space) -> list[str]:
    """What strategies and training cannot do with the space and the budgets."""
    strategies = dict.fromkeys(
        [config.search.strategy, *config.baselines, *config.proposed_strategies]
    )
    chosen = [find_strategy(s) for s in strategies]
    problems = [problem for s in chosen for problem in s.check(space)]
    problems += [problem for s in chosen for problem in s.check_study(config, space)]
    problems += quantised_problems(config, space)
    if not config.train.backbone:
        return problems
    others = sorted({c.kind for c in space.candidates if not c.which})
    if others:
        problems.append(
            "train.backbone fine-tunes what cut heads and neurons leave of the backbone; the space also has "
            f"{', '.join(others)}: leave train.backbone out, or these kinds"
        )
    if attaching := [s for s in strategies if STRATEGIES.family(s) == "uniform"]:
        problems.append(f"train.backbone goes with cuts alone: leave {', '.join(attaching)} out")
    limits = {name for b in config.budgets for name, v in b.model_dump().items() if v is not None}
    limiting = {"max_inference_flops"}
    if config.train.backbone_rank is not None:
        limiting.add("max_trainable_params")
    if above := sorted(limits - limiting):
        problems.append(
            f"budgets: with train.backbone all that is left of the backbone is stored, and trains unless "
            f"train.backbone_rank is set: {', '.join(above)} cannot limit that; leave it out"
        )
    return problems


def _most(space: Space, budget: Budget, tokens: int) -> list[int]:
    """What is attached when the smallest candidates are taken first."""
    scores = [-float(c.params) for c in space.candidates]
    return [
        i
        for i in Selector(space, budget, "greedy", tokens).indices(scores)
        if space.candidates[i].role == "attach"
    ]


def _why_not(space: Space, budget: Budget, tokens: int) -> InfeasibleError | None:
    """Why no structure meets a budget, if none does."""
    try:
        _most(space, budget, tokens)
    except InfeasibleError as error:
        return error
    return None
