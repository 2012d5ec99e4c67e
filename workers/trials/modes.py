"""Training modes: how a structure becomes a model that trains, and which of its weights do."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, ClassVar

from sparsearch.errors import StructureError
from sparsearch.search.training.seeds import seed_everything
from sparsearch.search.training.warm_start import new_head
from sparsearch.spaces.attachment.attach import attach
from sparsearch.spaces.attachment.check import check_structure
from sparsearch.spaces.backbone.parameters import count_params, positions_of
from sparsearch.spaces.calibration.calibrate import Aligning, aligning_at, take_bases
from sparsearch.spaces.candidate import BYTES_PER_PARAM
from sparsearch.spaces.compaction.compact import compact

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sparsearch.config.train import TrainConfig
    from sparsearch.spaces.structure import Structure
    from sparsearch.workers.trials.fit import Fitting

__all__ = ["Modules", "Ticket", "TrainingMode", "mode_of"]


class TrainingMode:
    """How a structure is trained.

    Attributes:
        whole: Whether all weights of the model train, at ``train.full_lr``, and are stored.
        export_format: In which its result is handed over.
    """

    whole: ClassVar[bool] = False
    export_format: ClassVar[str] = "spec"

    def prepare(
        self, fitting: Fitting, structure: Structure, aligning: Aligning
    ) -> PreTrainedModel:
        """The model to train, untrained, with a new head.

        Args:
            fitting: Backbone, warm starts and seed.
            structure: Of this backbone.
            aligning: With what the warm start is asked for.

        Raises:
            StructureError: If the structure is not this backbone's, or cannot be trained like this.
        """
        raise NotImplementedError

    def trainable_params(self, model: PreTrainedModel, structure: Structure) -> int:
        """What of a prepared model trains, the head apart."""
        raise NotImplementedError

    def stored_bytes(self, model: PreTrainedModel, structure: Structure) -> int:
        """What the task costs to keep of a prepared model, the head apart."""
        raise NotImplementedError


class Modules(TrainingMode):
    """Attached modules and the head train; the backbone is frozen."""

    def prepare(
        self, fitting: Fitting, structure: Structure, aligning: Aligning
    ) -> PreTrainedModel:
        """Attach the structure to the backbone; its directions are those of the seed's warm start."""
        model, seed = fitting.model, fitting.seed
        own = aligning_at(structure.kinds, positions_of(model))
        start = fitting.starts.get(seed, own, fitting.observe) if own else None
        fitting.start_head(own)
        seed_everything(seed, fitting.purpose, "modules")
        attach(model, structure)
        if start is not None:
            take_bases(model, start.bases)
        return model

    def trainable_params(self, model: PreTrainedModel, structure: Structure) -> int:
        """Those of the structure."""
        return structure.trainable_params

    def stored_bytes(self, model: PreTrainedModel, structure: Structure) -> int:
        """Those of the structure."""
        return structure.stored_bytes


class Ticket(TrainingMode):
    """What a structure's removals leave of the backbone trains, as EarlyBERT does (``train.backbone``)."""

    whole = True
    export_format = "checkpoint"

    def prepare(
        self, fitting: Fitting, structure: Structure, aligning: Aligning
    ) -> PreTrainedModel:
        """A copy of the backbone without what the structure removes.

        The head is the warm one only with ``head_first``. With ``start_steps`` the backbone is what a brief
        fine-tuning left, and the head is that of this fine-tuning.
        """
        _check_removes_alone(structure)
        check_structure(fitting.model, structure)  # before what takes long
        config, start = fitting.config, None
        if aligning or config.steps_before_cut or config.head_first:
            start = fitting.starts.get(fitting.seed, aligning, fitting.observe, late=True)
        smaller = attach(copy.deepcopy(fitting.model), structure)
        if start is not None:
            start.load_weights(smaller)
            take_bases(smaller, start.bases)
        ticket = compact(smaller, structure).requires_grad_(True)
        new_head(ticket, fitting.task, fitting.seed, fitting.purpose, "head")
        if start is not None and (start.weights or config.head_first):
            start.load_head(ticket)
        return ticket

    def trainable_params(self, model: PreTrainedModel, structure: Structure) -> int:
        """All that is left."""
        return count_params(model)

    def stored_bytes(self, model: PreTrainedModel, structure: Structure) -> int:
        """All that is left, what stands in for cuts folded into it, and what was cut."""
        chosen = structure.stored_bytes - structure.bytes
        return BYTES_PER_PARAM * count_params(model) + chosen


def mode_of(config: TrainConfig) -> TrainingMode:
    """The training mode that a study asks for."""
    return Ticket() if config.backbone else Modules()


def _check_removes_alone(structure: Structure) -> None:
    """Refuse a ticket that attaches something."""
    for c in structure.candidates:
        if c.role != "remove":
            raise StructureError(
                "train.backbone fine-tunes what is left of a backbone; this structure also attaches "
                f"{c.kind} at {c.position}",
                "leave train.backbone out, or search a space of heads and neurons",
            )
