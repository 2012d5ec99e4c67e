"""The trials of a study, and what makes two runs one study."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sparsearch.config.registry import STRATEGIES
from sparsearch.config.study import StudyConfig
from sparsearch.results.records import StudySpec, Trial, TrialRecord
from sparsearch.results.store.writing.growth import key_of
from sparsearch.search.tasks.data_rows import image_files
from sparsearch.search.tasks.own_data import own_digests
from sparsearch.spaces.backbone.inputs.readers import READERS
from sparsearch.spaces.backbone.loading import locate
from sparsearch.spaces.budget import Budget

__all__ = [
    "asks_for_trial",
    "plan",
    "reader_content",
    "study_identity",
]


def plan(config: StudyConfig, budgets: Sequence[Budget]) -> tuple[Trial, ...]:
    """Every trial of a study in order: seed by seed; the references, then each budget's strategies."""
    strategies = list(dict.fromkeys([config.search.strategy, *config.baselines]))
    references = [s for s in strategies if STRATEGIES.family(s) == "reference"]
    cells: list[tuple[str, Budget | None, int]] = []
    for seed in config.seeds:
        cells += [(s, None, seed) for s in references]
        cells += [(s, b, seed) for b in budgets for s in strategies if s not in references]
    return tuple(Trial(number, *cell) for number, cell in enumerate(cells))


def asks_for_trial(spec: StudySpec, config: StudyConfig) -> Callable[[Trial | TrialRecord], bool]:
    """Whether a trial of a stored study is one that is planned now; an outer loop's proposals always are."""
    planned = {key_of(trial) for trial in spec.trials}
    return lambda trial: config.outer is not None or key_of(trial) in planned


def study_identity(config: StudyConfig) -> dict[str, Any]:
    """What two runs of one study must agree on: its settings and the content of its local data files.

    A setting left out equals its default, now and in later versions. Who runs it, how many trials are proposed
    and whether strategies race may change.
    """
    settings = config.model_dump(
        mode="json",
        exclude={"workers": True, "race": True, "outer": {"trials"}},
        exclude_defaults=True,
    )
    content = {} if config.task.data.callable is None else own_digests(config.task.data.callable)
    for name, files in _local_data(config).items():
        digests = [_sha256(file) for file in files]
        joined = "\n".join(digests).encode()
        content[name] = digests[0] if len(digests) == 1 else hashlib.sha256(joined).hexdigest()
    return settings | ({"data_sha256": content} if content else {})


def reader_content(config: StudyConfig) -> dict[str, str]:
    """SHA-256 of the files by which a local model's inputs are made: two runs of one study must agree on it too.

    Scores of two studies compare whatever it is. Nothing is said of a model of the hub, or in a GGUF file.
    """
    folder = Path(locate(config.model.location, config.folder))
    names = READERS[config.task.facts.reads].content
    digests = [f"{name} {_sha256(folder / name)}" for name in names if (folder / name).is_file()]
    joined = "\n".join(digests).encode()
    return {"reader_sha256": hashlib.sha256(joined).hexdigest()} if digests else {}


def _local_data(config: StudyConfig) -> dict[str, list[Path]]:
    """Local data files, and the images that they name, by their splits; of a folder all that is in it by its names."""
    data, folder = config.task.data, Path(config.task.data.path)
    if data.callable is not None:
        return {}
    if data.data_files is not None:
        images = image_files(data, config.folder, config.task.images)
        return {
            s: [*(config.folder / name for name in names), *images.get(s, ())]
            for s, names in data.files.items()
        }
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): [file] for file in files}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
