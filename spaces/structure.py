"""The structure: an immutable set of candidates for one backbone, and its versioned JSON file.

The file's JSON Schema is ``structure.schema.json`` beside this module. An unknown field is an
error. Old versions load.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from sparsearch.config.tasks.types import TaskName
from sparsearch.documents import read_json
from sparsearch.errors import ConfigError, StructureError
from sparsearch.spaces.backbone.identity import BackboneId
from sparsearch.spaces.candidate import Candidate
from sparsearch.spaces.costs import merge_same_position, narrowed_positions, recompute_costs
from sparsearch.spaces.kinds import Kind, stored_kind
from sparsearch.spaces.space import Space, choice_bytes

__all__ = ["SCHEMA_VERSION", "Provenance", "Structure", "json_schema", "make_structure"]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Provenance:
    """Where a structure came from; no part of its identity.

    Attributes:
        study: Its name.
        trial: Number in it.
        strategy: What chose the structure.
        seed: Of the trial.
        sparsearch: Version.
        offered: Candidates of the space that it was chosen from; 0 where nobody wrote it down, as in earlier files.
    """

    study: str = ""
    trial: int | None = None
    strategy: str = ""
    seed: int | None = None
    sparsearch: str = ""
    offered: int = 0


@dataclass(frozen=True)
class Structure:
    """A set of candidates; at most one per (position, kind), in one precision, rank units summed into its size.

    Attributes:
        backbone: The only backbone it attaches to.
        task_type: What it was searched for, one of ``TASK_TYPES``.
        candidates: In the backbone's order.
        kinds: The kinds in use, with their options.
        provenance: Where it came from.
    """

    backbone: BackboneId
    task_type: str
    candidates: tuple[Candidate, ...]
    kinds: tuple[Kind, ...]
    provenance: Provenance = field(default=Provenance(), compare=False)

    @cached_property
    def trainable_params(self) -> int:
        """Trainable parameters; the task head is not among them."""
        return sum(c.params for c in self.candidates)

    @cached_property
    def bytes(self) -> int:
        """Bytes of the tensors of what is attached, of what stands in for cuts, and of masks: the exported file's."""
        return sum(c.bytes for c in self.candidates)

    @property
    def stored_bytes(self) -> int:
        """What a task costs to keep: all that the backbone's files and a seed do not give back; the head apart.

        That is the tensors, and which candidates of the space were chosen, as a bitmap.
        """
        return self.bytes + choice_bytes(max(self.provenance.offered, len(self.candidates)))

    @property
    def pruned_weights(self) -> int:
        """Weights of the backbone that are set to zero."""
        return sum(c.pruned_weights for c in self.candidates)

    @cached_property
    def merged_flops_per_token(self) -> int:
        """FLOPs per token that the structure adds at inference, after merging what merges and cutting."""
        return sum(c.merged_flops_per_token for c in self.candidates)

    def inference_flops(self, tokens: int) -> int:
        """The same in sequences of so many tokens: what is cut of attention counts with their length."""
        return sum(c.inference_flops(tokens) for c in self.candidates)

    @cached_property
    def hash(self) -> str:
        """Name of the structure: SHA-256 of what it is, not of where it came from; options at defaults are left out."""
        content = {
            "backbone": [self.backbone.config_hash, self.backbone.weight_fingerprint],
            "task_type": self.task_type,
            "candidates": [
                [c.position, c.kind, c.size, *([c.which] if c.which else [])]
                for c in self.candidates
            ],
            "kinds": {k.name: k.set_options for k in self.kinds},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def problems(self) -> list[str]:
        """What is wrong with the candidates, whatever the backbone."""
        known, seen, found = {k.name for k in self.kinds}, set(), []
        for c in self.candidates:
            if (c.position, c.base_kind) in seen:
                found.append(f"{c.kind} at {c.position} is there twice")
            if c.kind not in known:
                found.append(f"{c.kind} at {c.position} is of a kind that `kinds` lacks")
            if c.size < 1:
                found.append(f"{c.kind} at {c.position} has size {c.size}, below 1")
            seen.add((c.position, c.base_kind))
        return found

    def kind(self, name: str) -> Kind:
        """The kind of that name, with the structure's options."""
        return next(k for k in self.kinds if k.name == name)

    def _options(self) -> dict[str, dict[str, Any]]:
        return {k.name: vars(k) for k in self.kinds}

    def as_dict(self) -> dict[str, Any]:
        """The structure file's content: plain values, for JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "backbone": self.backbone.as_dict(),
            "task_type": self.task_type,
            "kinds": self._options(),
            "candidates": [vars(c) for c in self.candidates],
            "costs": self._costs(),
            "provenance": vars(self.provenance),
        }

    def _costs(self) -> dict[str, int]:
        return {
            "trainable_params": self.trainable_params,
            "bytes": self.bytes,
            "merged_flops_per_token": self.merged_flops_per_token,
        }

    def to_json(self, indent: int | None = 1) -> str:
        """The structure file's text, on one line without an indent."""
        return json.dumps(self.as_dict(), indent=indent)

    @classmethod
    def from_json(cls, text: str) -> Structure:
        """Read a structure file's text.

        Raises:
            StructureError: If it is no structure, was written by a newer version, its candidates
                cannot be, or its costs do not add up.
        """
        try:
            raw = read_json(text)
            version = raw.get("schema_version") if isinstance(raw, dict) else None
            if isinstance(version, int) and version > SCHEMA_VERSION:
                raise StructureError(
                    f"the structure has schema_version {version}; this sparsearch reads up to {SCHEMA_VERSION}",
                    "upgrade sparsearch",
                )
            document = _Document.model_validate(raw)
            kinds = tuple(stored_kind(name, options) for name, options in document.kinds.items())
        except (ValueError, ConfigError) as error:
            raise StructureError(
                f"not a structure file: {_first_problem(error)}",
                "write one with `sparsearch export`",
            ) from error
        structure = cls(
            BackboneId(**document.backbone.model_dump()),
            document.task_type,
            tuple(Candidate(**vars(c) | {"which": tuple(c.which)}) for c in document.candidates),
            kinds,
            Provenance(**document.provenance.model_dump()),
        )
        if problems := structure.problems():
            raise StructureError(
                "not a structure file: " + "; ".join(problems),
                "write one with `sparsearch export`",
            )
        if document.costs.model_dump() != structure._costs():
            raise StructureError("the structure's costs are not the sum of its candidates' costs")
        return structure

    @classmethod
    def load(cls, path: str | Path) -> Structure:
        """Read ``structure.json``, or the folder that holds it.

        Raises:
            StructureError: If there is none, or it is malformed.
        """
        file = Path(path)
        file = file / "structure.json" if file.is_dir() else file
        try:
            return cls.from_json(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise StructureError(
                f"cannot read a structure from {str(path)!r}: {error}",
                "give a folder written by `sparsearch export --to spec`",
            ) from error


def make_structure(
    space: Space,
    chosen: Iterable[Candidate],
    backbone: BackboneId,
    task_type: str,
    provenance: Provenance = Provenance(),  # noqa: B008 - frozen
) -> Structure:
    """A structure from chosen candidates: units of one (position, kind) add up, order is the space's.

    What is cut makes the rest cheaper: a low-rank unit loses its rows on a head that is gone.
    """
    provenance = replace(provenance, offered=len(space.candidates))
    merged = merge_same_position(space, chosen)
    narrowed = narrowed_positions(space.positions, merged, trained=True)
    merged = [recompute_costs(c, space.kinds[c.kind], narrowed) for c in merged]
    order = {p.name: i for i, p in enumerate(space.positions)}
    kind_order = {name: i for i, name in enumerate(space.kinds)}
    candidates = sorted(merged, key=lambda c: (order[c.position], kind_order[c.kind]))
    used = {c.kind for c in candidates}
    kinds = tuple(kind for name, kind in space.kinds.items() if name in used)
    return Structure(backbone, task_type, tuple(candidates), kinds, provenance)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _BackboneDocument(_Strict):
    path: str
    revision: str | None
    family: str
    config_hash: str
    weight_fingerprint: str
    params: int
    quantisation: dict[str, bool | int | float | str | list[str]] | None = None


class _CandidateDocument(_Strict):
    position: str
    kind: str
    size: int
    params: int
    flops_per_token: int
    merged_flops_per_token: int
    frozen_bytes: int = 0
    flops_per_pair: int = 0
    which: list[int] = []
    pruned_weights: int = 0
    bits: int = 32
    scales: int = 0


class _CostsDocument(_Strict):
    trainable_params: int
    bytes: int
    merged_flops_per_token: int


class _ProvenanceDocument(_Strict):
    study: str
    trial: int | None
    strategy: str
    seed: int | None
    sparsearch: str
    offered: int = 0


class _Document(_Strict):
    schema_version: Literal[1]
    backbone: _BackboneDocument
    task_type: TaskName
    kinds: dict[str, dict[str, bool | int | float | str]]
    candidates: list[_CandidateDocument]
    costs: _CostsDocument
    provenance: _ProvenanceDocument


def _first_problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'document'}: {first['msg']}"
    if isinstance(error, ConfigError):
        return error.problems[0]
    return str(error).splitlines()[0]


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the structure file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "sparsearch structure",
        **{k: v for k, v in _Document.model_json_schema().items() if k != "title"},
    }
