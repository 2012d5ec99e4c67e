"""Conversations as the tokenizer's chat template writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsearch.errors import DataError

__all__ = ["conversation", "last_answer"]

_SHAPE = 'write a list of {"role": ..., "content": ...} in each row'


def conversation(tokenizer: Any, split: str, row: int, messages: Any) -> list[tuple[str, bool]]:
    """A conversation as texts one after the other; the turns of the assistant are learnt.

    Args:
        tokenizer: With a chat template.
        split: Name of the split, for messages.
        row: Number of the row, for messages.
        messages: Mappings with ``role`` and ``content``.

    Raises:
        DataError: If the tokenizer has no chat template, the row holds no conversation, no turn is the assistant's,
            or the template writes an earlier turn in another way once a later one follows.
    """
    if not tokenizer.chat_template:
        raise DataError(
            "task.messages: the model's tokenizer has no chat template",
            "take the instruction-tuned model, or write prompts and completions: task.prompt, task.completion",
        )
    at = f"split {split!r}, row {row}"
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        raise DataError(f"{at}: no conversation: {messages!r:.60}", _SHAPE)
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise DataError(f"{at}: no message has the role 'assistant'", "only its turns are learnt")
    try:
        whole = _written(tokenizer, messages)
        parts, written = [], ""
        for turn in turns:
            before = _written(tokenizer, messages[:turn], add_generation_prompt=True)
            after = _written(tokenizer, messages[: turn + 1])
            if not (
                whole.startswith(after) and after.startswith(before) and before.startswith(written)
            ):
                raise DataError(
                    f"{at}: the chat template writes message {turn} in another way once others follow",
                    "end each conversation with its first answer: one row for each",
                )
            parts += [(before[len(written) :], False), (after[len(before) :], True)]
            written = after
    except DataError:
        raise
    except Exception as error:  # a template raises what its author chose
        raise DataError(
            f"{at}: the chat template refuses the conversation: {error}", _SHAPE
        ) from error
    return parts


def last_answer(messages: Any) -> str:
    """What the assistant says in its last turn of a conversation."""
    return next(str(m["content"]) for m in reversed(messages) if m["role"] == "assistant")


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, Mapping)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
    )


def _written(tokenizer: Any, messages: list[Any], **options: bool) -> str:
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return text
