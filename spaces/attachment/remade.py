"""What is made again from the backbone where a structure is attached, and has to be what it was trained with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import nn

from sparsearch.errors import StructureError
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.attachment.elsewhere import check_here

__all__ = ["check_remade", "remade_metadata"]

_KEY = "remade"


def remade_metadata(model: nn.Module) -> dict[str, str]:
    """What a file of weights says of whole numbers that it leaves out: a checksum; nothing where there are none."""
    attachment = attachment_of(model)
    digest, any_remade = hashlib.sha256(), False
    for slot in attachment.slots if attachment is not None else ():
        for numbers in slot.unit.remade():
            check_here(numbers, slot.learnt)
            digest.update(numbers.cpu().numpy().tobytes())
            any_remade = True
    return {_KEY: digest.hexdigest()[:16]} if any_remade else {}


def check_remade(model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Refuse weights that were trained with other places than those that this backbone gives here.

    Args:
        model: With the structure attached.
        metadata: Of the file of the weights; one without a checksum is taken as it is.

    Raises:
        StructureError: If the checksums differ.
    """
    here, there = remade_metadata(model).get(_KEY), metadata.get(_KEY)
    if there is not None and here != there:
        raise StructureError(
            f"the places that were found again in the backbone's weights (checksum {here}) are not those that the "
            f"structure was trained with ({there})",
            "load the backbone that the structure names, with its original weights; or train with "
            "sparse_delta: {indices: stored}, whose file holds the places",
        )
