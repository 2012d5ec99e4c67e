"""How written texts are judged: BLEU and ROUGE-L against one reference or several."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence

from sparsearch.errors import DataError

__all__ = ["check_references", "text_score"]

_PACKAGES = {"bleu": "sacrebleu", "rouge-l": "rouge_score"}
_COUNTED = re.compile("[a-z0-9]", re.IGNORECASE)


def text_score(metric: str, written: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """A metric of texts, between 0 and 1.

    Args:
        metric: ``bleu``: of all texts together, as sacrebleu computes it with its defaults (Papineni et al. 2002, Post
            2018), divided by 100. ``rouge-l``: the mean over texts of the F-measure of the longest common subsequence
            of words with the nearest reference (Lin 2004), without stemming.
        written: One text a row.
        references: Right ones of each row, one or several.

    >>> text_score("rouge-l", ["the red fox"], [["a dog", "the fox"]])
    0.8
    """
    if metric == "bleu":
        import sacrebleu

        most = max(map(len, references))
        streams = [[row[i] if i < len(row) else None for row in references] for i in range(most)]
        return float(sacrebleu.corpus_bleu(list(written), streams).score) / 100
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeL"])
    found = [
        scorer.score_multi(list(right), text)["rougeL"].fmeasure
        for right, text in zip(references, written, strict=True)
    ]
    return float(sum(found) / len(found))


def check_references(metric: str, split: str, references: Sequence[Sequence[str]]) -> None:
    """Before what takes long: what computes the metric must be there, and the metric must have a value.

    Raises:
        DataError: If the package is not installed, or a row's references hold nothing that ROUGE-L counts.
    """
    package = _PACKAGES.get(metric)
    if package is not None and importlib.util.find_spec(package) is None:
        raise DataError(
            f"{metric} is computed by {package.replace('_', '-')}, which is not installed",
            "pip install 'sparsearch[generation]'",
        )
    for row, texts in enumerate(references if metric == "rouge-l" else ()):
        if not any(map(_COUNTED.search, texts)):
            raise DataError(
                f"split {split!r}, row {row}: rouge-l counts words of the letters a to z and digits, and the "
                f"reference has none: {texts[0]!r:.60}",
                "choose task.metric: bleu",
            )
