"""The frozen prefix: layers below everything that trains run once, not again in every epoch, nor in every trial."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparsearch.search.tasks.task import Split, StoredInputs, Task, batches
from sparsearch.search.training.evaluate import forward
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.backbone.parameters import base_of, layers_of

__all__ = ["StoredPrefix", "Upper", "enter_above", "store_inputs"]

_BATCH = 128
_FLOAT_BYTES = 4


class _Reached(Exception):  # noqa: N818 - a signal, not an error
    """The forward reached the layer whose input is wanted."""


class Upper(nn.Module):
    """A model entered at one of its layers, whose inputs come with the batch.

    The layers below leave the model's list for the length of a forward; embeddings still run, for
    what else they decide (masks, positions), and their output is replaced.

    Args:
        model: A model with one stack of layers.
        layer: Index of the first layer that runs.
    """

    def __init__(self, model: nn.Module, layer: int) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        found = layers_of(model)
        assert found is not None, "the model has no single stack of layers"
        self._owner, self._name, layers = (found[0],), found[1], found[2]
        self._all, self._kept = (layers,), (layers[layer:],)

    def forward(self, hidden: Tensor, **inputs: Tensor) -> Any:
        """The model's output for stored inputs of the layer: (batch, tokens, width)."""
        (owner,), (kept,), (layers,) = self._owner, self._kept, self._all

        def enter(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return (hidden, *args[1:]), {k: v for k, v in kwargs.items() if k != "hidden_states"}

        handle = kept[0].register_forward_pre_hook(enter, with_kwargs=True)
        setattr(owner, self._name, kept)
        try:
            return self.model(**inputs)
        finally:
            setattr(owner, self._name, layers)
            handle.remove()


def first_layer(model: nn.Module) -> int:
    """The lowest layer in which something changes in training; the last one where only the head does. 0: all may."""
    found, attachment = layers_of(model), attachment_of(model)
    if found is None or attachment is None:
        return 0
    lowest = len(found[2]) - 1
    for slot in attachment.slots:
        position = slot.position
        # A head that is cut is as frozen as the rest; masks change even where nothing of them is learnt.
        changes = slot.kind.stage(position) == "mask"
        if not changes and not any(p.requires_grad for p in slot.unit.parameters()):
            continue
        if position.layer is not None:
            lowest = min(lowest, position.layer)
        elif "embeddings" in position.name.split("."):
            lowest = 0
    return lowest


@torch.no_grad()
def store_inputs(model: nn.Module, layer: int, split: Split, precision: str) -> Split:
    """The split with the inputs of a layer for each of its rows, padding left out."""
    found = layers_of(model)
    assert found is not None, "the model has no single stack of layers"
    caught: list[Tensor] = []

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(args[0] if args else kwargs["hidden_states"])
        raise _Reached

    device = next(model.parameters()).device
    starts = torch.zeros(len(split), dtype=torch.long)
    stored, total = torch.empty(0), 0
    # With a cache transformers does not look for packed texts in the positions.
    options = {"use_cache": False} if "position_ids" in split.inputs else {}
    handle = found[2][layer].register_forward_pre_hook(catch, with_kwargs=True)
    try:
        for batch in batches(split, _BATCH, device):
            try:
                forward(model, batch, precision, **options)
            except _Reached:
                hidden = caught.pop()
            lengths = split.lengths[batch["rows"]]
            inside = torch.arange(hidden.shape[1])[None, :] < lengths[:, None]
            if total == 0:
                stored = hidden.new_empty(int(split.lengths.sum()), hidden.shape[2])
            starts[batch["rows"]] = total + lengths.cumsum(0) - lengths
            end = total + int(lengths.sum())
            stored[total:end] = hidden[inside.to(device)]
            total = end
    finally:
        handle.remove()
    return replace(split, stored=StoredInputs(stored, starts))


class StoredPrefix:
    """What was stored last, for the next training above the same layer of the same backbone."""

    def __init__(self) -> None:
        self._kept: tuple[nn.Module, Task, int, str, Task] | None = None

    def clear(self) -> None:
        """Make room."""
        self._kept = None

    def above(self, model: nn.Module, layer: int, task: Task, precision: str) -> Task:
        """The task with the inputs of a layer; not kept where something attached below changes them."""
        plain = _plain_below(model, layer)
        if self._kept is not None and plain:
            of_model, of_task, *of, stored = self._kept
            if of_model is model and of_task is task and of == [layer, precision]:
                return stored
        self.clear()
        stored = replace(
            task,
            train=store_inputs(model, layer, task.train, precision),
            validation=store_inputs(model, layer, task.validation, precision),
        )
        if plain:
            self._kept = (model, task, layer, precision, stored)
        return stored


def _plain_below(model: nn.Module, layer: int) -> bool:
    """Whether the backbone below a layer is as it came."""
    attachment = attachment_of(model)
    at = [slot.position.layer for slot in attachment.slots] if attachment is not None else []
    return all(number is None or number >= layer for number in at)


def enter_above(
    model: nn.Module,
    task: Task,
    precision: str,
    limit_bytes: int,
    prefix: StoredPrefix | None = None,
) -> tuple[nn.Module, Task]:
    """Model and task for training without the frozen layers below the lowest trained one.

    Call in eval mode: stored inputs hold no dropout. Their memory is that of all real tokens of the
    training and validation splits, times the width, in float32; above the limit, where there is
    nothing to skip, or where rows hold several texts each, model and task come back as they are.

    Args:
        model: With something attached.
        task: Its training and validation splits are stored.
        precision: Of the passes.
        limit_bytes: Most memory for what is stored.
        prefix: Where it stays for the next training; nowhere by default.
    """
    prefix = StoredPrefix() if prefix is None else prefix
    layer = first_layer(model)
    several = any(values.dim() > 2 for values in task.train.inputs.values())  # texts in a row
    if layer == 0 or several:
        prefix.clear()
        return model, task
    tokens = int(task.train.lengths.sum() + task.validation.lengths.sum())
    width = int(base_of(model).config.get_text_config().hidden_size)  # type: ignore[union-attr,operator]
    if tokens * width * _FLOAT_BYTES > limit_bytes:
        prefix.clear()
        return model, task
    return Upper(model, layer), prefix.above(model, layer, task, precision)
