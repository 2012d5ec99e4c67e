"""Where and how precisely to compute."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from sparsearch.errors import ConfigError
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.kinds.module_base import Unit

__all__ = [
    "attention_for",
    "autocast",
    "castable",
    "choose_device",
    "frozen_cast_once",
    "is_out_of_memory",
    "peak_bytes",
    "remember_cast",
    "reset_peak",
    "uses_bf16",
]


def choose_device(wanted: str) -> torch.device:
    """``auto`` takes CUDA where it is present.

    Raises:
        ConfigError: If CUDA is wanted and absent.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            ["workers.device is cuda, but torch sees no CUDA device; use auto or cpu"]
        )
    return torch.device(wanted)


def computes_bf16(device: torch.device) -> bool:
    """Whether the processor multiplies bf16 matrices natively (AMX or AVX512-BF16; Ampere and later)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    found = torch.cpu.get_capabilities()
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))


def uses_bf16(device: torch.device, precision: str) -> bool:
    """Whether autocast computes in bf16."""
    return precision == "bf16" or (precision == "auto" and computes_bf16(device))


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context of one forward pass. Entered anew per forward: a longer one keeps stale casts of weights."""
    if uses_bf16(device, precision):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


_SHORT = 128


@contextlib.contextmanager
def attention_for(model: nn.Module, tokens: int | None, precision: str) -> Iterator[None]:
    """The attention of one forward: in bf16 on a CPU, plain products up to 128 tokens.

    The fused CPU kernel is 1.5 to 7 times slower there, and its fallback computes in float32.
    """
    config: PreTrainedConfig = model.config
    before, device = config._attn_implementation, next(model.parameters()).device
    if (
        before != "sdpa"
        or tokens is None
        or tokens > _SHORT
        or device.type != "cpu"
        or not uses_bf16(device, precision)
    ):
        yield
        return
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before


_CAST = "sparsearch_bf16"


def castable(
    model: nn.Module, without: Collection[int] = ()
) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and float32 tensors of the matrices that autocast would cast, but of modules with some ids.

    Output embeddings that are tied to those of the input are left out: autocast leaves what the input's give.
    """
    tied = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D | Unit) and id(module) not in without:
            tensors = *module.named_parameters(recurse=False), *module.named_buffers(recurse=False)
            for name, tensor in tensors:
                if tensor.dtype == torch.float32 and id(tensor) not in tied:
                    yield f"{path}.{name}", tensor


def remember_cast(tensor: torch.Tensor, cast: torch.Tensor) -> None:
    """A frozen tensor's bf16 form, to be held in its place by ``frozen_cast_once``; copies do not have it."""
    setattr(tensor, _CAST, cast)


@contextlib.contextmanager
def frozen_cast_once(model: nn.Module, precision: str) -> Iterator[None]:
    """Hold frozen matrices in bf16 inside the context, where autocast would cast them anew in every forward.

    The numbers are those of autocast. On leaving, each parameter has its own float32 storage
    again, never written to. Masked linears stay as they are: they round W + dW, and only the sum, or
    small changes of a rounded weight would be lost.
    """
    device = next(model.parameters()).device
    attachment = attachment_of(model)
    masked = {id(m.module) for m in attachment.masked} if attachment is not None else set()
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    if uses_bf16(device, precision):
        kept = [(t, t.data) for _, t in castable(model, masked) if not t.requires_grad]
    try:
        for parameter, data in kept:
            cast = getattr(parameter, _CAST, None)
            parameter.data = data.to(torch.bfloat16) if cast is None else cast
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data


def reset_peak(device: torch.device) -> None:
    """Start measuring peak memory anew (on Linux and CUDA; elsewhere the process's peak counts)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Peak since ``reset_peak``: of the GPU, or resident memory of the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        status = Path("/proc/self/status").read_text()
        line = next(row for row in status.splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return int(psutil.Process().memory_info().rss)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
