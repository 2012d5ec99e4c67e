"""What a search would need, told from shapes alone: no weight is loaded, no memory taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from transformers.initialization import no_init_weights
from transformers.modeling_layers import GradientCheckpointingLayer

from sparsearch.config.tasks.types import TASK_TYPES
from sparsearch.errors import BackboneError
from sparsearch.search.bilevel.operations import MachineRates, OperationCounter, measure_rates
from sparsearch.search.bilevel.supernet import Supernet
from sparsearch.search.training.device import attention_for, autocast, uses_bf16
from sparsearch.search.training.recomputing import prepared
from sparsearch.spaces.backbone.inputs.samples import reads_text, sample_inputs
from sparsearch.spaces.space import Space

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Pass", "SearchEstimate", "estimate_search"]

_ADAM = 4
"""Numbers that a trained one needs: itself, its gradient, two moments."""
_TEMPORARIES = 1
"""Results as large as the largest one that is kept, which live beside it for a moment."""
_ANY_TASK = next(iter(TASK_TYPES))
"""No loss is asked for."""
_PASSES = 2
"""Of a first-order step: one for the gates, one for the modules."""


@dataclass(frozen=True)
class Pass:
    """The size and the form of a pass.

    Attributes:
        rows: Of a batch.
        tokens: Of a row, padding counted; an image has as many as the model makes of it.
        precision: ``fp32``, ``bf16`` or ``auto``.
        recompute: Whether layers run again in the backward pass (``train.checkpointing``).
    """

    rows: int = 32
    tokens: int = 128
    precision: str = "auto"
    recompute: bool = False


@dataclass(frozen=True)
class SearchEstimate:
    """What a first-order search would need.

    Attributes:
        weight_bytes: The backbone in float32, and its linears in bf16 where they are cast once.
        module_bytes: Everything attached, with gradients and the optimiser's moments.
        activation_bytes: What a pass keeps for its gradient, and the temporaries beside it.
        flops: Of a step: two passes forward and backward.
        step_seconds: Of a step, at the rates that this machine has shown.
        flops_per_second: Of those rates, that of products of matrices in the precision of the pass.
        bytes_per_second: That of all other operations.
    """

    weight_bytes: int
    module_bytes: int
    activation_bytes: int
    flops: int
    step_seconds: float
    flops_per_second: float
    bytes_per_second: float

    @property
    def peak_bytes(self) -> int:
        """All of it together; what the program itself takes comes on top."""
        return self.weight_bytes + self.module_bytes + self.activation_bytes


def estimate_search(
    build: Callable[[], PreTrainedModel],
    space_of: Callable[[nn.Module], Space],
    shape: Pass,
    rates: MachineRates | None = None,
) -> SearchEstimate:
    """Estimate a first-order search over a space.

    A pass of the whole space runs on tensors that have shapes alone (torch's ``FakeTensorMode``): what autograd keeps
    is added up, and every operation is counted. The head is left out: a classifier's is small, a language model's adds
    at most 0.2 GB and, per learnt token, what its output embeddings cost.

    Args:
        build: Makes the model from its config.
        space_of: Lists the space on it.
        shape: Of a batch.
        rates: Of this machine; measured here if not given.

    Raises:
        BackboneError: If the model reads neither tokens nor images, or asks for numbers where shapes alone are known,
            as routers of experts do.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        with no_init_weights():  # some initialisers look at what they have drawn
            model = build().eval()
        whole = sum(p.numel() * p.element_size() for p in model.parameters())
        space = space_of(model)
        try:
            supernet = Supernet(model, space, _ANY_TASK, shape.precision)
            trained = sum(p.numel() for p in supernet.attachment.parameters())
            found = _pass_of(supernet, space, shape, recompute=shape.recompute)
            if shape.recompute:  # one layer at a time keeps what it would keep without
                layers = sum(isinstance(m, GradientCheckpointingLayer) for m in model.modules())
                plain = _pass_of(supernet, space, shape, recompute=False)
                found = replace(
                    found,
                    kept=found.kept + (plain.kept - found.kept) // layers,
                    largest=plain.largest,
                )
        except (RuntimeError, NotImplementedError) as error:
            raise BackboneError(
                f"what a pass of a {type(model).__name__} costs cannot be told from its shapes: "
                f"{type(error).__name__}: {str(error).splitlines()[0]}",
                "leave --estimate out, and try a few steps: --set search.steps=3",
            ) from error
    width = int(model.config.get_text_config().hidden_size)
    rates = rates or measure_rates(shape.rows, shape.tokens, width, shape.precision)
    kind = torch.bfloat16 if uses_bf16(torch.device("cpu"), shape.precision) else torch.float32
    return SearchEstimate(
        whole + found.cast,
        4 * _ADAM * (trained + len(space.candidates)),
        found.kept + _TEMPORARIES * found.largest,
        _PASSES * found.work.flops,
        _PASSES * sum(map(rates.seconds, found.work.operations)),
        rates.products[kind],
        rates.bytes,
    )


@dataclass(frozen=True)
class _Counts:
    """Of one pass: bytes of weights that are cast once, of what is kept, of the largest of that; all operations."""

    cast: int
    kept: int
    largest: int
    work: OperationCounter


def _pass_of(supernet: Supernet, space: Space, shape: Pass, *, recompute: bool) -> _Counts:
    """Run a pass forward and backward, on shapes alone."""
    model: Any = supernet.model
    inputs = sample_inputs(model, shape.rows, shape.tokens)
    device = next(iter(inputs.values())).device
    tokens = shape.tokens if reads_text(model) else None
    kept: dict[int, Any] = {}
    z = torch.full((len(space.candidates),), 0.5, requires_grad=True)
    counter = OperationCounter()
    with prepared(model, shape.precision, recompute), counter:
        known = {p.untyped_storage()._cdata for p in model.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                kept[storage._cdata] = storage  # held, so that no other takes its place
            return tensor

        with (
            supernet.attachment.gated(z),
            saved_tensors_hooks(keep, lambda tensor: tensor),
            autocast(device, shape.precision),
            attention_for(model, tokens, shape.precision),
        ):
            out = model.base_model(**inputs)[0]
        weights = [p for p in supernet.attachment.parameters() if p.requires_grad]
        torch.autograd.grad(out.float().sum(), [z, *weights], allow_unused=True)
        cast = sum(p.numel() * 2 for p in model.parameters() if p.dtype == torch.bfloat16)
    sizes = [storage.nbytes() for storage in kept.values()]
    return _Counts(cast, sum(sizes), max(sizes), counter)
