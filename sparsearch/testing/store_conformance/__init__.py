"""A store's conformance suite: samples, four groups of tests, and the suite that joins them."""

from sparsearch.testing.store_conformance.samples import (
    sample_outcome,
    sample_structure,
    sample_study,
    task_config,
)
from sparsearch.testing.store_conformance.suite import StoreConformance

__all__ = ["StoreConformance", "sample_outcome", "sample_structure", "sample_study", "task_config"]
