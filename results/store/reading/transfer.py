"""Which stored ranking may be transferred to another task."""

from __future__ import annotations

from sqlalchemy import JSON, ColumnElement, case, select, type_coerce
from sqlalchemy.orm import Session

from sparsearch.config.registry import STRATEGIES
from sparsearch.results.store.reading.queries import BEST_FIRST, study_row
from sparsearch.results.store.tables import RankingRow, TrialRow
from sparsearch.spaces.budget import Budget

__all__ = ["searched_under", "transferable"]


def transferable(
    session: Session,
    space: str,
    task: str,
    backbone: str | None,
    study: str | None,
    budget: Budget | None,
) -> str | None:
    """The key of the ranking that served another task best, see ``Store.transferable``."""
    searches = STRATEGIES.of_family("search")
    most = budget and budget.get("max_trainable_params")
    fits = TrialRow.trainable_params <= (most or 0)
    query = (
        select(TrialRow.ranking_key)
        .join(RankingRow, RankingRow.key == TrialRow.ranking_key)
        .where(
            RankingRow.space == space,
            RankingRow.strategy.in_(searches),
            TrialRow.strategy == RankingRow.strategy,
        )
        .where(TrialRow.recommendable, *_searched(budget))
    )
    if backbone is not None:
        query = query.where(RankingRow.backbone == backbone)
    if study is None:
        query = query.where(TrialRow.task_fingerprint != task)
    else:
        query = query.where(TrialRow.study_id == study_row(session, study).id)
    return session.scalar(query.order_by(case((fits, 0), else_=1), *BEST_FIRST).limit(1))


def searched_under(session: Session, key: str, budget: Budget) -> bool:
    """Whether a ranking's trial had a budget's limits on what is taken away, see ``Store.searched_under``."""
    trials = (
        select(TrialRow.id)
        .join(RankingRow, RankingRow.key == TrialRow.ranking_key)
        .where(RankingRow.key == key, TrialRow.strategy == RankingRow.strategy)
        .where(*_searched(budget))
    )
    return session.scalar(trials.limit(1)) is not None


def _searched(budget: Budget | None) -> list[ColumnElement[bool]]:
    """That a trial's budget has these limits."""
    limits = type_coerce(TrialRow.budget, JSON)
    names = () if budget is None else budget.takes_away
    return [limits[name].as_float().is_not(None) for name in names]
