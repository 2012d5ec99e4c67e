"""What a model writes after prompts: the likeliest token each time, in batches, with a cache of keys and values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from sparsearch.search.tasks.task import Split, Task
from sparsearch.search.training.device import autocast

__all__ = ["generate"]

_ROWS = 32


@torch.no_grad()
def generate(
    task: Task, model: nn.Module, split: Split, prompts: Sequence[Tensor], precision: str
) -> list[str]:
    """The text that a model writes after each prompt, without special tokens and blanks around it.

    Prompts of like length run together. A decoder's are padded at the left, so that what is written follows the
    prompt; those that an encoder reads at the right.

    Args:
        task: With its tokenizer.
        model: A language model; one that is entered at a layer runs as a whole.
        split: Says how many tokens are written at most, which ones end a text, and how a decoder begins where the
            language of the target says so.
        prompts: Tokens (n,) of each row.
        precision: Of the passes.
    """
    whole: Any = model if hasattr(model, "generate") else model.model
    whole.eval()
    device, pad = next(whole.parameters()).device, task.tokenizer.pad_token_id
    apart = bool(getattr(whole.config, "is_encoder_decoder", False))
    start_token = getattr(whole.config, "decoder_start_token_id", None) if apart else None
    opening = {"decoder_start_token_id": start_token} | split.references.get("opening", {})
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=split.references["max_new_tokens"],
        pad_token_id=pad,
        eos_token_id=_ends(task, whole, split.labels),
        use_cache=True,
        **opening,
    )
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    texts = [""] * len(prompts)
    with _settings_of(whole, settings):
        for start in range(0, len(order), _ROWS):
            rows = order[start : start + _ROWS]
            ids, mask = _padded([prompts[row] for row in rows], pad, left=not apart)
            with autocast(device, precision):
                found = whole.generate(input_ids=ids.to(device), attention_mask=mask.to(device))
            found = found[:, 1 if apart else ids.shape[1] :]
            written = task.tokenizer.batch_decode(found, skip_special_tokens=True)
            for row, text in zip(rows, written, strict=True):
                texts[row] = text.strip()
    return texts


def _padded(prompts: Sequence[Tensor], pad: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """(rows, longest) tokens and their mask."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        place = slice(longest - len(prompt), None) if left else slice(len(prompt))
        ids[row, place], mask[row, place] = prompt, 1
    return ids, mask


def _ends(task: Task, model: Any, labels: Tensor) -> list[int]:
    """Tokens that end a text: the tokenizer's, the model's own, and the special one that ends what is learnt."""
    special = torch.tensor(task.tokenizer.all_special_ids)
    last = (row[torch.isin(row, special)][-1:].tolist() for row in labels)
    own = getattr(model.generation_config, "eos_token_id", None)
    found = {task.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    return sorted({*found, *(token for tokens in last for token in tokens)} - {None})


@contextlib.contextmanager
def _settings_of(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """These settings alone: transformers fills what they leave open from those of the model (beams, penalties)."""
    before, model.generation_config = model.generation_config, settings
    try:
        yield
    finally:
        model.generation_config = before
