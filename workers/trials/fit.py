"""Fitting: a structure on a backbone, trained as a study says."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparsearch.config.train import TrainConfig
from sparsearch.errors import StructureError
from sparsearch.search.tasks.task import Task
from sparsearch.search.training.optimiser import rates_of
from sparsearch.search.training.prefix import StoredPrefix
from sparsearch.search.training.seeds import derive, seed_everything
from sparsearch.search.training.train import Observer, TrainResult, silent, steps_left, train
from sparsearch.search.training.warm_start import WarmStarts, new_head
from sparsearch.spaces.attachment.attach import attach
from sparsearch.spaces.attachment.check import check_structure
from sparsearch.spaces.backbone.parameters import count_params, positions_of
from sparsearch.spaces.calibration.calibrate import Aligning, aligning_at, take_bases
from sparsearch.spaces.compaction.compact import slim
from sparsearch.spaces.structure import Structure

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Fitted", "Fitting"]


@dataclass(frozen=True)
class Fitted:
    """A trained structure.

    Attributes:
        model: With the structure attached, or the ticket.
        result: Of training.
        trainable_params: Of the structure; of a ticket all of its backbone's.
    """

    model: PreTrainedModel
    result: TrainResult
    trainable_params: int


@dataclass(frozen=True)
class Fitting:
    """Where, from which start, and under which seed structures are trained.

    Attributes:
        model: The backbone with a head; nothing attached.
        task: Its training and validation splits are used.
        config: How to train.
        starts: Warm starts of this backbone and task.
        seed: Of the warm start.
        purpose: With the seed, of everything else random: a trial's number, a structure's hash.
        observe: Told of every step.
        prefix: Where outputs of the frozen lower layers stay for the next training of this backbone.
    """

    model: PreTrainedModel
    task: Task
    config: TrainConfig
    starts: WarmStarts
    seed: int
    purpose: object
    observe: Observer = silent
    prefix: StoredPrefix | None = None

    def check_steps(self) -> None:
        """Before what takes long: training must have a step left after the brief fine-tuning.

        Raises:
            SparsearchError: If it has none.
        """
        steps_left(self.task, self.config, self.config.steps_taken)

    def fit(self, structure: Structure, aligning: Aligning | None = None) -> Fitted:
        """Attach a structure, or cut its ticket out with ``train.backbone``, and train it.

        Args:
            structure: Of this backbone.
            aligning: What a ticket's start is asked for with: the space's, to find the start that its ranking was
                made on; the structure's if not given.

        Raises:
            StructureError: If the structure is not this backbone's, or a ticket attaches something.
            TrainingDiverged: If a loss or gradient is NaN or infinite.
        """
        if not self.config.backbone:
            self._attach(structure)
            return Fitted(self.model, self.train(self.model), structure.trainable_params)
        if aligning is None:
            aligning = aligning_at(structure.kinds, positions_of(self.model))
        ticket = self._ticket(structure, aligning)
        return Fitted(ticket, self.train(ticket, whole=True), count_params(ticket))

    def train(
        self, model: PreTrainedModel, *, whole: bool = False, taken: int | None = None
    ) -> TrainResult:
        """Train what is attached to a model, or the whole of it.

        Args:
            model: This one, or a copy.
            whole: Whether all of it trains.
            taken: Steps that it has had; those of the brief fine-tuning if not given.
        """
        groups = rates_of(model, self.config, whole=whole)
        steps = self.config.steps_taken if taken is None else taken
        seed = derive(self.seed, self.purpose, "train")
        return train(model, self.task, self.config, groups, seed, self.observe, self.prefix, steps)

    def start_head(self, aligning: Aligning = ()) -> None:
        """A new head, or the warm one if training is configured to start from it."""
        new_head(self.model, self.seed, self.purpose, "head")
        if self.config.head_first:
            self.starts.get(self.seed, aligning, self.observe).load_head(self.model)

    def _attach(self, structure: Structure) -> None:
        """Attach a structure, untrained, with a new head; its directions are those of the seed's warm start."""
        aligning = aligning_at(structure.kinds, positions_of(self.model))
        start = self.starts.get(self.seed, aligning, self.observe) if aligning else None
        self.start_head(aligning)
        seed_everything(self.seed, self.purpose, "modules")
        attach(self.model, structure)
        if start is not None:
            take_bases(self.model, start.bases)

    def _ticket(self, structure: Structure, aligning: Aligning) -> PreTrainedModel:
        """A copy of the backbone without what a structure removes, all of it trainable, with a new head.

        The head is the warm one only with ``head_first``. With ``start_steps`` the backbone is what a brief
        fine-tuning left, and the head is that of this fine-tuning.
        """
        _check_removes_alone(structure)
        check_structure(self.model, structure)  # before what takes long
        start = None
        if aligning or self.config.steps_before_cut or self.config.head_first:
            start = self.starts.get(self.seed, aligning, self.observe, late=True)
        smaller = attach(copy.deepcopy(self.model), structure)
        if start is not None:
            start.load_weights(smaller)
            take_bases(smaller, start.bases)
        ticket = slim(smaller, structure).requires_grad_(True)
        new_head(ticket, self.seed, self.purpose, "head")
        if start is not None and (start.weights or self.config.head_first):
            start.load_head(ticket)
        return ticket


def _check_removes_alone(structure: Structure) -> None:
    """Refuse a ticket that attaches something."""
    for c in structure.candidates:
        if c.role != "remove":
            raise StructureError(
                "train.backbone fine-tunes what is left of a backbone; this structure also attaches "
                f"{c.kind} at {c.position}",
                "leave train.backbone out, or search a space of heads and neurons",
            )
