"""What may be chosen: positions, kinds, costs, structures."""

from sparsearch.spaces.attach import attach, attachment_of, detach
from sparsearch.spaces.backbone import BackboneId, identify, load_model
from sparsearch.spaces.budget import Budget, resolve
from sparsearch.spaces.positions import Position
from sparsearch.spaces.space import Candidate, Space, build_space
from sparsearch.spaces.structure import Provenance, Structure, make_structure

__all__ = [
    "BackboneId",
    "Budget",
    "Candidate",
    "Position",
    "Provenance",
    "Space",
    "Structure",
    "attach",
    "attachment_of",
    "build_space",
    "detach",
    "identify",
    "load_model",
    "make_structure",
    "resolve",
]
