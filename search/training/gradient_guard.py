"""A guard against training that does nothing: attached parameters that no gradient reaches."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from sparsearch.errors import ModelStateError
from sparsearch.spaces.attachment.attached_unit import AttachedUnit
from sparsearch.spaces.attachment.attachment import Attachment

__all__ = ["GradientGuard"]

_CHECK_EVERY = 20
_NAMED = 3


class GradientGuard:
    """Notices attached parameters without a gradient; once each had one, it has nothing more to do.

    A backbone may pass no gradient on, without an error: torchao's int8 activations do so. A gradient of zeros
    counts. Left out are units that are idle, and the scores of masks, which learn at times only.

    Args:
        attachment: What trains; None where nothing is attached.
        phase: ``training`` or ``search``, for the message.
    """

    def __init__(self, attachment: Attachment | None, phase: str) -> None:
        self.phase = phase
        slots = attachment.slots if attachment is not None else []
        self._waiting: dict[Tensor, tuple[AttachedUnit, str]] = {
            parameter: (slot, f"{slot.position.name}:{slot.kind.name}.{name}")
            for slot in slots
            if slot.kind.stage(slot.position) != "mask"
            for name, parameter in slot.unit.named_parameters()
            if parameter.requires_grad
        }

    def see(self, step: int, reached: Iterable[Tensor]) -> None:
        """Take note of the parameters that a step's gradient reached; looks now and then.

        Raises:
            ModelStateError: See ``look``.
        """
        if self._waiting:
            for parameter in reached:
                self._waiting.pop(parameter, None)
            if step % _CHECK_EVERY == 0:
                self.look()

    def look(self) -> None:
        """Check that each parameter had a gradient.

        Raises:
            ModelStateError: If some had none; the message names them.
        """
        names = [name for slot, name in self._waiting.values() if not slot.idle]
        if names:
            raise ModelStateError(
                f"the {self.phase} sends no gradient to {len(names)} attached parameters: "
                f"{', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''}",
                "load the model without quantisation; its layers must pass gradients on to their inputs",
            )
