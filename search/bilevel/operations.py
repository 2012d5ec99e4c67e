"""What the operations of a pass cost: counted on tensors that have shapes alone, at rates that this machine shows.

An operation takes as long as its arithmetic or its traffic, whichever is longer (the roofline model, Williams et al.
2009), and what calling it takes. Products of matrices have a rate of their own, one for each type of numbers; all
others are bound by memory.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from sparsearch.search.training.device import uses_bf16

__all__ = ["MachineRates", "Operation", "OperationCounter", "measure_rates"]

_WIDEST = 1024
"""Wider products are hardly faster."""
_MOST_TOKENS = 2048
_ROUNDS = 5
_FREE = frozenset({"_unsafe_view"})
"""Views that torch does not call so."""
_GATHERS = frozenset({"embedding"})
"""They read as much as they write."""
_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
"""The operation that torch has no formula for."""


@dataclass(frozen=True)
class Operation:
    """One operation of a pass.

    Attributes:
        flops: 0 of what is no product of matrices.
        bytes: Read and written.
        dtype: Of the numbers of a product.
        batched: Whether it is a product of many small matrices.
    """

    flops: int
    bytes: int
    dtype: torch.dtype
    batched: bool


@dataclass(frozen=True)
class MachineRates:
    """What this machine does in a second.

    Attributes:
        products: FLOPs of products of matrices, by type; float32 stands for any other.
        batched: Those of many small matrices.
        bytes: Read and written by an operation on each number of a tensor.
        call_seconds: What each operation takes beside its work.
    """

    products: Mapping[torch.dtype, float]
    batched: Mapping[torch.dtype, float]
    bytes: float
    call_seconds: float

    def seconds(self, operation: Operation) -> float:
        """How long an operation takes."""
        rates = self.batched if operation.batched else self.products
        rate = rates.get(operation.dtype, rates[torch.float32])
        arithmetic = operation.flops / rate
        return self.call_seconds + max(operation.bytes / self.bytes, arithmetic)


@dataclass
class OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation inside its context, those of the backward pass too; views cost nothing."""

    operations: list[Operation] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation, and note it."""
        out = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        name = func._overloadpacket.__name__
        if not made or func.is_view or name in _FREE:
            return out
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        flops = _flops(func._overloadpacket, args, kwargs or {}, out)
        moved = made + (made if name in _GATHERS else given)
        dtype = (given or made)[0].dtype
        batched = bool(flops) and made[0].dim() == 3
        self.operations.append(Operation(flops, sum(map(_bytes, moved)), dtype, batched))
        return out

    @property
    def flops(self) -> int:
        """Of all of them."""
        return sum(one.flops for one in self.operations)


def _bytes(tensor: Tensor) -> int:
    """Of its own numbers: an expanded tensor has fewer than it shows."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _flops(packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=out))
    if packet.__name__ == _ATTENTION:
        return int(sdpa_flop_count(*(x.shape for x in args[:3])))  # type: ignore[no-untyped-call]
    if packet.__name__ == f"{_ATTENTION}_backward":
        return int(sdpa_backward_flop_count(*(x.shape for x in args[:4])))  # type: ignore[no-untyped-call]
    return 0


def measure_rates(
    rows: int,
    tokens: int,
    width: int,
    precision: str = "auto",
    clock: Callable[[], float] = time.perf_counter,
) -> MachineRates:
    """Rates of this machine, medians of a few short runs.

    Args:
        rows: Of a batch.
        tokens: Of a row; 2,048 in all are enough.
        width: Of the model, at most 1,024.
        precision: Of the pass; bf16 is measured where it is used.
        clock: Seconds; ``time.process_time`` where others use the same processor, and torch one thread.
    """
    count, width = min(_MOST_TOKENS, rows * tokens), min(_WIDEST, width)
    matrices = max(1, count * width // (64 * tokens))
    products, batched = {}, {}
    types = [torch.float32]
    if uses_bf16(torch.device("cpu"), precision):
        types.append(torch.bfloat16)
    for dtype in types:
        x, square = (torch.randn(n, width).to(dtype) for n in (count, width))
        wide = torch.randn(4 * width, width).to(dtype)
        taken = _typical(lambda x=x, a=square, b=wide: x @ a @ b.T @ b, clock)  # type: ignore[misc]
        products[dtype] = 2 * 9 * count * width**2 / taken
        heads = torch.randn(matrices, tokens, 64).to(dtype)
        taken = _typical(lambda x=heads: x @ x.mT @ x, clock)  # type: ignore[misc]
        batched[dtype] = 2 * 2 * matrices * tokens**2 * 64 / taken
    large, small = (torch.randn(n, 4 * width, requires_grad=True) for n in (count, 1))
    with OperationCounter() as counter:
        _pointwise(large)
    moved = sum(one.bytes for one in counter.operations)
    call = _typical(lambda: _pointwise(small), clock) / len(counter.operations)
    return MachineRates(
        products, batched, moved / _typical(lambda: _pointwise(large), clock), call
    )


def _pointwise(x: Tensor) -> None:
    """What lies between the products of a layer, forward and backward."""
    y = nn.functional.gelu(nn.functional.layer_norm(x, x.shape[-1:])) + x
    torch.autograd.grad((y.softmax(-1) * x).sum(), x)


def _typical(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds of the median of some runs."""
    taken = []
    for _ in range(_ROUNDS):
        started = clock()
        run()
        taken.append(clock() - started)
    return statistics.median(taken)
