"""What travels with every export: the task's settings in a transformers config, and the tokenizer or image processor.

``task_config.json`` is the backbone's config with the study's own labels, problem type and padding token. An
earlier task may have left its own in the backbone's folder.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsearch.config.tasks.types import facts_of
from sparsearch.spaces.backbone.inputs.readers import READERS
from sparsearch.spaces.structure import Structure

__all__ = [
    "TASK_CONFIG",
    "keywords_of",
    "processor_of",
    "set_task",
    "task_keywords",
    "write_task",
]

TASK_CONFIG = "task_config.json"
"""File of a transformers config; ``AutoConfig.from_pretrained`` reads it by its path."""

_OF_AN_EARLIER_TASK = ("task_specific_params", "finetuning_task")


def set_task(config: Any, task_type: str, classes: Sequence[str], processor: Any) -> None:
    """Write a task into a transformers config, in the place of an earlier one.

    Args:
        config: Of the backbone; it is changed.
        task_type: One of ``TASK_TYPES``.
        classes: Names of the classes; none where the task has none.
        processor: The tokenizer, or image processor, that the model was trained with; None where the backbone has none.
    """
    facts = facts_of(task_type)
    if facts.has_head:
        names = list(classes) or [f"LABEL_{i}" for i in range(facts.outputs(classes))]
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}
    config.problem_type = facts.problem_type
    READERS[facts.reads].configure(config, processor)
    for name in _OF_AN_EARLIER_TASK:
        if hasattr(config, name):
            setattr(config, name, None)


def processor_of(structure: Structure) -> Any:
    """The backbone's tokenizer or image processor; None where it has none, or none that loads."""
    reader = READERS[facts_of(structure.task_type).reads]
    return reader.find(structure.backbone.path, structure.backbone.revision)


def write_task(config: Any, trained_for: str, processor: Any, folder: Path) -> tuple[str, ...]:
    """Write ``task_config.json`` and the tokenizer, or image processor, into a folder.

    Args:
        config: With its task, see ``set_task``.
        trained_for: The type of that task.
        processor: None where the backbone has none.
        folder: Exists.

    Returns:
        Notes for the user.
    """
    written = copy.deepcopy(config)
    vars(written).pop(
        "quantization_config", None
    )  # in a file it says how the weights beside it are
    written.to_json_file(folder / TASK_CONFIG)
    if processor is not None:
        processor.save_pretrained(folder)
    return READERS[facts_of(trained_for).reads].notes(config, processor)


def task_keywords(folder: Path, task_type: str) -> dict[str, Any]:
    """A folder's ``task_config.json`` as keywords, for a ``from_pretrained`` that takes no config."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder / TASK_CONFIG)
    names = keywords_of(task_type)
    settings = {name: getattr(config, name) for name in names}
    return settings | {"dtype": "float32", "ignore_mismatched_sizes": True}


def keywords_of(task_type: str) -> tuple[str, ...]:
    """Settings of a config that a task of this type decides."""
    return ("id2label", "label2id", "problem_type", *READERS[facts_of(task_type).reads].settings)
