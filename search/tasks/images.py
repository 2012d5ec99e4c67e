"""Images of rows: found below the folder of their data file, and nowhere else."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsearch.errors import DataError
from sparsearch.search.tasks.data_files import Rows

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ImageSource", "images_below", "in_row", "open_image"]


@dataclass(frozen=True)
class ImageSource:
    """An image as a row names it.

    Attributes:
        value: A path, or what ``datasets`` makes of an image: ``{"bytes": ..., "path": ...}``.
        roots: Folders below which a file must lie; a relative path starts in the first.
    """

    value: Any
    roots: tuple[Path, ...]

    @property
    def path(self) -> Path | None:
        """The file, links followed; None where the row holds the image itself.

        Raises:
            DataError: If the row names no file, or none that is there and below a root.
        """
        value = self.value
        if isinstance(value, dict):
            if value.get("bytes") is not None:
                return None
            value = value.get("path")
        if not isinstance(value, str) or not value:
            raise DataError(
                f"it holds no image: {self.value!r:.60}", "write the path of an image file"
            )
        root = self.roots[0]
        try:
            found = (root / value).resolve(strict=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(
                f"there is no file {value!r} in {root}",
                "correct the path: it starts in that folder",
            ) from error
        if not any(found.is_relative_to(allowed.resolve()) for allowed in self.roots):
            raise DataError(
                f"{value!r} lies outside {root}",
                "put the images beside the data file or below it: no other folder is read",
            )
        return found

    @property
    def content(self) -> bytes:
        """The bytes of the image.

        Raises:
            DataError: If the file cannot be found or read.
        """
        path = self.path
        if path is None:
            return bytes(self.value["bytes"])
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{self.value!r} cannot be read: {error.strerror}") from error


def open_image(source: ImageSource) -> Image.Image:
    """An image in red, green and blue, upright as its camera says; transparency is dropped, 16 bits become 8.

    Raises:
        DataError: If it cannot be found, is no image that Pillow reads, or its shades have no known range.
    """
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(source.content)) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):  # Pillow would cut shades off, not scale them
                upright = Image.fromarray((np.asarray(upright) // 256).astype(np.uint8))
            if upright.mode in ("I", "F"):
                raise ValueError("numbers of 32 bits have no known range of shades")
            return upright.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        name = source.path
        raise DataError(
            f"{str(name) if name else 'the image in the row'!r} is no image that Pillow reads: {error}",
            "mend the file, or leave the row out",
        ) from error


@contextlib.contextmanager
def in_row(split: str, row: int, column: str) -> Iterator[None]:
    """Names the row in whatever is wrong with its image."""
    try:
        yield
    except DataError as error:
        raise DataError(
            f"split {split!r}, row {row}: column {column!r}: {error.message}", error.hint
        ) from error


def images_below(rows: Rows, columns: Collection[str], *roots: Path) -> Rows:
    """Rows whose images are looked up in some folders, see ``ImageSource``."""
    found = {c: [ImageSource(v, roots) for v in rows.columns[c]] for c in columns}
    return replace(rows, columns={**rows.columns, **found})
