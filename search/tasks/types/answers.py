"""How an answer is judged: SQuAD's own rules."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

__all__ = ["answer_score"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def answer_score(metric: str, found: str, answers: Sequence[str]) -> float:
    """The best that an answer scores against any right one (Rajpurkar et al. 2016).

    Args:
        metric: ``f1`` of the words, or ``exact-match``.
        found: The answer.
        answers: Right ones.

    >>> answer_score("exact-match", "The Eiffel tower.", ["eiffel tower"])
    1.0
    >>> answer_score("f1", "big tower", ["eiffel tower"])
    0.5
    """
    judge = _f1 if metric == "f1" else _exact
    return max(judge(_words(found), _words(answer)) for answer in answers)


def _words(text: str) -> list[str]:
    """Lower case, without punctuation and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _exact(found: list[str], answer: list[str]) -> float:
    return float(found == answer)


def _f1(found: list[str], answer: list[str]) -> float:
    """Of the words, each as often as it occurs."""
    shared = sum((Counter(found) & Counter(answer)).values())
    if not found or not answer:
        return float(found == answer)
    return 2 * shared / (len(found) + len(answer))
