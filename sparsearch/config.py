"""What a user may write: the study file, validated as a whole, every problem reported at once."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from sparsearch.errors import ConfigError
from sparsearch.outer_config import OuterConfig, points_of

__all__ = [
    "BudgetConfig",
    "DataConfig",
    "ModelConfig",
    "ProbeConfig",
    "SearchConfig",
    "SpaceConfig",
    "StudyConfig",
    "TaskConfig",
    "TrainConfig",
    "WorkersConfig",
    "spread_budgets",
]

KIND_NAMES = (
    "lora",
    "spectral",
    "bitfit",
    "lnfit",
    "low_rank_adapter",
    "adapter",
    "ia3",
    "sparse_delta",
    "heads",
    "neurons",
    "weight_mask",
)
"""Every kind; a test compares it with the registry, which this leaf module may not import."""

_Strategy = Literal[
    "s3pet",
    "probe",
    "random",
    "slimming",
    "even",
    "magnitude",
    "surgeon",
    "update-magnitude",
    "transfer",
    "lora",
    "lora-qv",
    "spectral",
    "bitfit",
    "lnfit",
    "adapter",
    "head",
    "full",
]


def _known_strategy(value: Any) -> Any:
    """A misspelt strategy gets the nearest name; one that is like none gets them all."""
    names = get_args(_Strategy)
    if not isinstance(value, str) or value in names:
        return value
    near = difflib.get_close_matches(value, names, n=1)
    advice = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}"
    raise ValueError(f"{value!r} is no strategy; {advice}")


Strategy = Annotated[_Strategy, BeforeValidator(_known_strategy)]


def _number(value: Any) -> Any:
    """YAML reads 1e-4 (no point) as text; a person means the number."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


Number = Annotated[float, BeforeValidator(_number)]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[Number, Field(gt=0, le=10)]
Allocation = Literal["layerwise", "global"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelConfig(_Section):
    """The backbone: hub id, local folder, or ``pkg:NAME/FOLDER`` of an installed package."""

    path: str
    revision: str | None = None
    sha256: str | None = Field(default=None, pattern="^[0-9a-fA-F]{64}$")


class DataConfig(_Section):
    """What ``datasets.load_dataset`` is given, and which split plays which part."""

    path: str
    name: str | None = None
    data_files: dict[str, str] | None = None
    splits: dict[Literal["train", "validation", "test"], str] = Field(default_factory=dict)


class TaskConfig(_Section):
    """The task: its data, columns, labels and metric."""

    type: Literal["classification", "regression"] = "classification"
    name: str = ""
    data: DataConfig
    text: Annotated[list[str], Field(min_length=1, max_length=2)]
    label: str = "label"
    labels: list[str | int] | None = None
    metric: Literal["accuracy", "f1", "matthews", "pearson"] = "accuracy"
    max_length: Annotated[int, Field(ge=4)] = 128
    max_train_rows: Positive | None = None

    @model_validator(mode="after")
    def _metric_fits(self) -> TaskConfig:
        if (self.type == "regression") != (self.metric == "pearson"):
            raise ValueError(
                f"metric {self.metric!r} does not fit type {self.type!r}: pearson is for regression, "
                "accuracy, f1 and matthews are for classification"
            )
        return self

    @property
    def title(self) -> str:
        """The task's name: as given, else the folder (or file) of local data, else the hub's name."""
        if self.name:
            return self.name
        if self.data.data_files:
            file = Path(next(iter(self.data.data_files.values())))
            return file.parent.name or file.stem
        return "-".join(filter(None, (self.data.path.rsplit("/", 1)[-1], self.data.name)))


class SpaceConfig(_Section):
    """What may be chosen: a preset, or kinds with their options (``on``: patterns of positions)."""

    preset: str | None = None
    kinds: dict[str, dict[str, Any]] | None = None

    @model_validator(mode="before")
    @classmethod
    def _kinds_as_mapping(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and isinstance(value.get("kinds"), list):
            return {**value, "kinds": {str(kind): {} for kind in value["kinds"]}}
        return value

    @model_validator(mode="after")
    def _one_of_both(self) -> SpaceConfig:
        if (self.preset is None) == (self.kinds is None):
            raise ValueError("give either a preset or kinds")
        for kind, options in (self.kinds or {}).items():
            on = options.get("on")
            if on is not None and not (
                isinstance(on, list) and all(isinstance(p, str) for p in on)
            ):
                raise ValueError(f"kinds.{kind}.on must be a list of patterns")
        return self


SHARE = re.compile(r"^\s*(\d+(?:\.\d*)?|\.\d+)\s*%\s*$")
"""A percentage: digits, perhaps a point, and the sign."""


def _share(value: Any) -> float | None:
    """The number before the sign of a percentage."""
    match = SHARE.match(value) if isinstance(value, str) else None
    return float(match[1]) if match else None


def _limit(value: Any) -> Any:
    """A limit: a whole number above 0, or a percentage above 0% and up to 100%."""
    if isinstance(value, str):
        share = _share(value)
        if share is None or not 0 < share <= 100:
            raise ValueError(f"{value!r} is no share: write a percentage above 0% and up to 100%")
    elif value is not None and (
        isinstance(value, bool) or not isinstance(value, int) or value <= 0
    ):
        raise ValueError(
            f"{value!r} is no limit: write a whole number above 0, or like '0.01%', or a range of "
            "either, {from: '0.01%', to: '1%', points: 3}"
        )
    return value


def _flops(value: Any) -> Any:
    """A FLOPs limit: a percentage of the dense backbone."""
    if value is not None and not _share(value):
        raise ValueError(f"{value!r} is no share of the dense backbone's FLOPs: write like '75%'")
    return value


def _sparsity(value: Any) -> Any:
    """A limit on sparsity: a percentage of the backbone's weights, not all of them."""
    if value is not None and not 0 < (_share(value) or 0) < 100:
        raise ValueError(
            f"{value!r} is no share of the backbone's weights: write a percentage above 0% and below 100%"
        )
    return value


class BudgetConfig(_Section):
    """One budget; several limits hold together."""

    max_trainable_params: Annotated[int | str | None, BeforeValidator(_limit)] = None
    max_bytes: Positive | None = None
    max_inference_flops: Annotated[str | None, BeforeValidator(_flops)] = None
    min_weight_sparsity: Annotated[str | None, BeforeValidator(_sparsity)] = None

    @model_validator(mode="after")
    def _limits_something(self) -> BudgetConfig:
        if not any(self.model_dump().values()):
            names = list(type(self).model_fields)
            raise ValueError(
                f"a budget limits nothing; give {', '.join(names[:-1])} or {names[-1]}"
            )
        return self


def spread_budgets(value: Any) -> Any:
    """``{limit: [a, b]}`` means one budget per combination; a bare value limits the parameters.

    ``{limit: {from: a, to: c}}`` means a, c and a point between them.
    """
    if isinstance(value, Mapping):
        points = {k: points_of(v) for k, v in value.items()}
        lists = {k: v if isinstance(v, list) else [v] for k, v in points.items()}
        return [dict(zip(lists, row, strict=True)) for row in itertools.product(*lists.values())]
    if isinstance(value, list):
        return [v if isinstance(v, Mapping) else {"max_trainable_params": v} for v in value]
    return value


def _each_once(budgets: list[BudgetConfig]) -> list[BudgetConfig]:
    """A budget that an override made equal to another one counts once."""
    return list(dict.fromkeys(budgets))


class ProbeConfig(_Section):
    """A gradient probe.

    Attributes:
        score: What a parameter's gradient g is worth: |g| (``l1``), |g| times its learning rate
            (``step``), g^2 (``l2``), the mean of g^2 over rows (``fisher``), or |g w| after a
            few steps (``weight``).
        rows: Training rows that it sees.
        cut: Greedy by a candidate's total, or by its density, total per parameter.
    """

    score: Literal["l1", "l2", "step", "fisher", "weight"] = "step"
    rows: Positive = 512
    cut: Literal["greedy", "density", "knapsack"] = "density"


class SearchConfig(_Section):
    """How structures are chosen. Defaults follow S3PET except where ``docs/decisions`` says why not.

    Attributes:
        strategy: What makes the ranking.
        order: Of the gradient through the unrolled step.
        bilevel: Gates learn on the other half of the training split; else on the same batches.
        steps: Search steps; 0 leaves alpha at its start.
        control: How gates meet the budget: shifted global sigmoid, tau-theta softmax, or an L0
            penalty.
        budget_gradient: Exact implicit gradient of the shift, or S3PET's detach trick.
        relaxation: Of the gates' samples.
        l0_weight: Weight of the L0 penalty.
        start: Alpha starts at zero, or at the logarithm of a gradient probe's densities.
        warmup: Share of the steps in which weights alone learn, all gates open, their rates rising.
        budget_schedule: Gates are held at the trial's budget; or at one drawn anew for each step
            (log-uniform over the study's budgets), so that one search ranks for all of them; or
            at one that falls from the whole space to the trial's.
        final_temperature: At the last step; the temperature moves there geometrically.
        skip_below: Candidates with a smaller probability are not run.
        checkpoint: Gates of the last step, or of the best validation score with soft gates, or with
            the hard structure that they are cut to.
        cut: Greedy by score, by score per parameter, or an exact knapsack.
        swaps: Exchanges across the edge of the cut that are tried at the end, each judged by the
            validation loss of the hard structure.
        early_stop: Stop when the cuts at the target budgets have stopped changing.
        stop_every: Steps between two looks at the cuts.
        stop_length: Cuts that must agree.
        stop_distance: Largest distance at which two cuts agree; 1.0 is that of random structures.
        probe: The gradient probe, as a strategy and as a start of alpha.
        l1: Weight of the slimming coefficients' penalty (EarlyBERT).
        coefficient_lr: Their learning rate.
        draw: When slimming and ``update-magnitude`` draw their ticket, as a share of an epoch (EarlyBERT: 0.2), in
            place of ``steps``.
        allocation: Whether they cut the same share in each layer, or let the layers compete; or which of the
            two for each kind, {heads: layerwise, neurons: global}.
        transfer_from: What the strategy ``transfer`` takes its ranking from: a study of the same database, or
            the key of a ranking in it; if not given, the ranking whose structure is best on another task.
    """

    strategy: Strategy = "s3pet"
    order: Literal["first", "second"] = "first"
    bilevel: bool = True
    steps: Annotated[int, Field(ge=0)] = 300
    batch_size: Positive = 32
    alpha_lr: Rate = 0.1
    clip: Annotated[Number, Field(gt=0)] = 2.0
    control: Literal["shift", "tau-theta", "l0"] = "shift"
    budget_gradient: Literal["exact", "detach"] = "exact"
    relaxation: Literal["concrete", "hard-concrete", "none"] = "concrete"
    temperature: Annotated[Number, Field(gt=0)] = 1.0
    l0_weight: Annotated[Number, Field(ge=0)] = 1.0
    start: Literal["zero", "probe"] = "zero"
    warmup: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    budget_schedule: Literal["fixed", "sampled", "annealed"] = "fixed"
    final_temperature: Annotated[Number, Field(gt=0)] | None = None
    skip_below: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    checkpoint: Literal["last", "best", "hard"] = "last"
    valid_every: Positive = 100
    cut: Literal["greedy", "density", "knapsack"] = "greedy"
    swaps: Annotated[int, Field(ge=0)] = 0
    early_stop: bool = False
    stop_every: Positive = 5
    stop_length: Annotated[int, Field(ge=2)] = 5
    stop_distance: Annotated[Number, Field(ge=0, le=1)] = 0.15
    probe: ProbeConfig = ProbeConfig()
    l1: Annotated[Number, Field(ge=0)] = 1e-4
    coefficient_lr: Rate = 1e-2
    draw: Annotated[Number, Field(gt=0)] | None = None
    allocation: Allocation | dict[str, Allocation] = "global"
    transfer_from: str | None = None

    @model_validator(mode="after")
    def _allocates_what_is_cut(self) -> SearchConfig:
        kinds = {"heads", "neurons"}
        if not isinstance(self.allocation, str) and (other := set(self.allocation) - kinds):
            raise ValueError(
                f"allocation is for {' and '.join(sorted(kinds))}, not for {', '.join(sorted(other))}"
            )
        return self


SAMPLE_ROWS = 1024

KIND_LR = {
    "lora": 3e-3,
    "spectral": 3e-2,
    "bitfit": 5e-3,
    "adapter": 3e-3,
    "low_rank_adapter": 3e-3,
    "weight_mask": 1e-3,
}
"""Rates of the kinds that want another one than biases and gains; see decision 1."""


def _with_default_rates(value: Any) -> Any:
    """Naming one kind's rate leaves the others at their defaults."""
    return {**KIND_LR, **value} if isinstance(value, Mapping) else value


class TrainConfig(_Section):
    """How a structure is trained, the same for every strategy; a search trains its modules alike.

    Attributes:
        lr: For attached modules and the head.
        kind_lr: Kind (or ``head``) -> its own rate, over the defaults; other kinds take ``lr``.
        full_lr: For the reference that trains the whole backbone.
        warmup: Share of the steps with a rising learning rate; afterwards it falls linearly to 0.
        precision: ``auto`` takes bf16 autocast where the processor computes it natively.
        head_first: Whether the head learns alone, over the frozen backbone, before the rest joins.
        start_rows: Training rows of which a seed's warm start is made: its head, the directions that units take
            from the gradient, the moments by which cuts are priced.
        dropout: Whether the backbone's own dropout is on.
        backbone: Whether the backbone trains too, for structures that only cut: what is left of it is
            fine-tuned from its pretrained weights, as EarlyBERT does.
        cache_bytes: Most memory for outputs of the frozen layers below all that trains, which then
            run once instead of in each epoch; 0 runs them again. Needs dropout off.
    """

    epochs: Positive = 3
    batch_size: Positive = 32
    lr: Rate = 2e-2
    kind_lr: Annotated[dict[str, Rate], BeforeValidator(_with_default_rates)] = Field(
        default_factory=lambda: dict(KIND_LR)
    )
    full_lr: Rate = 1e-4
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0
    warmup: Annotated[Number, Field(ge=0, lt=1)] = 0.06
    clip: Annotated[Number, Field(gt=0)] = 2.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    head_first: bool = False
    start_rows: Positive = SAMPLE_ROWS
    dropout: bool = False
    backbone: bool = False
    cache_bytes: Annotated[int, Field(ge=0)] = 2**30

    @model_validator(mode="after")
    def _known_kinds(self) -> TrainConfig:
        unknown = sorted(set(self.kind_lr) - {*KIND_NAMES, "head"})
        if unknown:
            raise ValueError(f"kind_lr names {unknown}; known: {', '.join((*KIND_NAMES, 'head'))}")
        return self


def recipe(preset: str) -> dict[str, Any]:
    """What a preset says beside its kinds: settings for search and training; nothing for an unknown one."""
    file = resources.files("sparsearch.spaces").joinpath("presets", f"{preset}.yaml")
    content = yaml.safe_load(file.read_text()) if file.is_file() else {}
    return {k: v for k, v in content.items() if k != "kinds"}


def _over(defaults: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings over defaults, section by section."""
    merged = dict(settings)
    for section, values in defaults.items():
        given = settings.get(section, {})
        if isinstance(given, Mapping):
            merged[section] = {**values, **given}
    return merged


class WorkersConfig(_Section):
    """Who runs the trials. No part of what a study is: it may go on with other workers.

    Attributes:
        runner: One trial after the other ``in-process``, or several at a time through ``ray``.
        device: Where a trial computes.
        threads: Of torch in each process; with Ray as many as ``cpus_per_trial`` if not given.
        max_concurrent: Ray workers, each of which runs one trial at a time.
        cpus_per_trial: Cores of a Ray worker.
        gpus_per_trial: GPUs of a Ray worker; below 1 a share of one, and of its memory.
        max_attempts: How often a trial is tried whose worker is lost or whose memory runs out.
        attempt_seconds: A Ray worker that shows no progress for so long is given up.
    """

    runner: Literal["in-process", "ray"] = "in-process"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Positive | None = None
    max_concurrent: Positive = 1
    cpus_per_trial: Positive = 1
    gpus_per_trial: Annotated[Number, Field(ge=0)] = 0.0
    max_attempts: Positive = 3
    attempt_seconds: Annotated[Number, Field(gt=0)] = 900.0

    @model_validator(mode="after")
    def _possible(self) -> WorkersConfig:
        gpus = self.gpus_per_trial
        if gpus > 1 and not float(gpus).is_integer():
            raise ValueError(f"gpus_per_trial is a share of one GPU or a whole number, not {gpus}")
        if self.runner == "ray" and (self.device, gpus > 0) in {("cuda", False), ("cpu", True)}:
            raise ValueError(f"device {self.device} does not go with gpus_per_trial {gpus}")
        return self


def _study_name(value: str) -> str:
    """It stands in file names and commands."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", value) is None:
        raise ValueError(
            f"{value!r} is no name of a study: write 1 to 100 letters (a to z), digits, '_', '.' or '-', "
            "beginning with a letter or a digit"
        )
    return value


class StudyConfig(_Section):
    """A study: which model, task, space and budgets, and what they are compared with.

    Example:
        >>> study = StudyConfig.model_validate({
        ...     "name": "rte", "model": {"path": "x"}, "space": {"preset": "s3pet-l"},
        ...     "task": {"data": {"path": "glue", "name": "rte"}, "text": ["sentence1", "sentence2"]},
        ...     "budgets": {"max_trainable_params": ["0.01%", 4000]},
        ... })
        >>> study.budgets[1].max_trainable_params
        4000
    """

    name: Annotated[str, AfterValidator(_study_name)]
    model: ModelConfig
    task: TaskConfig
    space: SpaceConfig
    budgets: Annotated[
        list[BudgetConfig],
        BeforeValidator(spread_budgets),
        AfterValidator(_each_once),
        Field(min_length=1),
    ]
    search: SearchConfig = SearchConfig()
    train: TrainConfig = TrainConfig()
    outer: OuterConfig | None = None
    baselines: list[Strategy] = Field(default=["random", "lora-qv", "probe", "head", "full"])
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0]
    workers: WorkersConfig = WorkersConfig()

    _folder: Path = PrivateAttr(default_factory=Path.cwd)

    @model_validator(mode="before")
    @classmethod
    def _with_recipe(cls, value: Any) -> Any:
        """A preset's settings for search and training stand where the study says nothing else."""
        space = value.get("space") if isinstance(value, Mapping) else None
        preset = space.get("preset") if isinstance(space, Mapping) else None
        return _over(recipe(preset), value) if isinstance(preset, str) else value

    @model_validator(mode="after")
    def _no_repeats(self) -> StudyConfig:
        for key in ("seeds", "baselines"):
            values = getattr(self, key)
            if len(set(values)) != len(values):
                raise ValueError(f"{key} names something twice: {values}")
        return self

    @model_validator(mode="after")
    def _outer_fits(self) -> StudyConfig:
        if self.outer is None:
            return self
        problems = []
        if len({tuple(v is None for v in b.model_dump().values()) for b in self.budgets}) > 1:
            problems.append(
                "outer proposes between the budgets, which must all set the same limits"
            )
        for path, values in self.outer.tune.items():
            ends = values if isinstance(values, list) else [values.low, values.high]
            for value in ends:
                try:
                    self.with_settings([(path, value)])
                except ConfigError as error:
                    problems += [f"outer.tune.{problem}" for problem in error.problems]
            if path == "search.strategy" and {"head", "full"} & set(ends):
                problems.append(f"outer.tune.{path}: head and full have no budget")
        if problems:
            raise ValueError("; ".join(dict.fromkeys(problems)))
        return self

    def with_settings(self, settings: Iterable[tuple[str, Any]]) -> StudyConfig:
        """This study with some settings of ``search`` and ``train`` changed.

        Args:
            settings: Dotted paths and values, ("train.kind_lr.lora", 1e-3).

        Raises:
            ConfigError: If a path leads nowhere else, or a value is not allowed.
        """
        changed, problems = {}, []
        raw = {name: getattr(self, name).model_dump() for name in ("search", "train")}
        for path, value in settings:
            *parents, key = path.split(".")
            place: Any = raw
            for parent in parents:
                place = place.get(parent) if isinstance(place, dict) else None
            if len(parents) == 0 or not isinstance(place, dict):
                problems.append(f"{path}: no setting of search or train")
            else:
                place[key] = value
        for name, section in (("search", SearchConfig), ("train", TrainConfig)):
            try:
                changed[name] = section.model_validate(raw[name])
            except ValidationError as error:
                problems += [
                    f"{'.'.join([name, *map(str, e['loc'])])}: {e['msg'].removeprefix('Value error, ')}"
                    for e in error.errors()
                ]
        if problems:
            raise ConfigError(problems)
        return self.model_copy(update=changed)

    @property
    def folder(self) -> Path:
        """Folder that relative paths in the file start from."""
        return self._folder
