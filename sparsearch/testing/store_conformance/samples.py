"""Sample studies, structures and outcomes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sparsearch.results.records import (
    SPARSITY,
    FinishedState,
    Measurement,
    Outcome,
    StudySpec,
    Trial,
)
from sparsearch.results.store.writing.lease import Owner
from sparsearch.spaces.backbone.identity import BackboneId
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.candidate import Candidate
from sparsearch.spaces.kinds import make_kind
from sparsearch.spaces.structure import Provenance, Structure

__all__ = ["sample_outcome", "sample_structure", "sample_study", "task_config"]


_BACKBONE_PARAMS = 1_000_000


def sample_structure(params: int = 100, layer: int = 0) -> Structure:
    """A structure of one candidate; another size or layer makes another hash."""
    backbone = BackboneId("toy", None, "bert", "c0ffee", "f00d", _BACKBONE_PARAMS)
    candidate = Candidate(f"layers.{layer}.attn.q", "lora", params, params, 2 * params, 0)
    kinds = (make_kind("lora", {}),)
    return Structure(backbone, "classification", (candidate,), kinds, Provenance("elsewhere"))


def sample_study(
    name: str = "study",
    trials: int = 2,
    *,
    config: str = "{}",
    model: str = "toy",
    task: str = "trec",
    backbone_params: int = _BACKBONE_PARAMS,
) -> StudySpec:
    """A study of s3pet trials whose seeds are 10, 11, ..."""
    budget = Budget(max_trainable_params=100, text="0.01%")
    listed = tuple(Trial(n, "s3pet", budget, 10 + n) for n in range(trials))
    return StudySpec(name, config, model, task, "accuracy", backbone_params, listed)


def task_config(train: str, **changed: Any) -> str:
    """The configuration of a study whose training file has that digest, some settings of the task changed."""
    data = {"path": "json", "data_files": {"train": "train.jsonl"}}
    task = {"data": data, "text": ["text"]} | changed
    return json.dumps({"task": task, "data_sha256": {"train": train}})


def sample_outcome(
    score: float = 0.5,
    params: int = 100,
    *,
    stored: int | None = None,
    ratio: float = 1.0,
    sparsity: float = 0.0,
    layer: int = 0,
    state: FinishedState = "ok",
    structure: bool = True,
) -> Outcome:
    """An outcome with a validation score and a test score 0.1 below it; it stores its parameters if nothing is said."""
    return Outcome(
        state,
        measurements=(
            Measurement("accuracy", "validation", score),
            Measurement("loss", "validation", 9.0),
            Measurement("accuracy", "test", score - 0.1),
            *([Measurement(SPARSITY, "test", sparsity)] if sparsity else []),
        ),
        structure=sample_structure(params, layer) if structure else None,
        trainable_params=params,
        stored_bytes=4 * params if stored is None else stored,
        head_params=7,
        inference_flops_ratio=ratio,
        seconds=1.5,
        peak_bytes=2**33,
    )


def _dead_process() -> Owner:
    """A process of this machine that has ended."""
    me = Owner.current()
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return Owner(me.host, process.pid, me.started)


def _at_once(do: Callable[[int], None], count: int) -> None:
    """Call it with 0, 1, ... in as many threads, which start together."""
    barrier = threading.Barrier(count)

    def wait_and_do(number: int) -> None:
        barrier.wait()
        do(number)

    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(wait_and_do, number) for number in range(count)]:
            done.result()
