"""Fields that sections of a study file share."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

__all__ = ["Number", "Positive", "Rate", "Section"]


def _number(value: Any) -> Any:
    """YAML reads 1e-4 (no point) as text; a person means the number."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[Number, Field(gt=0, le=10)]


class Section(BaseModel):
    """Unknown keys are errors, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
