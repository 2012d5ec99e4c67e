"""Causal language modelling: a prompt and its completion, whole texts, or conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from sparsearch.errors import DataError
from sparsearch.search.tasks.checks import check_texts, text_warnings
from sparsearch.search.tasks.data_files import Rows
from sparsearch.search.tasks.data_rows import SPLITS
from sparsearch.search.tasks.task import Split, Task
from sparsearch.search.tasks.types.base import Encoded
from sparsearch.search.tasks.types.language.base import LanguageTask, judged_by, read_references
from sparsearch.search.tasks.types.language.chat import conversation, last_answer
from sparsearch.search.tasks.types.language.packing import check_packing, pack
from sparsearch.search.tasks.types.token_rows import IGNORED, padded_split

if TYPE_CHECKING:
    from sparsearch.config.tasks.task import TaskConfig

__all__ = ["CausalLM"]

Part: TypeAlias = tuple[str, bool]
"""Text of a row, and whether it is learnt."""


class CausalLM(LanguageTask):
    """The completion's tokens are learnt; the prompt's are read, not learnt."""

    labels_tokens = True

    def columns(self, config: TaskConfig) -> tuple[str, ...]:
        """Those of the way in which the rows are given."""
        named = [*config.text, config.prompt, config.completion, config.messages]
        return tuple(dict.fromkeys(name for name in named if name is not None))

    def columns_of(self, config: TaskConfig, split: str) -> tuple[str, ...]:
        """References stand in the place of the completion where rows are judged, not learnt."""
        if config.references is None or split == "train":
            return self.columns(config)
        assert config.prompt is not None, "references go with prompts"
        return config.prompt, config.references

    def encode(
        self, config: TaskConfig, rows: Mapping[str, Rows], tokenizer: Any, limit: int
    ) -> Encoded:
        """Prompt and completion are tokenised apart, so that their border is one between tokens."""
        used = config.max_train_rows or len(rows["train"])
        parts = {**rows, "train": rows["train"].part(0, used)}
        splits, texts = {}, {}
        for name in SPLITS:
            found, references = _parts(config, name, parts[name], tokenizer)
            texts[name] = {"row": ["".join(text for text, _ in row) for row in found]}
            split = _tokenise(config, name, found, tokenizer, limit)
            if config.generates and name != "train":
                judged = judged_by(config, name, references, self.prompts(split), limit)
                split = replace(split, references=judged)
            splits[name] = pack(split, limit) if config.packing and name == "train" else split
        return Encoded(splits, warnings=tuple(text_warnings(texts)))

    def check_rows(self, model: nn.Module, task: Task) -> None:
        """Texts of one row must not see each other."""
        if "position_ids" in task.train.inputs:
            check_packing(model)

    def prompts(self, split: Split) -> list[Tensor]:
        """All before the last run of learnt tokens."""
        found = []
        for ids, labels in zip(split.inputs["input_ids"], split.labels, strict=True):
            learnt = (labels != IGNORED).long()
            starts = (learnt.diff(prepend=torch.zeros(1, dtype=torch.long)) == 1).nonzero()
            found.append(ids[: int(starts[-1])])
        return found


def _parts(
    config: TaskConfig, split: str, rows: Rows, tokenizer: Any
) -> tuple[list[list[Part]], list[list[str]]]:
    """Each row as texts one after the other, and its right answers; none of whole texts."""
    columns = rows.columns
    if config.messages is not None:
        chats = columns[config.messages]
        parts = [conversation(tokenizer, split, row, chat) for row, chat in enumerate(chats)]
        return parts, [[last_answer(chat)] for chat in chats]
    if config.text:
        texts = columns[config.text[0]]
        check_texts(split, {config.text[0]: texts})
        return [[(text, True)] for text in texts], []
    assert config.prompt is not None and config.completion is not None, "the only way left"
    prompts = columns[config.prompt]
    if config.references is None or split == "train":
        answers = columns[config.completion]
        check_texts(split, {config.prompt: prompts, config.completion: answers})
        references = [[answer] for answer in answers]
    else:
        check_texts(split, {config.prompt: prompts})
        references = read_references(config, split, columns[config.references])
    pairs = zip(prompts, references, strict=True)
    return [[(prompt, False), (right[0], True)] for prompt, right in pairs], references


def _tokenise(
    config: TaskConfig, split: str, rows: Sequence[Sequence[Part]], tokenizer: Any, limit: int
) -> Split:
    """A label is the token at its place, or ``IGNORED`` where it is not learnt."""
    begin, end = _ends(tokenizer)
    whole = config.messages is None  # a chat template writes begin and end itself
    found = []
    for row in rows:
        tokens, labels = (list(begin), [IGNORED] * len(begin)) if whole else ([], [])
        for text, is_learnt in row:
            ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            tokens += ids
            labels += ids if is_learnt else [IGNORED] * len(ids)
        if whole and any(label != IGNORED for label in labels):
            tokens, labels = tokens + end, labels + end
        found.append((tokens, labels))
    _check_learnt(split, [labels for _, labels in found])
    return padded_split(config, split, found, tokenizer, limit)


def _ends(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens that begin and end a text: as the tokenizer adds them; an end in any case where it has one."""
    alone = tokenizer("")["input_ids"]
    end = tokenizer.eos_token_id
    begin = [token for token in alone if token != end or token == tokenizer.bos_token_id]
    return begin, [] if end is None else [end]


def _check_learnt(split: str, labels: Sequence[Sequence[int]]) -> None:
    """Each row must have a token to learn that follows another one."""
    empty = [row for row, tokens in enumerate(labels) if all(t == IGNORED for t in tokens[1:])]
    if empty:
        raise DataError(
            f"split {split!r}, row {empty[0]}: the completion is empty, there is no token to learn "
            f"({len(empty)} such rows)",
            "remove these rows, or name the column that holds the completions: task.completion",
        )
