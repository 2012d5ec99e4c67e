"""Token classification: a tag for each word, judged by the entities that the tags name."""

from __future__ import annotations

import importlib.util
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from sparsearch.errors import DataError
from sparsearch.search.tasks.checks import check_metric, class_warnings, text_warnings
from sparsearch.search.tasks.data_files import Rows
from sparsearch.search.tasks.data_rows import SPLITS
from sparsearch.search.tasks.data_summary import DataSummary
from sparsearch.search.tasks.labels import label_text
from sparsearch.search.tasks.task import Split, Task, batches
from sparsearch.search.tasks.types.base import Encoded, TokenLosses, TokenTask, cross_entropies
from sparsearch.search.tasks.types.token_rows import IGNORED, padded_split
from sparsearch.search.training.evaluate import forward

if TYPE_CHECKING:
    from sparsearch.config.tasks.task import TaskConfig

__all__ = ["TokenClassification"]

_EVAL_BATCH = 128
_OUTSIDE = "O"
_TAG = re.compile(r"O|[BIESLU]-.+")
_SHAPE = "write in each row a list of words and a list of as many tags: O, B-place, I-place, ..."

Tagged: TypeAlias = tuple[list[str], list[str]]
"""The words of a row, and the tag of each."""


class TokenClassification(TokenTask):
    """Mean cross-entropy of the first token of each word; F1 of whole entities, as CoNLL counts them (seqeval)."""

    labels_tokens = True

    def columns(self, config: TaskConfig) -> tuple[str, ...]:
        """Words and tags."""
        return tuple(dict.fromkeys(name for name in (config.tokens, config.tags) if name))

    def encode(
        self, config: TaskConfig, rows: Mapping[str, Rows], tokenizer: Any, limit: int
    ) -> Encoded:
        """The tags of all rows decide what the classes are; the training split is then cut."""
        _check_installed(config, tokenizer)
        words, tags = self.columns(config)
        found = {split: _tagged(split, part, words, tags) for split, part in rows.items()}
        classes = _classes(config, found)
        found["train"] = found["train"][: config.max_train_rows]
        for split in SPLITS:
            entities = any(tag != _OUTSIDE for _, row in found[split] for tag in row)
            check_metric(config, split, "" if entities else "names no entity")
        splits, lost = {}, 0
        for split in SPLITS:
            encoded = [_tokenised(row, classes, tokenizer) for row in found[split]]
            lost += sum(count for *_, count in encoded)
            pairs = [(ids, labels) for ids, labels, _ in encoded]
            splits[split] = padded_split(config, split, pairs, tokenizer, limit)
        texts = {split: {words: [" ".join(row) for row, _ in found[split]]} for split in SPLITS}
        labels = {name: split.labels for name, split in splits.items()}
        warnings = text_warnings(texts) + class_warnings(config, self.summary(labels, classes, ()))
        if lost:
            warnings.append(
                f"{lost} words have no token and are left out of learning and of the score"
            )
        return Encoded(splits, tuple(classes), tuple(warnings))

    def summary(
        self, labels: Mapping[str, Tensor], classes: Sequence[str], warnings: Sequence[str]
    ) -> DataSummary:
        """Rows, and words of each tag."""
        rows = {split: len(values) for split, values in labels.items()}
        counts = [
            torch.bincount(v[v != IGNORED], minlength=len(classes)).tolist()
            for v in labels.values()
        ]
        by_class = dict(zip(classes, zip(*counts, strict=True), strict=True))
        return DataSummary(rows, by_class, {}, tuple(warnings))

    def loss(self, model: nn.Module, batch: dict[str, Tensor], precision: str) -> Tensor:
        """Mean over the words of the batch."""
        logits = forward(model, batch, precision)
        return nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED
        )

    def token_losses(
        self, model: nn.Module, batch: dict[str, Tensor], precision: str
    ) -> TokenLosses:
        """Of the words."""
        words = batch["labels"] != IGNORED
        logits = forward(model, batch, precision)[words]
        losses, residuals = cross_entropies(logits, batch["labels"][words])
        return TokenLosses(losses, residuals, words.nonzero()[:, 0])

    @torch.no_grad()
    def split_loss(self, model: nn.Module, split: Split, precision: str) -> float:
        """Mean over the words of the split."""
        model.eval()
        total, words = 0.0, 0
        for batch in batches(split, _EVAL_BATCH, next(model.parameters()).device):
            count = int((batch["labels"] != IGNORED).sum())
            total, words = total + float(self.loss(model, batch, precision)) * count, words + count
        return total / words

    @torch.no_grad()
    def answers(
        self, task: Task, model: nn.Module, split: Split, precision: str
    ) -> tuple[list[Any], list[Any]]:
        """The tags of each row's words."""
        model.eval()
        guesses: list[Any] = [[]] * len(split)
        truths: list[Any] = [[]] * len(split)
        for batch in batches(split, _EVAL_BATCH, next(model.parameters()).device):
            found = forward(model, batch, precision).argmax(-1)
            rows = batch["rows"].tolist()
            for row, guess, truth in zip(rows, found.cpu(), batch["labels"].cpu(), strict=True):
                tagged = truth != IGNORED
                guesses[row] = [task.classes[i] for i in guess[tagged]]
                truths[row] = [task.classes[i] for i in truth[tagged]]
        return guesses, truths

    def score(self, task: Task, model: nn.Module, split: Split, precision: str) -> float:
        """F1 of entities: one counts if its type and both ends are right."""
        from seqeval.metrics import f1_score

        guesses, truths = self.answers(task, model, split, precision)
        return float(f1_score(truths, guesses, zero_division=0))


def _check_installed(config: TaskConfig, tokenizer: Any) -> None:
    """Before what takes long: what counts entities, and a tokenizer that says where its tokens stand in the text."""
    if not tokenizer.is_fast:
        raise DataError(
            "a token classification needs a tokenizer that says where its tokens stand in the text",
            "choose a model whose folder has a tokenizer.json",
        )
    if config.metric == "entity-f1" and importlib.util.find_spec("seqeval") is None:
        raise DataError(
            "entity-f1 is counted by seqeval, which is not installed",
            "pip install 'sparsearch[entities]'",
        )


def _tagged(split: str, rows: Rows, words: str, tags: str) -> list[Tagged]:
    """Each row as words and tags; tags that the data declares as classes by their names."""
    names = rows.class_names.get(tags)
    found = []
    for number, row in enumerate(zip(rows.columns[words], rows.columns[tags], strict=True)):
        at = f"split {split!r}, row {number}"
        for name, values in zip((words, tags), row, strict=True):
            if not isinstance(values, list) or not values:
                raise DataError(
                    f"{at}: column {name!r} holds no list of words: {values!r:.60}", _SHAPE
                )
        spoken, tagged = row[0], [names[t] if names else t for t in row[1]]
        if len(spoken) != len(tagged):
            raise DataError(f"{at}: {len(spoken)} words, but {len(tagged)} tags", _SHAPE)
        wrong = [w for w in spoken if not isinstance(w, str)]
        wrong += [t for t in tagged if not isinstance(t, str) or not _TAG.fullmatch(t)]
        if wrong:
            raise DataError(f"{at}: {wrong[0]!r:.60} is no word, or no tag", _SHAPE)
        found.append((spoken, tagged))
    return found


def _classes(config: TaskConfig, rows: Mapping[str, Sequence[Tagged]]) -> list[str]:
    """``task.labels``, else the tags of the training split; those of the others must be among them."""
    if config.labels is not None:
        classes = list(map(label_text, config.labels))
    else:
        classes = sorted({tag for _, tags in rows["train"] for tag in tags})
    for split, tagged in rows.items():
        for number, (_, tags) in enumerate(tagged):
            if unknown := sorted(set(tags) - set(classes)):
                raise DataError(
                    f"split {split!r}, row {number}: tag {unknown[0]!r} is none of {', '.join(classes[:10])}",
                    "correct the rows, or list the tags: task.labels: [O, B-..., I-...]",
                )
    return classes


def _tokenised(
    row: Tagged, classes: Sequence[str], tokenizer: Any
) -> tuple[list[int], list[int], int]:
    """Token ids and labels: of each word's first token the class of its tag; and how many words have no token.

    Words are found by where their characters stand in the text, so that any fast tokenizer will do.
    """
    words, tags = row
    starts = [0, *accumulate(len(word) + 1 for word in words[:-1])]
    encoded = tokenizer(" ".join(words), return_offsets_mapping=True, verbose=False)
    labels, seen = [], set[int]()
    for start, end in encoded["offset_mapping"]:
        word = bisect_right(starts, end - 1) - 1
        first = end > start and word not in seen
        labels.append(classes.index(tags[word]) if first else IGNORED)
        if first:
            seen.add(word)
    return encoded["input_ids"], labels, len(words) - len(seen)
