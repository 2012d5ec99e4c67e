"""What travels with every export: the task's settings in a transformers config, and the tokenizer.

``task_config.json`` is the backbone's config with the study's own labels, problem type and padding token. An
earlier task may have left its own in the backbone's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsearch.config.tasks.types import facts_of
from sparsearch.errors import BackboneError
from sparsearch.spaces.backbone.loading import load_tokenizer, locate
from sparsearch.spaces.backbone.tokens import pads_as_configured
from sparsearch.spaces.structure import Structure

__all__ = [
    "TASK_CONFIG",
    "notes_on_padding",
    "set_task",
    "task_keywords",
    "tokenizer_of",
    "write_task",
]

TASK_CONFIG = "task_config.json"
"""File of a transformers config; ``AutoConfig.from_pretrained`` reads it by its path."""

_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.json",
)
"""One of these is in every folder that has a tokenizer; without, transformers makes an empty one up."""
_OF_AN_EARLIER_TASK = ("task_specific_params", "finetuning_task")


def set_task(config: Any, task_type: str, classes: Sequence[str], tokenizer: Any) -> None:
    """Write a task into a transformers config, in the place of an earlier one.

    Args:
        config: Of the backbone; it is changed.
        task_type: One of ``TASK_TYPES``.
        classes: Names of the classes; none where the task has none.
        tokenizer: Whose padding token the model was trained with; None where the backbone has none. It does not
            replace one that the model counts its positions from.
    """
    facts = facts_of(task_type)
    if facts.has_head:
        names = list(classes) or [f"LABEL_{i}" for i in range(facts.outputs(classes))]
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}
    config.problem_type = facts.problem_type
    if tokenizer is not None and not pads_as_configured(config):
        config.pad_token_id = tokenizer.pad_token_id
    for name in _OF_AN_EARLIER_TASK:
        if hasattr(config, name):
            setattr(config, name, None)


def tokenizer_of(structure: Structure) -> Any:
    """The backbone's tokenizer; None where it has none, or none that loads."""
    path = locate(structure.backbone.path)
    if Path(path).is_dir() and not any((Path(path) / name).is_file() for name in _TOKENIZERS):
        return None
    try:
        return load_tokenizer(path, structure.backbone.revision)
    except BackboneError:
        return None


def write_task(config: Any, tokenizer: Any, folder: Path) -> tuple[str, ...]:
    """Write ``task_config.json`` and the tokenizer into a folder.

    Args:
        config: With its task, see ``set_task``.
        tokenizer: None where the backbone has none.
        folder: Exists.

    Returns:
        Notes for the user.
    """
    config.to_json_file(folder / TASK_CONFIG)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return notes_on_padding(config, tokenizer)


def notes_on_padding(config: Any, tokenizer: Any) -> tuple[str, ...]:
    """What a user must know to feed batches."""
    notes = []
    if tokenizer is None:
        notes.append("no tokenizer is in it: the backbone's folder has none")
    if getattr(config, "pad_token_id", None) is None:
        notes.append(
            "no padding token is known: set model.config.pad_token_id before a batch of several rows"
        )
    elif tokenizer is not None and tokenizer.pad_token_id != config.pad_token_id:
        notes.append(
            f"pad with token {config.pad_token_id}, from which this model counts its positions: the tokenizer pads "
            f"with {tokenizer.pad_token_id}"
        )
    return tuple(notes)


def task_keywords(folder: Path) -> dict[str, Any]:
    """A folder's ``task_config.json`` as keywords, for a ``from_pretrained`` that takes no config."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder / TASK_CONFIG)
    names = ("id2label", "label2id", "problem_type", "pad_token_id")
    settings = {name: getattr(config, name) for name in names}
    return settings | {"dtype": "float32", "ignore_mismatched_sizes": True}
