"""How llama.cpp keeps the families whose GGUF files hold each linear by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["GGUF", "GgufNames"]


@dataclass(frozen=True)
class GgufNames:
    """A family in GGUF files.

    Attributes:
        architecture: Its name there.
        permuted: Whether rows of queries and keys are in another order: each head's two halves, which transformers
            rotates against each other, stand in turns.
    """

    architecture: str
    permuted: bool = False


GGUF: Mapping[str, GgufNames] = {
    "gemma": GgufNames("gemma"),
    "gemma2": GgufNames("gemma2"),
    "gemma3_text": GgufNames("gemma3"),
    "llama": GgufNames("llama", permuted=True),
    "mistral": GgufNames("llama", permuted=True),
    "qwen2": GgufNames("qwen2"),
    "qwen3": GgufNames("qwen3"),
}
"""By ``config.model_type``."""
