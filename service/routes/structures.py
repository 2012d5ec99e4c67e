"""Structures, and two of them side by side."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path

from sparsearch.documents import plain
from sparsearch.results.report.difference import compare_structures
from sparsearch.service.models import DifferenceModel, StructureDocument, StructureModel
from sparsearch.service.routes.asked import OfStudy, TheStore

__all__ = ["Hash", "router"]

router = APIRouter(prefix="/structures", tags=["structures"])

Hash = Annotated[
    str, Path(max_length=64, description="Hash of a structure, or a unique prefix of it.")
]


@router.get("/{structure}", response_model=StructureModel)
def show_structure(structure: Hash, store: TheStore, study: OfStudy = None) -> Any:
    """Show a structure and its best trial."""
    return plain(store.find_structure(structure, study).as_detailed_dict())


@router.get("/{structure}/document", response_model=StructureDocument)
def structure_document(structure: Hash, store: TheStore, study: OfStudy = None) -> Any:
    """Show a structure as its file holds it: with it alone it can be attached and trained.

    Equal structures are one; with a study it names the backbone and the space of that study.
    """
    if study is None:
        return store.load_structure(structure).as_dict()
    return store.find_structure(structure, study).structure.as_dict()


@router.get("/{structure}/diff/{other}", response_model=DifferenceModel)
def diff_structures(structure: Hash, other: Hash, store: TheStore) -> Any:
    """Compare two structures, position by position."""
    first, second = store.load_structure(structure), store.load_structure(other)
    return plain(compare_structures(first, second).as_dict())
