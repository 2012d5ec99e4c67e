"""The Trainer's training rows as a task: collated once, some held out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsearch.config.tasks.types import TASK_TYPES, facts_of
from sparsearch.errors import ConfigError, DataError
from sparsearch.search.tasks.task import Split, Task, subset
from sparsearch.search.tasks.types.registry import find_task_type
from sparsearch.search.training.seeds import derive

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sparsearch.search.tasks.types.base import TaskType

__all__ = ["check_task_type", "task_of_rows"]

_HELD_OUT = 8
"""One row of so many judges."""

_MADE_FROM_LABELS = "decoder_input_ids"
"""Models make them themselves, as collators do that are given the model."""


def check_task_type(task_type: str, model: PreTrainedModel | None = None) -> None:
    """Whether there is a task type of a name, and whether a model has its head.

    Raises:
        ConfigError: If not.
    """
    import transformers

    if task_type not in TASK_TYPES:
        raise ConfigError([f"{task_type!r} is no task type; there are: {', '.join(TASK_TYPES)}"])
    auto = facts_of(task_type).auto_model
    if model is None or type(model) in getattr(transformers, auto)._model_mapping.values():
        return
    raise ConfigError(
        [f"a {type(model).__name__} is no model for {task_type!r}"],
        f"load it with {auto}, or name the task type of the model",
    )


def task_of_rows(
    task_type: str,
    model: PreTrainedModel,
    rows: Sequence[Mapping[str, Any]],
    collate: Callable[[list[Any]], Mapping[str, Tensor]],
    seed: int,
) -> Task:
    """A task whose splits are rows that the Trainer would train on; an eighth of them judges.

    Args:
        task_type: One of ``TASK_TYPES``.
        model: Names its labels and its classes.
        rows: As its data set gives them.
        collate: The Trainer's data collator: rows -> tensors, padded to one length.
        seed: Of which rows judge.

    Raises:
        DataError: If there are too few rows, or they have no labels, or several of them become one.
    """
    if len(rows) < _HELD_OUT:
        raise DataError(f"{len(rows)} training rows are too few to search with")
    whole = _split(find_task_type(task_type), model, dict(collate(list(rows))), len(rows))
    generator = torch.Generator().manual_seed(derive(seed, "held out"))
    order = torch.randperm(len(rows), generator=generator)
    held_out, learnt = order[: len(rows) // _HELD_OUT], order[len(rows) // _HELD_OUT :]
    facts = facts_of(task_type)
    classes = tuple(model.config.id2label.values()) if facts.has_head else ()
    judged = subset(whole, held_out)
    return Task(
        "training rows",
        task_type,
        facts.metrics[0],
        classes,
        int(whole.lengths.max()),
        train=subset(whole, learnt),
        validation=judged,
        test=judged,
    )


def _split(
    behaviour: TaskType, model: PreTrainedModel, batch: dict[str, Tensor], rows: int
) -> Split:
    """A collated batch, (rows, tokens) or (rows, choices, tokens), as a split; rows padded at the left stay whole."""
    from transformers.utils import find_labels

    names = [name for name in find_labels(type(model)) if name in batch]
    if not names or "input_ids" not in batch:
        raise DataError(
            f"the data collator gives {', '.join(batch)}; a search needs input_ids and labels",
            f"rows of a {type(model).__name__} have {', '.join(find_labels(type(model)))}",
        )
    parts = [batch.pop(name).cpu() for name in names]
    ids = batch["input_ids"].cpu()
    if len(ids) != rows:
        raise DataError(
            f"the data collator makes {len(ids)} rows of {rows}: it packs or flattens them",
            "pad rows in place of packing them (packing=False, padding_free=False)",
        )
    batch.pop(_MADE_FROM_LABELS, None)
    inputs = {n: t.cpu() for n, t in batch.items() if isinstance(t, Tensor) and t.dim() > 1}
    for name, tensor in inputs.items():
        if tensor.shape != ids.shape:
            raise DataError(
                f"the data collator gives {name} of shape {tuple(tensor.shape)} beside input_ids of {tuple(ids.shape)}",
                "a search reads what has one value for each token; leave the rest to the training",
            )
    mask = inputs.setdefault("attention_mask", torch.ones_like(ids)).bool()
    at_right = bool((mask[..., :-1] >= mask[..., 1:]).all())
    longest = mask.sum(-1).view(rows, -1).amax(1)
    lengths = longest if at_right else torch.full((rows,), ids.shape[-1])
    labels = parts[0] if len(parts) == 1 else torch.stack(parts, dim=-1)
    return Split(inputs, lengths, behaviour.collated_labels(labels), behaviour.labels_tokens)
