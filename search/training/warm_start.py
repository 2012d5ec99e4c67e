"""What trials of one seed start from: a head that has learnt alone, and directions found over it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import safetensors.torch
import torch
from torch import Tensor, nn

from sparsearch.config.train import TrainConfig
from sparsearch.search.phases import phase
from sparsearch.search.tasks.task import Task
from sparsearch.search.training.device import is_out_of_memory
from sparsearch.search.training.gradients import (
    brief_changes,
    sample_losses,
    sample_rows,
    warm_head,
)
from sparsearch.search.training.seeds import seed_everything
from sparsearch.search.training.train import Observer, silent
from sparsearch.spaces.backbone.parameters import (
    base_of,
    head_parameters,
    host_weight,
    positions_of,
    replaced_weights,
)
from sparsearch.spaces.calibration.calibrate import Aligning, Bases, find_bases, hosts_by_weight
from sparsearch.spaces.families.position import MATRICES

__all__ = ["Once", "WarmStart", "WarmStarts", "new_head"]


@dataclass(frozen=True)
class WarmStart:
    """A pure function of backbone, task, seed, rows, steps and precision, the same for every structure.

    Attributes:
        head: Parameters of the warm head by name; with ``weights``, of the head that they left.
        bases: What the gradient, or a brief fine-tuning, chose for units.
        weights: Path of a linear -> the weight that a brief fine-tuning left; only where tickets start from there,
            and the bases are then of the backbone with these.
    """

    head: Mapping[str, Tensor]
    bases: Bases
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """As the bytes of a safetensors file, for another process."""
        tensors = {f"head/{name}": tensor for name, tensor in self.head.items()}
        for (position, kind), basis in self.bases.items():
            tensors |= {f"basis/{position}/{kind}/{i}": part for i, part in enumerate(basis)}
        tensors |= {f"weight/{path}": tensor for path, tensor in self.weights.items()}
        return safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()})

    @classmethod
    def from_bytes(cls, data: bytes, device: torch.device) -> WarmStart:
        """What ``to_bytes`` packed, on a device."""
        head: dict[str, Tensor] = {}
        weights: dict[str, Tensor] = {}
        bases: dict[tuple[str, str], dict[int, Tensor]] = {}
        for key, tensor in safetensors.torch.load(data).items():
            what, _, name = key.partition("/")
            if what == "head":
                head[name] = tensor.to(device)
            elif what == "weight":
                weights[name] = tensor.to(device)
            else:
                position, kind, number = name.split("/")
                bases.setdefault((position, kind), {})[int(number)] = tensor.to(device)
        ordered = {k: tuple(parts[i] for i in sorted(parts)) for k, parts in bases.items()}
        return cls(head, ordered, weights)

    @torch.no_grad()
    def load_head(self, model: nn.Module) -> None:
        """Put the warm head on a model."""
        for name, parameter in head_parameters(model):
            parameter.copy_(self.head[name])

    @torch.no_grad()
    def load_weights(self, model: nn.Module) -> None:
        """Write the weights into a copy of the backbone."""
        for path, weight in self.weights.items():
            host_weight(base_of(model), path).copy_(weight)

    def weights_in_place(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """The weights in the place of the backbone's own, inside the context."""
        weights = {k: nn.Parameter(w, requires_grad=False) for k, w in self.weights.items()}
        return replaced_weights(model, weights)


Once = Callable[[str, Callable[[], WarmStart]], WarmStart]
"""Makes the start of a key, or has it from where it was made."""


def _at_once(key: str, make: Callable[[], WarmStart]) -> WarmStart:
    return make()


class WarmStarts:
    """Makes warm starts, and remembers the last few: they cost as much as a short training.

    Args:
        model: The backbone with a head; nothing attached when a start is asked for.
        task: Its training split is sampled.
        config: Precision, and what the start is made of: rows, steps, whether tickets start from it.
        once: Where other processes share them.
        most: How many are remembered.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        config: TrainConfig,
        once: Once | None = None,
        most: int = 4,
    ) -> None:
        self.model, self.task, self.config = model, task, config
        self.once, self.most = once or _at_once, most
        self._known: dict[tuple[tuple[int, ...], frozenset[object]], WarmStart] = {}

    def with_config(self, config: TrainConfig) -> WarmStarts:
        """The same starts, made as other settings say."""
        other = copy.copy(self)
        other.config = config
        return other

    def get(
        self, seed: int, aligning: Aligning, observe: Observer = silent, *, late: bool = False
    ) -> WarmStart:
        """The start of a seed, with bases for these kinds at these positions.

        Args:
            seed: Of the rows, the head, and the order of the batches.
            aligning: The kinds and positions.
            observe: Told of its steps.
            late: Whether it is for a ticket, which starts from what the brief fine-tuning left, if the study says so
                (late rewinding, Frankle et al. 2020).
        """
        late = late and self.config.steps_before_cut > 0
        rows, steps, wanted = self.config.start_rows, self.config.start_steps, set(aligning)
        made_as = (seed, rows, steps, late)
        for (others, has), start in self._known.items():
            if others == made_as and wanted <= has:  # no basis depends on what else aligns
                return start
        name = f"{seed} {rows} {steps} {late} {[(p.name, repr(kind)) for p, kind in aligning]}"
        with phase("warm start"):
            found = self.once(name, lambda: self._make(seed, aligning, observe, late))
        for old in list(self._known)[: max(0, len(self._known) + 1 - self.most)]:
            del self._known[old]
        self._known[made_as, frozenset(wanted)] = found
        return found

    def _make(self, seed: int, aligning: Aligning, observe: Observer, late: bool) -> WarmStart:
        steps, precision = self.config.start_steps, self.config.precision
        sample = sample_rows(self.task, seed, self.config.start_rows)
        new_head(self.model, self.task, seed, "warm head")
        warm_head(self.model, self.task, sample, seed, precision)
        losses = sample_losses(self.model, self.task, sample, precision)
        start = WarmStart({n: p.detach().clone() for n, p in head_parameters(self.model)}, {})
        changes = None
        if steps and (late or hosts_by_weight(aligning)):
            changes, head = self._changes(seed, observe)
            if late:
                start = WarmStart(head, {}, self._changed(changes))
                start.load_head(self.model)
        with start.weights_in_place(self.model):
            return replace(start, bases=find_bases(self.model, aligning, losses, changes))

    @torch.no_grad()
    def _changed(self, changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        base = base_of(self.model)
        return {path: host_weight(base, path) + change for path, change in changes.items()}

    def _changes(
        self, seed: int, observe: Observer
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Of all matrices together, whichever of them are asked for."""
        matrices = [p.host for p in positions_of(self.model) if p.role in MATRICES]
        hosts = list(dict.fromkeys(matrices))
        try:
            return brief_changes(self.model, self.task, hosts, self.config, seed, observe)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(
                "the brief fine-tuning does not fit into memory; set train.start_steps: 0 for directions of the "
                f"gradient, or tickets of the pretrained weights ({error})"
            ) from error


@torch.no_grad()
def new_head(model: nn.Module, task: Task, *seed_parts: object) -> None:
    """Draw the task head anew: matrices N(0, initializer_range), gains of norms one, other vectors zero.

    The outputs' bias is ``constant_answer`` of the task's type. An output layer without a bias has none.
    """
    seed_everything(*seed_parts)
    std = getattr(model.config, "initializer_range", None) or 0.02
    answer = task.behaviour.constant_answer(task.train)
    bias = None
    for name, parameter in head_parameters(model):
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=std)
        elif name.endswith("weight"):
            torch.nn.init.ones_(parameter)
        else:
            torch.nn.init.zeros_(parameter)
            bias = parameter  # the last one is the outputs'
    if answer is not None and bias is not None and bias.shape == answer.shape:
        bias.copy_(answer)
