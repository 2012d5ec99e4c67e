"""What differs between models of text and of images, wherever a model's folder says how it is fed."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsearch.errors import BackboneError
from sparsearch.spaces.backbone.loading import (
    check_padding_token,
    load_from,
    load_tokenizer,
    locate,
)
from sparsearch.spaces.backbone.tokens import (
    count_tokens,
    longest_input,
    most_tokens,
    pads_as_configured,
)

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

__all__ = ["READERS", "Reader", "process_image"]

_COLOURS = 3
"""Channels of an image as it is read."""


class Reader(ABC):
    """How a model is fed. It holds nothing.

    Attributes:
        files: One of these is in every folder that has what ``load`` loads.
        content: Those on which it depends what a model is fed, in a folder that has them.
        missing: What to say of an export where none is.
        settings: Keys of a model's config that belong to it.
        argument: Of a pipeline of transformers, that takes what ``load`` loads.
    """

    files: tuple[str, ...]
    content: tuple[str, ...]
    missing: str
    argument: str
    settings: tuple[str, ...] = ()

    @abstractmethod
    def load(self, path: str, revision: str | None = None) -> Any:
        """The tokenizer or processor of a model, as ``locate`` returns its path.

        Raises:
            BackboneError: If there is none, or a package that it needs is not installed.
        """

    @abstractmethod
    def check(self, path: str, config: Any, processor: Any) -> None:
        """Refuse a processor that does not belong to the model.

        Raises:
            BackboneError: If so.
        """

    @abstractmethod
    def most_tokens(
        self, config: Any, processor: Any, build: Callable[[], nn.Module]
    ) -> int | None:
        """Tokens that a row of this model has at most, None without limit.

        Args:
            config: Of the model.
            processor: What ``load`` gave.
            build: Gives the model, on the meta device too, where its config is not enough.

        Raises:
            BackboneError: If the model does not take what the processor makes.
        """

    @abstractmethod
    def row_tokens(self, wanted: int, processor: Any, most: int | None) -> int:
        """Tokens of a row at most: as a task wants it, within what processor and model (``most_tokens``) take."""

    def configure(self, config: Any, processor: Any) -> None:  # noqa: B027 - images have no padding
        """Write into a model's config what training with this processor decides."""

    def notes(self, config: Any, processor: Any) -> tuple[str, ...]:
        """What a user of an export must know to feed it, beside what its folder says."""
        return () if processor is not None else (self.missing,)

    def find(self, path: str, revision: str | None = None) -> Any:
        """What ``load`` loads; None where a model has none, or none that loads."""
        path = locate(path)
        if Path(path).is_dir() and not any((Path(path) / name).is_file() for name in self.files):
            return None  # transformers would make an empty tokenizer up
        try:
            return self.load(path, revision)
        except BackboneError:
            return None


class TextReader(Reader):
    """A tokenizer, whose padding token the model must know."""

    files = (
        "tokenizer.json",
        "tokenizer.model",
        "spiece.model",
        "spm.model",
        "sentencepiece.bpe.model",
        "vocab.txt",
        "vocab.json",
    )
    content = (
        *files,
        "merges.txt",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
    )
    missing = "no tokenizer is in it: the backbone's folder has none"
    argument = "tokenizer"
    settings = ("pad_token_id",)

    def load(self, path: str, revision: str | None = None) -> Any:
        """The tokenizer."""
        return load_tokenizer(path, revision)

    def check(self, path: str, config: Any, processor: Any) -> None:
        """It must pad with the token from which the model counts its positions."""
        check_padding_token(path, config, processor)

    def most_tokens(
        self, config: Any, processor: Any, build: Callable[[], nn.Module]
    ) -> int | None:
        """As many as there are position embeddings."""
        return most_tokens(config)

    def row_tokens(self, wanted: int, processor: Any, most: int | None) -> int:
        """Rows are cut there."""
        return longest_input(wanted, processor, most)

    def configure(self, config: Any, processor: Any) -> None:
        """The padding token; it does not replace one that the model counts its positions from."""
        if processor is not None and not pads_as_configured(config):
            config.pad_token_id = processor.pad_token_id

    def notes(self, config: Any, processor: Any) -> tuple[str, ...]:
        """Which token pads, where that is not plain."""
        notes = super().notes(config, processor)
        if getattr(config, "pad_token_id", None) is None:
            return (
                *notes,
                "no padding token is known: set model.config.pad_token_id before a batch of several rows",
            )
        if processor is not None and processor.pad_token_id != config.pad_token_id:
            return (
                *notes,
                f"pad with token {config.pad_token_id}, from which this model counts its positions: the tokenizer "
                f"pads with {processor.pad_token_id}",
            )
        return notes


class ImageReader(Reader):
    """An image processor of transformers, which needs Pillow. All its images have one size."""

    files = ("preprocessor_config.json", "processor_config.json")
    content = files
    missing = "no image processor is in it: the backbone's folder has none"
    argument = "image_processor"

    def load(self, path: str, revision: str | None = None) -> Any:
        """The processor."""
        from transformers import AutoImageProcessor

        if importlib.util.find_spec("PIL") is None:
            raise BackboneError(
                f"model.path {path!r}: reading images needs the package Pillow",
                "pip install 'sparsearch[vision]'",
            )
        if Path(path).is_dir() and not any((Path(path) / name).is_file() for name in self.files):
            raise BackboneError(
                f"model.path {path!r}: the folder has no image processor ({self.files[0]})",
                "save it there: AutoImageProcessor.from_pretrained(...).save_pretrained(folder)",
            )
        return load_from(
            "image processor",
            path,
            lambda: AutoImageProcessor.from_pretrained(
                path, revision=revision, trust_remote_code=False
            ),
        )

    def check(self, path: str, config: Any, processor: Any) -> None:
        """The model must read colours; it says itself whether it takes the images, see ``most_tokens``."""
        channels = getattr(getattr(config, "vision_config", config), "num_channels", _COLOURS)
        if channels != _COLOURS:
            raise BackboneError(
                f"model.path {path!r}: the model reads images of {channels} channels (num_channels in config.json), "
                f"but all images are read in red, green and blue",
                "choose a model of three channels",
            )

    def most_tokens(
        self, config: Any, processor: Any, build: Callable[[], nn.Module]
    ) -> int | None:
        """What the model makes of an image of the processor's size."""
        from PIL import Image

        model = build()
        blank = process_image(processor, Image.new("RGB", (256, 256)))
        device = next(model.parameters()).device
        return count_tokens(model, {k: v.to(device) for k, v in blank.items()})

    def row_tokens(self, wanted: int, processor: Any, most: int | None) -> int:
        """Those of any image."""
        assert most is not None, "an image has tokens"
        return most


def process_image(processor: Any, image: Image.Image) -> Mapping[str, Tensor]:
    """What a processor makes of one image: ``pixel_values`` (1, channels, height, width).

    Raises:
        BackboneError: If it makes nothing of it.
    """
    try:
        found: Mapping[str, Tensor] = processor(images=image, return_tensors="pt")
    except (
        AttributeError,
        ArithmeticError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise BackboneError(
            f"the model's {type(processor).__name__} cannot process an image in {image.mode} of {image.width} x "
            f"{image.height}: {error}",
            "mend preprocessor_config.json in the model's folder: a mean and a deviation for each of three channels, "
            "and a size",
        ) from error
    return found


READERS: Mapping[str, Reader] = {"text": TextReader(), "images": ImageReader()}
"""By what a task's rows hold, ``TypeFacts.reads``."""
