"""A search at the beginning of a training in the Trainer of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback

import sparsearch
from sparsearch.config.presets import read_preset
from sparsearch.config.problems import read_section
from sparsearch.config.registry import STRATEGIES, TRANSFER
from sparsearch.config.study import BudgetConfig, SearchConfig, SpaceConfig, TrainConfig
from sparsearch.errors import (
    BackboneError,
    ConfigError,
    DataError,
    ModelStateError,
    StructureError,
)
from sparsearch.search.strategies.base import RankingContext
from sparsearch.search.strategies.registry import find_strategy, rank
from sparsearch.search.tasks.types.registry import find_task_type
from sparsearch.search.trainer.rows import check_task_type, task_of_rows
from sparsearch.search.training.seeds import derive
from sparsearch.search.training.warm_start import WarmStarts
from sparsearch.spaces.attachment.attach import attach
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.backbone.loading import load_config
from sparsearch.spaces.backbone.parameters import head_parameters, positions_of
from sparsearch.spaces.backbone.quantised.settings import quantisation_of
from sparsearch.spaces.backbone.state import check_state
from sparsearch.spaces.budget import resolve
from sparsearch.spaces.calibration.calibrate import aligning_at, take_bases
from sparsearch.spaces.space import list_space
from sparsearch.spaces.structure import Provenance, Structure, make_structure

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments

__all__ = ["StructureCallback"]


class StructureCallback(TrainerCallback):  # type: ignore[misc]
    """Searches for a structure when the Trainer begins to train, attaches it, and lets the training go on with it.

    The search runs on some of the Trainer's training rows. It leaves the model, its head and the random numbers as
    they were; then what it chose is attached, and the optimiser trains that and the head in place of the whole model.
    Where a structure is attached already, as when a training goes on from a checkpoint, nothing is searched, and masks
    develop from the step at which the training is.

    Args:
        task_type: Of the model and its labels, as ``task.type`` of a study file.
        budget: Limits by name, as under ``budgets`` of a study file.
        space: ``{"preset": ...}`` or ``{"kinds": ...}``, as under ``space`` of a study file.
        search: As under ``search`` of a study file, over what the preset says; 100 steps if it does not say how many.
        rows: Training rows that the search reads at most; an eighth of them judges.

    Attributes:
        structure: What was chosen, or was attached already; None before training begins.

    Raises:
        ConfigError: If a setting is wrong.

    Example:
        >>> callback = StructureCallback("classification", {"max_trainable_params": "0.05%"})
        >>> trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[callback])   # doctest: +SKIP
        >>> trainer.train()                                                                 # doctest: +SKIP
        >>> sparsearch.save(model, callback.structure, "trained")                           # doctest: +SKIP
    """

    def __init__(
        self,
        task_type: str,
        budget: Mapping[str, Any],
        space: Mapping[str, Any] | None = None,
        search: Mapping[str, Any] | None = None,
        rows: int = 1024,
    ) -> None:
        check_task_type(task_type)
        self.task_type, self.rows = task_type, rows
        self.budget = read_section(BudgetConfig, budget, "budget")
        chosen = {"preset": "s3pet-m"} if space is None else space
        self.space = read_section(SpaceConfig, chosen, "space")
        recipe = read_preset(self.space.preset) if self.space.preset else {}
        settings = {"steps": 100, **recipe.get("search", {}), **(search or {})}
        self.search = read_section(SearchConfig, settings, "search")
        self.train = read_section(TrainConfig, recipe.get("train", {}), "train")
        self.structure: Structure | None = None
        strategy = self.search.strategy
        if STRATEGIES.family(strategy) == "reference" or strategy == TRANSFER:
            raise ConfigError([f"search.strategy: {strategy!r} chooses no structure here"])
        if self.search.checkpoint != "last" and not find_task_type(task_type).scores_collated_rows:
            raise ConfigError(
                [
                    f"search.checkpoint: {self.search.checkpoint!r} goes by scores, and tensors alone give none"
                ],
                "leave it at last; `sparsearch run` reads texts, and scores them",
            )
        if self.train.backbone:
            raise ConfigError(
                [f"preset {self.space.preset!r} cuts the backbone itself, into a ticket"],
                "run it as a study: sparsearch run STUDY.yaml",
            )

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **given: Any,
    ) -> None:
        """Search, attach, and give the optimiser what trains from here on.

        Raises:
            ModelStateError: If the model is wrapped for several processes or devices, was rounded by loading it in half
                precision, or otherwise cannot be searched.
            ConfigError: If the optimiser has groups of its own, none of which what is attached belongs to.
            DataError: If the rows cannot be searched with.
            InfeasibleError: If nothing fits the budget.
        """
        model = given["model"]
        attachment = attachment_of(model)
        if attachment is not None:
            self.structure = attachment.structure
            attachment.advance(state.global_step, state.max_steps)
            return
        if args.world_size > 1 or args.n_gpu > 1:
            raise ModelStateError(
                f"the Trainer has wrapped the model for {max(args.world_size, args.n_gpu)} processes or devices, "
                "which would not see what is attached from here on",
                "search in one process first, then attach callback.structure before the Trainer is made",
            )
        if state.global_step > 0:
            raise StructureError(
                f"the training goes on from step {state.global_step}, but no structure is attached",
                "attach structure.json of the checkpoint's folder before train(resume_from_checkpoint=...)",
            )
        check_state(model, allow={"bitsandbytes"})
        _check_unrounded(model)
        _check_groups(model, given["optimizer"])
        loader = given["train_dataloader"]
        device = next(model.parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            self._search(model, loader.dataset, loader.collate_fn, args)
        _train_what_is_attached(model, given["optimizer"])
        attachment = attachment_of(model)
        assert attachment is not None, "the search has attached what it chose"
        attachment.advance(0, state.max_steps)

    def _search(
        self, model: PreTrainedModel, rows: Any, collate: Any, args: TrainingArguments
    ) -> None:
        check_task_type(self.task_type, model)
        if isinstance(rows, IterableDataset):
            raise DataError(
                "the search takes training rows by their number, and an IterableDataset has no numbers",
                "give the Trainer rows that do, for example list(rows) or datasets.Dataset.from_list(list(rows)); or "
                "search on some of them, and attach callback.structure to a fresh model for the training on all",
            )
        seed = int(args.seed)
        generator = torch.Generator().manual_seed(derive(seed, "rows"))
        sample = torch.randperm(len(rows), generator=generator)[: self.rows].tolist()
        task = task_of_rows(self.task_type, model, [rows[i] for i in sample], collate, seed)
        precision = {"precision": "bf16" if args.bf16 else "fp32"}
        train = self.train.model_copy(update=precision)
        space = list_space(model, preset=self.space.preset, kinds=self.space.kinds)
        budget = resolve(space.backbone_params, **self.budget.model_dump())
        starts = WarmStarts(model, task, train)
        aligning = aligning_at(space.kinds.values(), space.positions)
        head = {name: p.detach().clone() for name, p in head_parameters(model)}
        strategy, name = find_strategy(self.search.strategy), self.search.strategy
        ranking = None
        if strategy.ranks:
            context = RankingContext(
                model,
                space,
                task,
                self.search,
                train,
                (budget,),
                lambda: starts.get(seed, aligning),
            )
            ranking = rank(name, context, budget, derive(seed, name, "ranking"))
        chosen_from, chosen = strategy.select(space, ranking, budget, self.search, task.max_length)
        origin = Provenance("Trainer", None, name, seed, sparsearch.__version__)
        backbone = identify(model, str(model.config.name_or_path))
        self.structure = make_structure(chosen_from, chosen, backbone, self.task_type, origin)
        own = aligning_at(self.structure.kinds, positions_of(model))
        bases = starts.get(seed, own).bases if own else {}
        attach(model, self.structure)
        take_bases(model, bases)
        with torch.no_grad():
            for parameter_name, parameter in head_parameters(model):
                parameter.copy_(head[parameter_name])

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **given: Any,
    ) -> None:
        """Tell masks how far training is; what was evaluated before they were final is not the best checkpoint."""
        attachment = attachment_of(given["model"])
        if attachment is not None:
            if not attachment.settled:
                state.best_metric = state.best_global_step = state.best_model_checkpoint = None
            attachment.advance(state.global_step, state.max_steps)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **given: Any,
    ) -> None:
        """Put the structure into a checkpoint's folder, from where it is attached when training goes on."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.structure is not None and folder.is_dir():
            (folder / "structure.json").write_text(self.structure.to_json())


def _check_groups(model: PreTrainedModel, optimizer: Any) -> None:
    """Refuse an optimiser whose groups do not say where new parameters belong."""
    groups = optimizer.param_groups
    group_of = _trainer_groups(model)
    split = {
        (i, group_of[id(p)])
        for i, g in enumerate(groups)
        for p in g["params"]
        if id(p) in group_of
    }
    if len(groups) > 1 and (len(groups) != 2 or not split <= {(0, 0), (1, 1)}):
        raise ConfigError(
            [
                f"the optimiser has {len(groups)} groups of its own, and none is for what the search will attach"
            ],
            "leave the optimiser to the Trainer; or search in a first, short training that does so, attach its "
            "callback.structure to a fresh model, and give the optimiser a group for each kind",
        )


def _check_unrounded(model: PreTrainedModel) -> None:
    """Refuse weights that loading has rounded: no file gives them back, so that nothing trained on them can be saved.

    Raises:
        ModelStateError: If they are in half precision, and the model's config on disk or on the hub says otherwise.
    """
    kind = next(model.base_model.parameters()).dtype
    path = str(model.config.name_or_path)
    if kind == torch.float32 or quantisation_of(model) is not None or not path:
        return
    try:
        stored = str(load_config(path).dtype or torch.float32)
    except BackboneError:
        return  # made in memory, or its folder is gone
    if stored.removeprefix("torch.") != str(kind).removeprefix("torch."):
        raise ModelStateError(
            f"the model was loaded in {kind}, and {path!r} has {stored}: no file holds the rounded weights",
            "load it as it is stored, from_pretrained(..., dtype='auto'), or in float32; TrainingArguments(bf16=True) "
            "trains in bfloat16",
        )


def _trainer_groups(model: PreTrainedModel) -> dict[int, int]:
    """Parameter -> its group in an optimiser that the Trainer makes: 0 decays, 1 does not, whatever its shape."""
    decaying = Trainer.get_decay_parameter_names(None, model)
    return {id(p): int(name not in decaying) for name, p in model.named_parameters()}


def _train_what_is_attached(model: PreTrainedModel, optimizer: Any) -> None:
    """What trains now in the optimiser's groups, as in one that the Trainer would make now: checkpoints go by order."""
    group_of, groups = _trainer_groups(model), optimizer.param_groups
    for i, group in enumerate(groups):
        group["params"] = [
            p
            for p in model.parameters()
            if p.requires_grad and (len(groups) == 1 or group_of[id(p)] == i)
        ]
