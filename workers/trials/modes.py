"""Training modes: how a structure becomes a model that trains, and which of its weights do."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from sparsearch.errors import InfeasibleError, StructureError
from sparsearch.search.training.seeds import seed_everything
from sparsearch.search.training.warm_start import new_head
from sparsearch.spaces.attachment.attach import attach, attach_modules
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.attachment.check import check_structure
from sparsearch.spaces.backbone.parameters import count_params, positions_of
from sparsearch.spaces.calibration.calibrate import Aligning, aligning_at, take_bases
from sparsearch.spaces.candidate import BYTES_PER_PARAM
from sparsearch.spaces.compaction.compact import compact
from sparsearch.spaces.compaction.merge import check_merge
from sparsearch.spaces.costs import narrowed_positions
from sparsearch.spaces.kinds.registry import make_kind

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sparsearch.config.train import TrainConfig
    from sparsearch.spaces.budget import Budget
    from sparsearch.spaces.families.position import Position
    from sparsearch.spaces.structure import Structure
    from sparsearch.workers.trials.fit import Fitting

__all__ = ["LowRankTicket", "Modules", "Ticket", "TrainingMode", "mode_of"]


class TrainingMode:
    """How a structure is trained.

    Attributes:
        whole: Whether all weights of the model are stored.
        trains_all: Whether all of them train, at ``train.full_lr``.
        folds: Whether what trained then goes into the weights.
        export_format: In which its result is handed over.
    """

    whole: ClassVar[bool] = False
    trains_all: ClassVar[bool] = False
    folds: ClassVar[bool] = False
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

    def check_limits(
        self, structure: Structure, positions: Sequence[Position], budget: Budget
    ) -> None:
        """Before training: what trains beside the structure is within the budget too.

        Args:
            structure: Of a backbone with these positions.
            positions: Those of the whole backbone.
            budget: What the structure was selected under.

        Raises:
            InfeasibleError: If it is not.
        """

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
    trains_all = True
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


class LowRankTicket(Ticket):
    """A ticket of which a LoRA on each linear trains, and is then added to its weights (``train.backbone_rank``)."""

    trains_all = False
    folds = True

    def __init__(self, rank: int) -> None:
        self.rank, self.kind = rank, make_kind("lora", {})

    def prepare(
        self, fitting: Fitting, structure: Structure, aligning: Aligning
    ) -> PreTrainedModel:
        """The ticket, frozen, with a LoRA on each of its linears.

        Raises:
            StructureError: Also if the LoRA could not be added to a weight, as where another module shares it.
        """
        ticket = super().prepare(fitting, structure, aligning)
        seed_everything(fitting.seed, fitting.purpose, "modules")
        units = [(p, self.kind, self._rank_at(p), 1) for p in self._places(positions_of(ticket))]
        attach_modules(ticket, units)
        check_merge(ticket)  # before what takes long
        return ticket

    def check_limits(
        self, structure: Structure, positions: Sequence[Position], budget: Budget
    ) -> None:
        """The LoRA fits the limit on trainable parameters."""
        left = self._places(narrowed_positions(positions, structure.candidates))
        params = sum(self.kind.params(p, self._rank_at(p)) for p in left)
        limit = budget.get("max_trainable_params")
        if limit is not None and params > limit:
            raise InfeasibleError(
                f"the LoRA of rank {self.rank} on what is left of the backbone has {params:,} parameters, above the "
                f"{limit:,} of the budget: lower train.backbone_rank, or raise max_trainable_params",
                least_params=params,
            )

    def trainable_params(self, model: PreTrainedModel, structure: Structure) -> int:
        """Those of the LoRA."""
        attachment = attachment_of(model)
        assert attachment is not None
        return sum(p.numel() for unit in attachment.units.values() for p in unit.parameters())

    def _places(self, positions: Sequence[Position]) -> list[Position]:
        return [p for p in positions if self.kind.accepts(p)]

    def _rank_at(self, position: Position) -> int:
        return min(self.rank, self.kind.largest_useful(position))


def mode_of(config: TrainConfig) -> TrainingMode:
    """The training mode that a study asks for."""
    if config.backbone_rank is not None:
        return LowRankTicket(config.backbone_rank)
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
