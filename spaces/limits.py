"""What a budget may limit: one entry each, which the study file, the selection, reports and queries read.

A package adds its own as an entry point of the group ``sparsearch.limits``; see ``docs/plugins.md``.
"""

from __future__ import annotations

import math
from fractions import Fraction
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

from sparsearch.config.percentages import parse_percentage, percent
from sparsearch.errors import ConfigError
from sparsearch.spaces.candidate import BYTES_PER_PARAM

if TYPE_CHECKING:
    from sparsearch.spaces.candidate import Candidate
    from sparsearch.spaces.space import Space

__all__ = [
    "InferenceFlops",
    "Limit",
    "StoredBytes",
    "TrainableParams",
    "WeightSparsity",
]


class Limit:
    """One thing that a budget may limit.

    Costs of candidates are added up, so they have to be additive: a rank-4 LoRA costs what four rank-1 ones do.

    A limit of one's own overrides ``cost``, and ``read`` if a value is no whole number. Then ``budgets`` of a study
    take it, the selection holds it, each trial stores what its structure has of it, and ``best`` filters by it.

    Attributes:
        name: As users write it: ``max_...``. ``min_...`` is for a least, which the selection has to know how to reach:
            so there is no such limit of one's own.
        unit: Follows the value where a budget is put in words.
        is_fraction: Whether values are fractions of a whole, written as percentages.
        may_exceed_whole: Whether a percentage above 100% can be asked for.
        per_param: What a parameter of the backbone counts as, where a value may be a share of the backbone; else 0.
        takes_away: Whether it is met by what is removed or masked, so that a search without it never weighs that.
        column: Column of the trials in which it is stored; empty if it is a measurement of that name.
        example: How to write it.
        closest: Says how near a study came to it; ``{}`` is the value.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    is_fraction: ClassVar[bool] = False
    may_exceed_whole: ClassVar[bool] = False
    per_param: ClassVar[int] = 0
    takes_away: ClassVar[bool] = False
    column: ClassVar[str] = ""
    example: ClassVar[str] = "100"
    closest: ClassVar[str] = ""

    @property
    def is_most(self) -> bool:
        """Whether it is an upper bound."""
        return self.name.startswith("max_")

    def read(self, value: Any) -> Any:
        """Check what a study file says: a whole number above 0, or a share of the backbone where there may be one.

        Args:
            value: As written; never None.

        Raises:
            ValueError: If it is no value of this limit.
        """
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # 1e4
        if self.per_param and (share := percent(value)) is not None:
            if not 0 < share <= 100:
                raise ValueError(
                    f"{value!r} is no share: write a percentage above 0% and up to 100%"
                )
            return value
        if type(value) is not int or value <= 0:
            raise ValueError(
                f"{value!r} is no limit: write a whole number above 0{self._or_share}"
            )
        return value

    def asked(self, value: int | float | str) -> int | float | Fraction:
        """A limit of a question or a command as a number, or as a fraction of a backbone's parameters.

        A command line gives whole numbers as text too; none is larger than a database counts.

        Raises:
            ConfigError: If it is neither, or more than the whole.

        >>> StoredBytes().asked("817"), StoredBytes().asked("0.01%")
        (817, Fraction(1, 10000))
        """
        if not isinstance(value, str):
            self._check_number(value)
        if self.is_fraction:
            return float(self._share(value)) if isinstance(value, str) else value
        if isinstance(value, str) and not value.strip().isdecimal():
            return self._share(value)
        return min(int(value), 2**63 - 1)

    def _check_number(self, value: object) -> None:
        """Refuse what is no number, or no whole one where fractions mean nothing."""
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not number or not (self.is_fraction or float(value).is_integer()):  # type: ignore[arg-type]
            sort = "number" if self.is_fraction else "whole number"
            raise ConfigError([f"{self.name}: {value!r} is no {sort}"], f"write {self.example}")

    def _share(self, value: str) -> Fraction:
        """The fraction that a limit names; one that cannot be read is told by its name."""
        if not (self.is_fraction or self.per_param):
            raise ConfigError(
                [f"{self.name}: {value!r} is no whole number"], f"write {self.example}"
            )
        try:
            share = parse_percentage(value)
        except ConfigError as error:
            kinds = (
                "neither a whole number nor a percentage" if self.per_param else "no percentage"
            )
            example = self.example
            if value.strip().replace(".", "", 1).isdecimal():
                # The sign was forgotten, or a share of 1 meant.
                meant = 1 if self.per_param or float(value) > 1 else 100
                example = f"{meant * float(value):g}%"
            raise ConfigError(
                [f"{self.name}: {value!r} is {kinds}"], f"write {example}"
            ) from error
        if share > 1 and not self.may_exceed_whole:
            raise ConfigError(
                [f"{self.name}: {value!r} is more than the whole"], "write at most 100%"
            )
        return share

    @property
    def _or_share(self) -> str:
        """What else may be written, in a message."""
        shares = ", or like '0.01%', or a range of either, {from: '0.01%', to: '1%', points: 3}"
        return shares if self.per_param else ""

    def resolve(self, value: Any, backbone_params: int) -> int | float:
        """The number that what was written stands for.

        Args:
            value: As ``read`` left it.
            backbone_params: Parameters of the backbone.
        """
        if self.is_fraction:
            return float(parse_percentage(value))
        if isinstance(value, str):
            return self.of_backbone(parse_percentage(value), backbone_params)
        return int(value)

    def of_backbone(self, share: Fraction, backbone_params: int) -> int:
        """What a share of the backbone comes to, rounded down to whole parameters.

        >>> share = Fraction(1, 10000)
        >>> TrainableParams().of_backbone(share, 22_713_216), StoredBytes().of_backbone(share, 22_713_216)
        (2271, 9084)
        """
        return self.per_param * int(share * backbone_params)

    def text(self, value: Any) -> str:
        """A value in words."""
        return f"{value} {self.unit}" if isinstance(value, str) else f"{value:,} {self.unit}"

    def cap(self, value: float, space: Space, tokens: int) -> int | None:
        """The most that the costs of candidates may add up to; None for what the selection meets otherwise.

        Args:
            value: Resolved.
            space: Of the candidates.
            tokens: Sequence length at which FLOPs are counted.
        """
        return int(value)

    def cost(self, candidate: Candidate, tokens: int) -> int:
        """What a candidate adds.

        Args:
            candidate: Of the structure.
            tokens: Sequence length at which FLOPs are counted.
        """
        raise NotImplementedError(f"limit {self.name!r} counts nothing")


class TrainableParams(Limit):
    """Trainable parameters, the task head apart: a number, or a percentage of the backbone's."""

    name, unit, column = "max_trainable_params", "params", "trainable_params"
    per_param = 1
    example = "0.01%"
    closest = "the smallest in that study has {:,}"

    def text(self, value: Any) -> str:
        """A percentage stands for itself: it is what budgets mostly are."""
        return value if isinstance(value, str) else super().text(value)

    def cost(self, candidate: Candidate, tokens: int) -> int:
        """Its trainable parameters."""
        return candidate.params


class StoredBytes(Limit):
    """What a task costs to keep (``Structure.stored_bytes``): a number, or a percentage of the backbone in float32."""

    name, unit, column = "max_bytes", "bytes", "stored_bytes"
    per_param = BYTES_PER_PARAM
    example = "0.01%"
    closest = "the smallest in that study stores {:,}"

    def cap(self, value: float, space: Space, tokens: int) -> int:
        """Bytes that are left for tensors: the choice itself is stored too, as a bitmap over the space."""
        return int(value) - space.choice_bytes

    def cost(self, candidate: Candidate, tokens: int) -> int:
        """Bytes of its tensors, trained or not."""
        return candidate.bytes


class InferenceFlops(Limit):
    """FLOPs after merging, as a fraction of the dense backbone's (1.0 = dense)."""

    name, unit, column = "max_inference_flops", "FLOPs", "inference_flops_ratio"
    is_fraction = takes_away = True
    may_exceed_whole = True  # modules that do not merge add FLOPs
    example = "75%"
    closest = "the fewest in that study are {:.2%}"

    def read(self, value: Any) -> Any:
        """A percentage above 0%."""
        if not percent(value):
            raise ValueError(
                f"{value!r} is no share of the dense backbone's FLOPs: write like '75%'"
            )
        return value

    def cap(self, value: float, space: Space, tokens: int) -> int:
        """FLOPs per token that may come on top of the dense backbone's; below 0 where some must go."""
        from sparsearch.spaces.backbone.flops import dense_flops_per_token

        dense = dense_flops_per_token(space.positions, tokens)
        return math.floor((Fraction(str(value)) - 1) * dense)  # the fraction as the user wrote it

    def cost(self, candidate: Candidate, tokens: int) -> int:
        """FLOPs per token that it adds; below 0 for what is removed."""
        return candidate.inference_flops(tokens)


class WeightSparsity(Limit):
    """Fraction of the weights of the dense backbone's linears that are zero or gone after merging and removing."""

    name, unit, column = "min_weight_sparsity", "sparsity", "weight_sparsity"
    is_fraction = takes_away = True
    example = "75%"
    closest = "the sparsest in that study has {:.2%} of its weights zero or gone"

    def read(self, value: Any) -> Any:
        """A percentage above 0% and below 100%."""
        if not 0 < (percent(value) or 0) < 100:
            raise ValueError(
                f"{value!r} is no share of the backbone's weights: write a percentage above 0% and below 100%"
            )
        return value

    def cap(self, value: float, space: Space, tokens: int) -> None:
        """No sum: weights of a removed head are gone once, masked or not, see ``selection.masks``."""
