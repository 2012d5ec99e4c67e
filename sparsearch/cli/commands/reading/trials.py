"""`sparsearch trials`: the trials of a study, how they ended, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from sparsearch.cli.console import output, print_json
from sparsearch.cli.options import (
    DEFAULT_DB,
    Db,
    Json,
    StudyName,
    reading,
)
from sparsearch.cli.tables import (
    NOTHING,
    SHOWN_DIGITS,
    STATE_STYLES,
    FittingTable,
    budget_text,
    budget_words,
    count_text,
    score_text,
    seconds_text,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sparsearch.results.answers import ScoredTrial
    from sparsearch.results.records import Attempt, StudyRecord, TrialRecord


__all__ = [
    "trials",
    "trials_table",
]


def trials_table(
    study: StudyRecord, trials: Sequence[TrialRecord], attempts: Sequence[Attempt]
) -> RenderableType:
    """All trials of a study, why some did not succeed, and which attempts came to nothing."""
    right = ("#", "seed", "score", "test", "params", "stored", "seconds")
    columns = ("#", "strategy", "budget", "seed", "state", *right[2:], "structure")
    rows = [
        (
            str(t.number),
            t.strategy,
            budget_words(t.budget),
            str(t.seed),
            Text(t.state, STATE_STYLES.get(t.state, "")),
            score_text(t.score),
            score_text(t.test_score),
            count_text(t.trainable_params),
            count_text(t.stored_bytes),
            seconds_text(t.seconds),
            t.structure[:SHOWN_DIGITS] if t.structure else NOTHING,
        )
        for t in trials
    ]
    title = f"{study.name} ({study.metric})"
    table = FittingTable(title, columns, right, ("seconds", "test", "seed"), rows)
    from sparsearch.results.records import NOT_RUN  # with it comes SQLAlchemy

    told = [t for t in trials if t.message and t.state not in ("cancelled", *NOT_RUN)]
    return Group(table, messages_of(told), _in_vain(attempts))


def _in_vain(attempts: Sequence[Attempt]) -> RenderableType:
    """Attempts that were lost or interrupted, ran out of memory, or came too late, one line each."""
    return Text(
        "\n".join(
            f"trial {a.trial}, attempt {a.number} on {a.worker or 'no worker'} {a.state}: {a.message}"
            for a in attempts
            if a.state in ("lost", "interrupted", "oom", "late")
        )
    )


def messages_of(trials: Sequence[ScoredTrial]) -> RenderableType:
    """Why trials did not succeed, one line each."""
    lines = Text()
    for t in trials:
        first = (t.message.strip().splitlines() or ["no message"])[0]
        lines.append(f"trial {t.number} ({t.strategy}, {budget_text(t.budget)}, seed {t.seed}) ")
        lines.append(t.state, STATE_STYLES.get(t.state, ""))
        lines.append(f": {first}\n")
    lines.rstrip()
    return lines


def trials(study: StudyName, db: Db = DEFAULT_DB, as_json: Json = False) -> None:
    """List the trials of a study, how they ended, and why."""
    with reading(db) as store:
        record = store.find_study(study)
        records = store.trials(record.name)
        attempts = store.attempts(record.name)
    if as_json:
        tries: dict[int, list[Attempt]] = {}
        for attempt in attempts:
            tries.setdefault(attempt.trial, []).append(attempt)
        print_json([t.as_dict(tries.get(t.number, ())) for t in records])
    else:
        output().print(trials_table(record, records, attempts))
