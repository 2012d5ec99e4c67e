"""Languages of a multilingual tokenizer: which token says the source's, and with which ones a target begins.

mBART (Liu et al. 2020) writes the code behind a text, and its decoder starts with the target's. mBART-50, M2M-100 and
NLLB write it before a text, and the first token that they generate is forced to be the target's. Where the code
stands is seen in what the tokenizer makes of an empty text.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from sparsearch.errors import DataError

if TYPE_CHECKING:
    from sparsearch.config.tasks.task import TaskConfig

__all__ = ["Opening", "set_languages"]


@dataclass(frozen=True)
class Opening:
    """How a decoder begins, where the language of the target says so.

    Attributes:
        start: Token that the decoder is given first, in place of the one that its config names.
        forced: Token that it writes first, whatever its logits say.
    """

    start: int | None = None
    forced: int | None = None

    @property
    def for_generation(self) -> dict[str, dict[str, int]]:
        """``opening``: the settings of ``generate`` that say so, by transformers' names; nothing if there are none."""
        named = {"decoder_start_token_id": self.start, "forced_bos_token_id": self.forced}
        given = {name: token for name, token in named.items() if token is not None}
        return {"opening": given} if given else {}


def set_languages(config: TaskConfig, tokenizer: Any) -> Opening:
    """Tell a tokenizer the languages of a task, and find out how the decoder begins.

    Args:
        config: With ``source_language`` and ``target_language``, or neither.
        tokenizer: The backbone's; its languages are changed.

    Raises:
        DataError: If it has languages and the task names none, or the other way round; if it does not know one, or
            marks targets in a way that is not known here.
    """
    source, target = config.source_language, config.target_language
    if not hasattr(tokenizer, "set_src_lang_special_tokens"):
        if source is not None:
            raise DataError(
                f"task.source_language is {source!r}, and {type(tokenizer).__name__} has no languages",
                "remove task.source_language and task.target_language; where a model reads the languages in "
                "its source, write them there",
            )
        return Opening()
    if source is None or target is None:
        raise DataError(
            f"{type(tokenizer).__name__} marks each text with its language, and the task names none",
            "set task.source_language and task.target_language, for instance "
            f"{' and '.join(_codes(tokenizer)[:2])}; one and the same for a task in one language",
        )
    end = tokenizer.eos_token_id
    _mark(tokenizer, "source_language", "src_lang", source)
    marks = _mark(tokenizer, "target_language", "tgt_lang", target)
    (code,) = {*marks} - {end}
    if marks == [end, code]:
        return Opening(start=code)
    if marks == [code, end]:
        return Opening(forced=code)
    raise DataError(
        f"{type(tokenizer).__name__} marks a target by {tokenizer.convert_ids_to_tokens(marks)}, and how a decoder "
        "begins then is not known here",
        "use mBART, mBART-50, M2M-100, NLLB or PLBart, or a model that reads its languages in the source, as T5 does",
    )


def _mark(tokenizer: Any, key: str, attribute: str, language: str) -> list[int]:
    """Set one language; the tokens of an empty text in it, of which one is the language's."""
    before = getattr(tokenizer, attribute)
    try:
        setattr(tokenizer, attribute, language)
        given = {"text": ""} if attribute == "src_lang" else {"text_target": ""}
        marks: list[int] = tokenizer(**given)["input_ids"]
    except KeyError:
        marks = []
    others = set(marks) - {tokenizer.eos_token_id, tokenizer.unk_token_id}
    if len(others) != 1 or not others <= set(tokenizer.all_special_ids):
        setattr(tokenizer, attribute, before)
        known = _codes(tokenizer)
        near = get_close_matches(language, known, cutoff=0.4) or known
        raise DataError(
            f"task.{key} is {language!r}, which is no language of {type(tokenizer).__name__}",
            f"write one of its {len(known)} codes, such as {', '.join(near[:6])}",
        )
    return marks


def _codes(tokenizer: Any) -> list[str]:
    """The languages that it knows, by its own codes."""
    if (table := getattr(tokenizer, "lang_code_to_id", None)) is not None:
        return sorted(table)
    named = {
        str(token) for token in tokenizer.special_tokens_map.values() if isinstance(token, str)
    }
    return sorted(set(tokenizer.all_special_tokens) - named)
