"""Sequence to sequence: an encoder reads a source, a decoder writes its target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsearch.errors import BackboneError, DataError
from sparsearch.search.tasks.checks import check_texts, text_warnings
from sparsearch.search.tasks.data_files import Rows
from sparsearch.search.tasks.data_rows import SPLITS
from sparsearch.search.tasks.task import Split, Task
from sparsearch.search.tasks.types.base import Encoded
from sparsearch.search.tasks.types.language.base import LanguageTask, judged_by, read_references
from sparsearch.search.tasks.types.language.languages import set_languages
from sparsearch.search.tasks.types.token_rows import IGNORED, padded_split

if TYPE_CHECKING:
    from sparsearch.config.tasks.task import TaskConfig

__all__ = ["Seq2Seq"]


class Seq2Seq(LanguageTask):
    """The target's tokens are learnt, each from the source and the target's tokens before it.

    Labels (rows, 1 + target) begin with the token that the decoder is given first: that of the target's language, or
    one that is ignored where the model's config names it.
    """

    def columns(self, config: TaskConfig) -> tuple[str, ...]:
        """Source and target."""
        assert config.source is not None and config.target is not None, "its columns"
        return config.source, config.target

    def columns_of(self, config: TaskConfig, split: str) -> tuple[str, ...]:
        """References stand in the place of the target where rows are judged, not learnt."""
        if config.references is None or split == "train":
            return self.columns(config)
        return self.columns(config)[0], config.references

    def check_rows(self, model: nn.Module, task: Task) -> None:
        """Something must say with which token the decoder starts."""
        named = getattr(model.config, "decoder_start_token_id", None) is not None
        if not named and bool((task.train.labels[:, 0] == IGNORED).any()):
            raise BackboneError(
                f"the config of this {type(model).__name__} does not say with which token its decoder starts",
                "set decoder_start_token_id in the model's config.json, as it was trained",
            )
        super().check_rows(model, task)

    def encode(
        self, config: TaskConfig, rows: Mapping[str, Rows], tokenizer: Any, limit: int
    ) -> Encoded:
        """Source and target have the special tokens that the tokenizer gives them; a target ends with its end."""
        opening = set_languages(config, tokenizer)
        used = config.max_train_rows or len(rows["train"])
        parts = {**rows, "train": rows["train"].part(0, used)}
        splits, texts = {}, {}
        for name in SPLITS:
            sources, references = _read(self.columns(config), config, name, parts[name])
            targets = [right[0] for right in references]
            pairs = zip(sources, targets, strict=True)
            texts[name] = {"row": [f"{source}\n{target}" for source, target in pairs]}
            split = _tokenise(config, name, (sources, targets), tokenizer, limit)
            if opening.start is not None:
                split.labels[:, 0] = opening.start
            if config.generates and name != "train":
                judged = judged_by(config, name, references, [], limit)
                split = replace(split, references=judged | opening.for_generation)
            splits[name] = split
        return Encoded(splits, warnings=tuple(text_warnings(texts)))

    def inputs(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The decoder is given its token of start and the target, no longer than the longest of the batch."""
        longest = 1 + int((batch["labels"][:, 1:] != IGNORED).sum(dim=1).max())
        labels = batch["labels"][:, :longest]
        config: Any = model.config
        given = labels.masked_fill(labels == IGNORED, config.pad_token_id or 0)
        if (unnamed := labels[:, 0] == IGNORED).any():
            given[unnamed, 0] = config.decoder_start_token_id
        return batch | {"labels": labels, "decoder_input_ids": given}

    def collated_labels(self, labels: Tensor) -> Tensor:
        """Targets behind the place of the token that starts the decoder."""
        return torch.cat([torch.full_like(labels[:, :1], IGNORED), labels], dim=1)

    def prompts(self, split: Split) -> list[Tensor]:
        """The sources."""
        pairs = zip(split.inputs["input_ids"], split.lengths.tolist(), strict=True)
        return [ids[:length] for ids, length in pairs]

    def tokens_read(self, task: Task) -> Tensor | None:
        """The decoder reads targets, and what it writes."""
        return None


def _read(
    columns: tuple[str, ...], config: TaskConfig, split: str, rows: Rows
) -> tuple[Sequence[str], list[list[str]]]:
    """Sources, and the right targets of each."""
    source, target = columns
    sources = rows.columns[source]
    if config.references is None or split == "train":
        targets = rows.columns[target]
        check_texts(split, {source: sources, target: targets})
        empty = [row for row, text in enumerate(targets) if not text.strip()]
        if empty:
            raise DataError(
                f"split {split!r}, row {empty[0]}: the target is empty, there is no token to learn "
                f"({len(empty)} such rows)",
                "remove these rows, or name the column that holds the targets: task.target",
            )
        return sources, [[text] for text in targets]
    check_texts(split, {source: sources})
    return sources, read_references(config, split, rows.columns[config.references])


def _tokenise(
    config: TaskConfig,
    split: str,
    texts: tuple[Sequence[str], Sequence[str]],
    tokenizer: Any,
    limit: int,
) -> Split:
    sources = tokenizer(list(texts[0]), verbose=False)["input_ids"]
    targets = tokenizer(text_target=list(texts[1]), verbose=False)["input_ids"]
    if (end := tokenizer.eos_token_id) is not None:
        targets = [ids if end in ids else [*ids, end] for ids in targets]
    if empty := [row for row, ids in enumerate(sources) if not ids]:
        raise DataError(
            f"split {split!r}, row {empty[0]}: the source is empty ({len(empty)} such rows)",
            "remove these rows",
        )
    read = padded_split(config, split, [(ids, ids) for ids in sources], tokenizer, limit)
    learnt = padded_split(config, split, [(ids, ids) for ids in targets], tokenizer, limit)
    first = torch.full((len(learnt), 1), IGNORED)
    return Split(read.inputs, read.lengths, torch.cat([first, learnt.labels], dim=1))
