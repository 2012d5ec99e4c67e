"""Image classification: one of several classes for each image."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import psutil
import torch
from torch import Tensor

from sparsearch.config.tasks.task import TaskConfig
from sparsearch.errors import BackboneError, DataError
from sparsearch.search.tasks.checks import text_warnings
from sparsearch.search.tasks.data_files import Rows
from sparsearch.search.tasks.images import ImageSource, in_row, open_image
from sparsearch.search.tasks.task import Split
from sparsearch.search.tasks.types.classification import Classification
from sparsearch.spaces.backbone.inputs.readers import process_image

__all__ = ["ImageClassification"]


class ImageClassification(Classification):
    """As classification, of images in the place of texts."""

    def columns(self, config: TaskConfig) -> tuple[str, ...]:
        """The image and the label."""
        return (*config.images, config.label)

    def row_warnings(self, config: TaskConfig, rows: Mapping[str, Rows]) -> list[str]:
        """Each row must have its image; equal ones may not stand in two splits without a warning."""
        (column,) = config.images
        digests: dict[str, dict[str, list[str]]] = {}
        for split, part in rows.items():
            found = []
            for row, source in enumerate(part.columns[column]):
                with in_row(split, row, column):
                    found.append(hashlib.sha256(source.content).hexdigest())
            digests[split] = {column: found}
        return text_warnings(digests)

    def read_split(
        self,
        config: TaskConfig,
        split: str,
        rows: Rows,
        labels: Tensor,
        processor: Any,
        limit: int,
    ) -> Split:
        """Pixels as the model's processor makes them, all of one size."""
        (column,) = config.images
        sources: list[ImageSource] = list(rows.columns[column])
        pixels: Tensor | None = None
        for row, source in enumerate(sources):
            with in_row(split, row, column):
                image = open_image(source)
                try:
                    found = process_image(processor, image)["pixel_values"][0]
                except BackboneError as error:
                    raise DataError(error.message, error.hint) from error
                if pixels is None:
                    pixels = _room(len(sources), found)
                if found.shape != pixels.shape[1:]:
                    raise DataError(
                        f"the image of {image.width} x {image.height} becomes {tuple(found.shape)}, that of row 0 "
                        f"{tuple(pixels.shape[1:])}",
                        "let the processor bring all to one size (preprocessor_config.json: size with height and "
                        "width, or do_center_crop), or crop the files",
                    )
                pixels[row] = found
        assert pixels is not None, "a split has rows"
        lengths = torch.full((len(sources),), limit)
        return Split({"pixel_values": pixels}, lengths, labels, token_inputs=False)


def _room(rows: int, first: Tensor) -> Tensor:
    """An empty tensor for as many images as the first.

    Raises:
        DataError: If the machine has not that much memory.
    """
    wanted, free = rows * first.nbytes, psutil.virtual_memory().available
    if wanted > free:
        raise DataError(
            f"{rows} images of {tuple(first.shape)} take {wanted / 2**30:.1f} GiB of memory, of which "
            f"{free / 2**30:.1f} are free",
            "set task.max_train_rows, or name a smaller split",
        )
    return first.new_empty((rows, *first.shape))
