"""Reading: the half of the store that asks."""

from __future__ import annotations

from collections.abc import Sequence

from sparsearch.results.answers import Placements, StudyProgress, TrialScore
from sparsearch.results.records import Attempt, Best, BestQuery, StudyRecord, Trial, TrialRecord
from sparsearch.results.store.connection.database import Database
from sparsearch.results.store.reading import best as best_structures
from sparsearch.results.store.reading import queries, transfer
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.ranking import Ranking
from sparsearch.spaces.structure import Structure

__all__ = ["StoreReader"]


class StoreReader:
    """Questions to the database. Values come out, without a link to it.

    Attributes:
        _database: Where they are asked.
    """

    _database: Database

    def stop_asked(self, study: str) -> bool:
        """Whether the driver of a study was asked to end."""
        with self._database.reading() as session:
            return queries.stop_asked(session, study)

    def queued(self, study: str) -> tuple[Trial, ...]:
        """The trials still to run, in order of number.

        Raises:
            NotFoundError: If there is no such study.
        """
        with self._database.reading() as session:
            return queries.queued(session, study)

    def ranking(self, key: str) -> Ranking | None:
        """The ranking stored under a key, None if there is none."""
        with self._database.reading() as session:
            return queries.ranking(session, key)

    def transferable(
        self,
        space: str,
        task: str,
        *,
        backbone: str | None = None,
        study: str | None = None,
        budget: Budget | None = None,
    ) -> str | None:
        """The key of the searched ranking whose structure has the best validation score on another task.

        One whose structure keeps within the budget's parameters comes before one that does not. Its search had the
        budget's limits on what is taken away, see ``searched_under``.

        Args:
            space: Fingerprint of the space that it ranks.
            task: Fingerprint of the task that it is to serve, see ``StudySpec.task_fingerprint``.
            backbone: Weight fingerprint of the backbone that it was made on; None for any.
            study: Take it from this study (a unique prefix of its name), whatever its task.
            budget: That it is to be cut at; None for any.

        Returns:
            None if there is none.

        Raises:
            NotFoundError: If there is no such study.
        """
        with self._database.reading() as session:
            return transfer.transferable(session, space, task, backbone, study, budget)

    def searched_under(self, key: str, budget: Budget) -> bool:
        """Whether the search of a ranking had a budget's limits on what is taken away.

        Without them it weighs nothing of what may be removed or masked, and all of that has one score.
        """
        with self._database.reading() as session:
            return transfer.searched_under(session, key, budget)

    def weights(self, study: str, number: int) -> bytes | None:
        """Attached modules and head of a trial as safetensors bytes, None if none were stored.

        Raises:
            NotFoundError: If there is no such trial.
        """
        with self._database.reading() as session:
            return queries.weights(session, study, number)

    def studies(
        self,
        *,
        after: str | None = None,
        limit: int | None = None,
        youngest_first: bool = False,
    ) -> tuple[StudyRecord, ...]:
        """Studies, oldest first.

        Args:
            after: Only those that come after this one.
            limit: At most so many; None for all.
            youngest_first: The other way round.

        Raises:
            NotFoundError: If there is no study of that name.
        """
        with self._database.reading() as session:
            return queries.studies(session, after, limit, youngest_first=youngest_first)

    def find_study(self, prefix: str) -> StudyRecord:
        """The study of that name, or the only one whose name starts with it.

        Raises:
            NotFoundError: If there is none, or more than one.
        """
        with self._database.reading() as session:
            return queries.find_study(session, prefix)

    def trials(
        self, study: str, *, after: int = -1, limit: int | None = None
    ) -> tuple[TrialRecord, ...]:
        """Trials of a study, in order of number.

        Args:
            study: Name of the study, or a unique prefix of it.
            after: Only those with a higher number.
            limit: At most so many; None for all.

        Raises:
            NotFoundError: If there is no such study, or more than one.
        """
        with self._database.reading() as session:
            return queries.trials(session, study, after, limit)

    def scores(self, study: str, numbers: Sequence[int] | None = None) -> tuple[TrialScore, ...]:
        """The trials of a study, in order of number, with what summaries need of them.

        Args:
            study: Name of the study, or a unique prefix of it.
            numbers: Only trials of these numbers; None for all.

        Raises:
            NotFoundError: If there is no such study, or more than one.
        """
        with self._database.reading() as session:
            return queries.scores(session, study, numbers)

    def study_names(self, limit: int) -> tuple[str, ...]:
        """The names of the youngest studies, the youngest first, at most ``limit``."""
        with self._database.reading() as session:
            return queries.study_names(session, limit)

    def models(self) -> dict[str, tuple[str, ...]]:
        """The backbones of all studies, as users wrote them, with their tasks; the youngest study's first."""
        with self._database.reading() as session:
            return queries.models(session)

    def front_placements(self, model: str, task: str | None = None) -> Placements:
        """What the structures on the fronts of all studies of a backbone put where.

        Args:
            model: The backbone, as the user wrote it.
            task: Name of a task; None for all.
        """
        with self._database.reading() as session:
            return queries.front_placements(session, model, task)

    def progress(self, study: str, above: int = -1) -> StudyProgress:
        """How far a study is: whether it runs, and its finished trials in brief.

        Args:
            study: Its whole name.
            above: Only trials with a higher number.

        Raises:
            NotFoundError: If there is no such study.
        """
        with self._database.reading() as session:
            return queries.progress(session, study, above)

    def mean_seconds(self, model: str) -> dict[str, float]:
        """By strategy, the mean time of the successful trials on a backbone, in whatever study."""
        with self._database.reading() as session:
            return queries.mean_seconds(session, model)

    def attempts(self, study: str, trials: range | None = None) -> tuple[Attempt, ...]:
        """Attempts at the trials of a study, trial by trial, in order.

        Args:
            study: Name of the study, or a unique prefix of it.
            trials: Only those at trials of these numbers; None for all.

        Raises:
            NotFoundError: If there is no such study, or more than one.
        """
        with self._database.reading() as session:
            return queries.attempts(session, study, trials)

    def best(
        self,
        *,
        study: str | None = None,
        model: str | None = None,
        task: str | None = None,
        **limits: int | float | str | None,
    ) -> Best | None:
        """The feasible trial with the highest validation score whose structure fits the limits.

        Of equal scores the one with fewer trainable parameters wins, then with fewer stored bytes, then the earlier
        trial; with ``max_bytes`` bytes come first.
        References without a structure (``head``, ``full``) are never the best.

        Scores of different tasks or metrics do not compare: where several have a trial that fits, name the study
        or the task, or ask ``best_of_each_task``.

        Args:
            study: Name of a study, or a unique prefix of it.
            model: The backbone, as the user wrote it.
            task: Name of the task, or the beginning of its fingerprint (4 characters or more).
            limits: By name. ``max_trainable_params``: a number, or a percentage of each study's backbone
                ("0.01%"), rounded down; the task head is not counted. ``max_inference_flops``: a percentage of the
                dense backbone's, "75%" or 0.75. ``min_weight_sparsity``: of its linears' weights that are zero or gone,
                likewise. ``max_bytes``: stored bytes, a number, or a percentage of each study's backbone at four bytes
                a parameter. These four are known of every trial. Limits of plug-ins: a number; trials whose budgets set
                that limit.

        Returns:
            None if no trial fits.

        Raises:
            ConfigError: If a limit cannot be read, if several tasks have a trial that fits, or if the model had
                different weights in the studies that fit.
            NotFoundError: If there is no such study.
        """
        question = BestQuery(study, model, task, limits)
        with self._database.reading() as session:
            return best_structures.best(session, question)

    def best_of_each_task(self, question: BestQuery) -> tuple[Best, ...]:
        """What ``best`` answers for each task that has a trial that fits; the task of the oldest study first.

        Raises:
            ConfigError: If a limit cannot be read, or if the model had different weights in the studies that fit.
            NotFoundError: If there is no such study.
        """
        with self._database.reading() as session:
            return best_structures.best_of_each_task(session, question)

    def pareto(self, study: str) -> tuple[Best, ...]:
        """Feasible trials with a structure that no other one beats, by trainable parameters.

        One beats another if it is as good in validation score, trainable parameters, stored bytes, inference
        FLOPs and weight sparsity (these two to hundredths of a percent), and better in one of them. Of equal
        ones the earliest is kept.

        Args:
            study: Name of the study, or a unique prefix of it.

        Raises:
            NotFoundError: If there is no such study.
        """
        with self._database.reading() as session:
            return best_structures.pareto(session, study)

    def find_structure(self, prefix: str, study: str | None = None) -> Best:
        """The best trial whose structure's hash starts with a prefix of 4 characters or more.

        Args:
            prefix: Of the hash.
            study: Name of a study, or a unique prefix of it: only its trials count.

        Raises:
            NotFoundError: If the prefix is too short, fits none, or fits more than one structure; or if the structure
                was trained on several tasks, whose scores do not compare, and no study is given.
        """
        with self._database.reading() as session:
            return best_structures.find_structure(session, prefix, study)

    def structures_of(self, study: str, numbers: Sequence[int]) -> tuple[Best, ...]:
        """The structures of some trials of a study, each told of that trial.

        Args:
            study: Name of the study, or a unique prefix of it.
            numbers: Of successful trials that have a structure.

        Raises:
            NotFoundError: If there is no such study.
        """
        with self._database.reading() as session:
            return best_structures.structures_of(session, study, numbers)

    def load_structure(self, prefix: str) -> Structure:
        """The structure whose hash starts with a prefix of 4 characters or more, whatever it was trained on.

        Raises:
            NotFoundError: If the prefix is too short, fits none, or fits more than one structure.
        """
        with self._database.reading() as session:
            return best_structures.load_structure(session, prefix)
