"""Fitting: a structure on a backbone, trained as a study says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sparsearch.config.train import TrainConfig
from sparsearch.search.phases import phase
from sparsearch.search.tasks.task import Task
from sparsearch.search.training.evaluate import evaluate
from sparsearch.search.training.optimiser import rates_of
from sparsearch.search.training.prefix import StoredPrefix
from sparsearch.search.training.seeds import derive
from sparsearch.search.training.train import Observer, TrainResult, silent, steps_left, train
from sparsearch.search.training.warm_start import WarmStarts, new_head
from sparsearch.spaces.backbone.parameters import positions_of
from sparsearch.spaces.calibration.calibrate import Aligning, aligning_at
from sparsearch.spaces.compaction.merge import merge
from sparsearch.spaces.structure import Structure
from sparsearch.workers.trials.modes import mode_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Fitted", "Fitting"]


@dataclass(frozen=True)
class Fitted:
    """A trained structure.

    Attributes:
        model: With the structure attached, or the ticket.
        result: Of training.
        trainable_params: Of the structure; of a ticket all of its backbone's, or those of its LoRA.
        stored_bytes: What the task costs to keep, the head apart.
    """

    model: PreTrainedModel
    result: TrainResult
    trainable_params: int
    stored_bytes: int


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
        """Make a model of a structure in the study's training mode, and train it.

        Args:
            structure: Of this backbone.
            aligning: With what a ticket's warm start is asked for: the space's, to find the start that its ranking was
                made on; the structure's if not given.

        Raises:
            StructureError: If the structure is not this backbone's, or cannot be trained in this mode.
            TrainingDiverged: If a loss or gradient is NaN or infinite.
        """
        if aligning is None:
            aligning = aligning_at(structure.kinds, positions_of(self.model))
        mode = mode_of(self.config)
        model = mode.prepare(self, structure, aligning)
        params = mode.trainable_params(model, structure)
        result = self.train(model, whole=mode.trains_all)
        if mode.folds:  # what is stored is what is measured: rounded to the weights' type
            score = evaluate(merge(model), self.task, self.task.validation, self.config.precision)
            result = replace(result, score=score)
        return Fitted(model, result, params, mode.stored_bytes(model, structure))

    def train(
        self, model: PreTrainedModel, *, whole: bool = False, taken: int | None = None
    ) -> TrainResult:
        """Train what is attached to a model, or the whole of it; where nothing trains, measure it as it is.

        Args:
            model: This one, or a copy.
            whole: Whether all of it trains.
            taken: Steps that it has had; those of the brief fine-tuning if not given.
        """
        groups = rates_of(model, self.config, whole=whole)
        if not groups:
            task = self.task
            score = evaluate(model, task, task.validation, self.config.precision)
            return TrainResult(score, 0, ())
        steps = self.config.steps_taken if taken is None else taken
        seed = derive(self.seed, self.purpose, "train")
        prefix = self.prefix if model is self.model else None  # a copy has other layers
        with phase("training"):
            return train(model, self.task, self.config, groups, seed, self.observe, prefix, steps)

    def start_head(self, aligning: Aligning = ()) -> None:
        """A new head, or the warm one if training is configured to start from it."""
        new_head(self.model, self.task, self.seed, self.purpose, "head")
        if self.config.head_first:
            self.starts.get(self.seed, aligning, self.observe).load_head(self.model)
