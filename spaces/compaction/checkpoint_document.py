"""`checkpoint.json`: what a slim model's folder says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from sparsearch.documents import read_json
from sparsearch.errors import StructureError

__all__ = [
    "Checkpoint",
    "Costs",
    "EXPORT_HINT",
    "checkpoint_json",
    "read_checkpoint",
]

SCHEMA_VERSION: Literal[1] = 1


DOCUMENT = "checkpoint.json"


EXPORT_HINT = "write one with `sparsearch export STRUCTURE --to checkpoint`"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Costs(_Frozen):
    """What was measured on the slim model.

    Attributes:
        backbone_params: Parameters of the whole backbone.
        slim_params: Those that are left of it, added biases among them.
        attached_params: Of the modules that stay attached.
        head_params: Of the task head.
        inference_flops_ratio: At the task's length, 1.0 = dense; None where that is not known.
        weight_sparsity: Share of zeros in the weights of the linears.
    """

    backbone_params: int
    slim_params: int
    attached_params: int
    head_params: int
    inference_flops_ratio: float | None
    weight_sparsity: float


class Checkpoint(_Frozen):
    """The content of ``checkpoint.json``.

    Attributes:
        schema_version: Of this document.
        structure: What was searched and trained, as in ``structure.json``, the backbone's identity in it.
        kept: Units that are left at each position where some were cut, counted as in the whole backbone.
        added_biases: Parameters of the model that a plain transformers model of this config lacks.
        plain: Whether transformers alone loads the folder: nothing cut, added or attached.
        sha256: Of ``model.safetensors``.
        weight_fingerprint: Of the slim backbone, as ``identify`` gives it.
        costs: What was measured.
        tokenizer: Files of the tokenizer or image processor; none where the backbone has neither.
    """

    schema_version: Literal[1]
    structure: dict[str, Any]
    kept: dict[str, tuple[int, ...]]
    added_biases: tuple[str, ...]
    plain: bool
    sha256: str
    weight_fingerprint: str
    costs: Costs
    tokenizer: tuple[str, ...]


def checkpoint_json(checkpoint: Checkpoint) -> str:
    """One field a line: lists of neurons are long."""
    fields = checkpoint.model_dump(mode="json").items()
    lines = (f" {json.dumps(name)}: {json.dumps(value)}" for name, value in fields)
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """The content of a folder's ``checkpoint.json``.

    Raises:
        StructureError: If there is none, it is malformed, or a newer version wrote it.
    """
    try:
        text = (Path(folder) / DOCUMENT).read_text(encoding="utf-8")
        raw = read_json(text)
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise StructureError(
                f"the checkpoint has schema_version {version}; this sparsearch reads up to {SCHEMA_VERSION}",
                "upgrade sparsearch",
            )
        return Checkpoint.model_validate_json(text)
    except (OSError, ValueError) as error:
        raise StructureError(
            f"cannot read a checkpoint from {str(folder)!r}: {_reason(error)}", EXPORT_HINT
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)
