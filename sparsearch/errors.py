"""Every error a user can meet: one root, each with a hint that names the next step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "BackboneError",
    "Cancelled",
    "ConfigError",
    "DataError",
    "ExportError",
    "InfeasibleError",
    "LeaseError",
    "MissingStoreError",
    "ModelStateError",
    "NotFoundError",
    "SparsearchError",
    "Stopped",
    "StoreError",
    "StructureError",
    "TrainingDiverged",
    "WorkersError",
]


class SparsearchError(Exception):
    """Root of all errors raised on purpose.

    Args:
        message: What happened, with which value, and what is allowed.
        hint: The next thing to type or to change.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args, self.__dict__)


def _restored(
    kind: type[SparsearchError], args: tuple[Any, ...], state: Mapping[str, Any]
) -> SparsearchError:
    """An error as it was in the process that raised it; subclasses take other arguments than they keep."""
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigError(SparsearchError):
    """A study file (or its Python form) or a setting is wrong; carries every problem found at once."""

    exit_code = 2

    def __init__(self, problems: Sequence[str], hint: str = "") -> None:
        self.problems = tuple(problems)
        message = "".join(self.problems)
        if len(self.problems) > 1:
            lines = "\n".join(f"  - {problem}" for problem in self.problems)
            message = f"{len(self.problems)} problems:\n{lines}"
        super().__init__(message, hint)


class InfeasibleError(SparsearchError):
    """No structure fits the budget.

    Args:
        message: What does not fit.
        hint: What to change.
        least_params: Trainable parameters of the smallest structure, 0 where they are not what is missing.
        least_flops: Share of the dense backbone's FLOPs that can be reached.
    """

    exit_code = 3

    def __init__(
        self, message: str, hint: str = "", least_params: int = 0, least_flops: float = 1.0
    ) -> None:
        super().__init__(message, hint)
        self.least_params, self.least_flops = least_params, least_flops


class BackboneError(SparsearchError):
    """The model cannot be loaded, or its family is not in the table of positions."""

    exit_code = 2


class DataError(SparsearchError):
    """A data set is missing, empty, or its columns or labels do not fit the task."""

    exit_code = 2


class StructureError(SparsearchError):
    """A structure file is malformed or does not belong to this backbone."""


class ModelStateError(BackboneError, StructureError):
    """A loaded model is in a state that rules the work out: wrapped, offloaded, quantised and so on.

    It is both a ``BackboneError`` (the model is at fault) and a ``StructureError`` (nothing can be attached).
    """


class StoreError(SparsearchError):
    """The database cannot be opened, is of another version, or lacks what was asked for."""


class MissingStoreError(StoreError):
    """There is no database yet, or an empty file."""


class NotFoundError(StoreError):
    """The database has no study, trial or structure of that name, or several that it may mean."""


class LeaseError(StoreError):
    """Another driver holds the study."""


class ExportError(SparsearchError):
    """An export could not be written or did not survive its round trip."""


class TrainingDiverged(SparsearchError):
    """A loss or a gradient became NaN or infinite."""


class Cancelled(SparsearchError):
    """A trial was stopped before its end."""


class Stopped(SparsearchError):
    """A study was asked to stop before its end."""


class WorkersError(SparsearchError):
    """Workers cannot be started, or do not stay alive."""
