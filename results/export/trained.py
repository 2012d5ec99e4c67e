"""A trained structure as an export takes it: on the backbone from disk, told which task it solves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from sparsearch.config.tasks.types import TypeFacts, facts_of
from sparsearch.errors import ExportError
from sparsearch.results.export.task_config import processor_of, set_task
from sparsearch.spaces.attachment.attach import attach
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.attachment.check import check_structure
from sparsearch.spaces.attachment.remade import check_remade
from sparsearch.spaces.attachment.weights_file import BACKBONE, HEAD, load_weights
from sparsearch.spaces.backbone.loading import load_model, locate
from sparsearch.spaces.backbone.parameters import (
    backbone_parameters,
    head_parameters,
    language_head_parameters,
)
from sparsearch.spaces.compaction.compact import compact
from sparsearch.spaces.structure import Structure

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

__all__ = ["Trained"]


@dataclass(frozen=True)
class Trained:
    """A structure with its trained weights.

    Attributes:
        structure: What was trained.
        packed: Its weights as the store gives them: a safetensors file whose metadata name the classes.
    """

    structure: Structure
    packed: bytes

    @cached_property
    def metadata(self) -> dict[str, str]:
        """What the file says beside its tensors; the header of a safetensors file follows its length.

        Raises:
            ExportError: If these are no trained weights.
        """
        size = int.from_bytes(self.packed[:8], "little")
        try:
            metadata: dict[str, str] = json.loads(self.packed[8 : 8 + size])["__metadata__"]
        except (ValueError, KeyError) as error:
            raise _damaged() from error
        return metadata

    @cached_property
    def classes(self) -> list[str]:
        """Names of the classes, none where the task has none.

        Raises:
            ExportError: If these are no trained weights.
        """
        try:
            classes: list[str] = json.loads(self.metadata["classes"])
        except (ValueError, KeyError) as error:
            raise _damaged() from error
        return classes

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The weights by name.

        Raises:
            ExportError: If these are no trained weights.
        """
        try:
            return safetensors.torch.load(self.packed)
        except safetensors.SafetensorError as error:
            raise _damaged() from error

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the tensors of what is attached."""
        others = (HEAD, BACKBONE)
        return sum(t.nbytes for name, t in self.tensors.items() if not name.startswith(others))

    @property
    def facts(self) -> TypeFacts:
        """What is known of the type of its task."""
        return facts_of(self.structure.task_type)

    @property
    def whole(self) -> bool:
        """Whether all that is left of the backbone was fine-tuned, see ``train.backbone``."""
        return any(name.startswith(BACKBONE) for name in self.tensors)

    @property
    def base(self) -> str:
        """Where the backbone is: a folder, a GGUF file or a hub id."""
        return locate(self.structure.backbone.path)

    @cached_property
    def processor(self) -> Any:
        """The backbone's tokenizer or image processor, None where it has none."""
        return processor_of(self.structure)

    def fresh_model(self) -> PreTrainedModel:
        """The backbone from disk, with a new head of the task's width and a config that names the task.

        Raises:
            StructureError: If the folder holds another backbone by now.
        """
        model = load_model(
            self.base,
            revision=self.structure.backbone.revision,
            num_labels=self.facts.outputs(self.classes),
            auto_model=self.facts.auto_model,
            quantisation=self.structure.backbone.quantisation,
        )
        check_structure(model, self.structure)
        set_task(model.config, self.structure.task_type, self.classes, self.processor)
        return model

    def model_by(self, config: Path) -> PreTrainedModel:
        """The backbone from disk with a new head, as the user of an export loads it.

        Args:
            config: File of the config that was written.
        """
        from transformers import AutoConfig

        return load_model(
            self.base,
            revision=self.structure.backbone.revision,
            config=AutoConfig.from_pretrained(config),
            auto_model=self.facts.auto_model,
            quantisation=self.structure.backbone.quantisation,
        )

    def attached_model(self) -> PreTrainedModel:
        """The structure attached to the backbone, with the trained weights.

        Raises:
            ExportError: If the weights lack a part of the head, or a mask prunes less than the structure does.
            StructureError: If the structure's places were others where it was trained.
        """
        model = self.fresh_model()
        for name, parameter in head_parameters(model):
            if (
                HEAD + name not in self.tensors
                or self.tensors[HEAD + name].shape != parameter.shape
            ):
                raise ExportError(f"the stored weights lack the task head's {name}")
        attach(model, self.structure)
        check_remade(model, self.metadata)
        load_weights(model, self.tensors)
        _check_masks_are_final(model)
        return model

    @torch.no_grad()
    def fine_tuned_model(self) -> PreTrainedModel:
        """What the structure leaves of the backbone, with the stored weights of all of it.

        Raises:
            ExportError: If the weights are of another model.
        """
        model = compact(self.fresh_model(), self.structure, attached=False)
        wanted = {BACKBONE + n: p for n, p in backbone_parameters(model)}
        above = (*head_parameters(model), *language_head_parameters(model))
        wanted |= {HEAD + n: p for n, p in above}
        if {n: t.shape for n, t in self.tensors.items()} != {
            n: p.shape for n, p in wanted.items()
        }:
            raise ExportError("the stored weights are not those of what the structure leaves")
        for name, parameter in wanted.items():
            parameter.copy_(self.tensors[name])
        return model


def _check_masks_are_final(model: nn.Module) -> None:
    """Whether each mask prunes what the structure says: while a training goes on it prunes less."""
    attachment = attachment_of(model)
    for slot in attachment.slots if attachment is not None else ():
        mask = slot.mask
        if mask is not None and (pruned := int((~mask.mask).sum())) < mask.pruned:
            raise ExportError(
                f"the masks are not final: at {slot.position.name} {pruned} weights are pruned, the structure prunes "
                f"{mask.pruned}",
                "train to the end, or take a checkpoint of the last three tenths of the training",
            )


def _damaged() -> ExportError:
    return ExportError(
        "the structure has no trained weights, or they are damaged",
        "train it anew: sparsearch train STRUCTURE STUDY.yaml",
    )
