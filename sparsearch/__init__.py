"""Search where PET modules and sparsity go in a pretrained transformer, under a hard budget.

>>> import sparsearch as ss
>>> study = ss.run("study.yaml")                                     # doctest: +SKIP
>>> store = ss.open("sqlite:///sparsearch.db")                       # doctest: +SKIP
>>> best = store.best(task="trec", max_trainable_params="0.01%")     # doctest: +SKIP
>>> model = ss.attach(model, best.structure)                         # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsearch.config.study import StudyConfig
    from sparsearch.errors import SparsearchError
    from sparsearch.results.export.export import export, save
    from sparsearch.results.export.round_to_budget import round_to_budget
    from sparsearch.results.store.store import Store
    from sparsearch.results.store.store import open_store as open
    from sparsearch.search.trainer.callback import StructureCallback
    from sparsearch.spaces.attachment.attach import attach, detach
    from sparsearch.spaces.calibration.calibrate import calibrate
    from sparsearch.spaces.compaction.checkpoint import load_checkpoint
    from sparsearch.spaces.compaction.compact import compact
    from sparsearch.spaces.compaction.merge import merge
    from sparsearch.spaces.compaction.sparsity import measured_sparsity
    from sparsearch.spaces.space import Space, build_space
    from sparsearch.spaces.structure import Structure
    from sparsearch.workers.study import run

__all__ = [
    "Space",
    "SparsearchError",
    "Store",
    "Structure",
    "StructureCallback",
    "StudyConfig",
    "__version__",
    "calibrate",
    "attach",
    "build_space",
    "detach",
    "export",
    "load_checkpoint",
    "measured_sparsity",
    "merge",
    "open",
    "round_to_budget",
    "run",
    "save",
    "compact",
]

__version__ = "0.1.0"

_HOME = {
    "Space": "spaces.space:Space",
    "SparsearchError": "errors:SparsearchError",
    "Store": "results.store.store:Store",
    "Structure": "spaces.structure:Structure",
    "StructureCallback": "search.trainer.callback:StructureCallback",
    "StudyConfig": "config.study:StudyConfig",
    "calibrate": "spaces.calibration.calibrate:calibrate",
    "attach": "spaces.attachment.attach:attach",
    "build_space": "spaces.space:build_space",
    "detach": "spaces.attachment.attach:detach",
    "export": "results.export.export:export",
    "load_checkpoint": "spaces.compaction.checkpoint:load_checkpoint",
    "measured_sparsity": "spaces.compaction.sparsity:measured_sparsity",
    "merge": "spaces.compaction.merge:merge",
    "open": "results.store.store:open_store",
    "round_to_budget": "results.export.round_to_budget:round_to_budget",
    "run": "workers.study:run",
    "save": "results.export.export:save",
    "compact": "spaces.compaction.compact:compact",
}


_FORMER = {"align": "calibrate", "slim": "compact"}
"""Names of version 0.1, which stay for one version."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch and the database cost seconds."""
    if name in _FORMER:
        warnings.warn(f"sparsearch.{name} is called {_FORMER[name]} now", FutureWarning, 2)
        name = _FORMER[name]
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOME[name].split(":")
    try:
        return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.msg}: sparsearch is not installed here; in a clone run `make setup` and use .venv/bin/python, "
            "elsewhere `pip install sparsearch`",
            name=error.name,
        ) from error


def __dir__() -> list[str]:
    """Public names."""
    return __all__
