"""What a structure can be exported to."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["ExportFormat", "ServingFormat"]


class ExportFormat(StrEnum):
    """What ``export`` writes.

    ``spec`` is structure.json and weights; ``peft`` an adapter folder, ``peft-one-rank`` one whose LoRA have the same
    rank, ``peft-set`` one for each of PEFT's types; ``gguf-lora`` a LoRA for llama.cpp; ``checkpoint`` a merged,
    smaller model.
    """

    spec = "spec"
    peft = "peft"
    peft_one_rank = "peft-one-rank"
    peft_set = "peft-set"
    gguf_lora = "gguf-lora"
    checkpoint = "checkpoint"


class ServingFormat(StrEnum):
    """What may stand beside a checkpoint."""

    onnx = "onnx"
    torch = "torch"
