"""What a structure can be exported to."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["ExportFormat", "ServingFormat"]


class ExportFormat(StrEnum):
    """What ``export`` writes: structure.json and weights; an adapter folder for PEFT; a merged, smaller model."""

    spec = "spec"
    peft = "peft"
    checkpoint = "checkpoint"


class ServingFormat(StrEnum):
    """What may stand beside a checkpoint."""

    onnx = "onnx"
    torch = "torch"
