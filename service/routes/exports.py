"""A structure as files, in one download."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import zipfile
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from sparsearch.config.formats import ExportFormat, ServingFormat
from sparsearch.errors import ExportError, NotFoundError
from sparsearch.service.problems import Problem
from sparsearch.service.routes.asked import BINARY, NO_NUL, OfStudy, TheStore
from sparsearch.service.routes.structures import Hash

__all__ = ["router"]

router = APIRouter(prefix="/structures", tags=["structures"])

_one_at_a_time = threading.Lock()
"""An export loads a model twice: several at once would fill the memory."""


@router.get(
    "/{structure}/export",
    response_class=FileResponse,
    responses={200: {"content": {"application/zip": {"schema": BINARY}}}},
)
def export_structure(
    structure: Hash,
    store: TheStore,
    study: OfStudy = None,
    to: ExportFormat = ExportFormat.spec,
    also: Annotated[list[ServingFormat] | None, Query(max_length=2)] = None,
    max_bytes: Annotated[str | None, Query(max_length=40, pattern=NO_NUL)] = None,
) -> Any:
    """Download a trained structure as a zip file, proven by loading it again.

    With max_bytes its values are rounded until it stores at most so much. Where a serving file cannot be made, the
    checkpoint comes without it, and a note says why.

    The comment of the file is the JSON object of `sparsearch export --json`.
    """
    if also and to != ExportFormat.checkpoint:
        raise Problem("also: goes with to=checkpoint", status=422)
    best = store.find_structure(structure, study)
    weights = store.weights(best.study, best.trial)
    if weights is None:
        raise NotFoundError(f"trial {best.trial} of study {best.study!r} has no stored weights")
    from sparsearch.results.export.export import add_serving, check_also, export
    from sparsearch.results.export.round_to_budget import round_to_budget, rounding_note

    if not _one_at_a_time.acquire(blocking=False):
        raise Problem("another export is being written", "ask again in a minute", status=503)
    scratch = Path(tempfile.mkdtemp(prefix="sparsearch-export-"))
    try:
        notes: tuple[str, ...] = ()
        if max_bytes is not None:
            found, (best, weights) = best, round_to_budget(best, weights, max_bytes)
            notes = (rounding_note(found, best),)
        name = f"{best.structure.hash[:12]}-{to}"
        check_also(best.structure, also or ())
        report = export(best, weights, to, scratch / name)
        for serving in dict.fromkeys(also or ()):
            try:
                report = add_serving(report, serving)
            except ExportError as error:
                notes = (*notes, f"the checkpoint comes without {serving}: {error.message}")
        file = shutil.make_archive(str(scratch / "download"), "zip", scratch, name)
        facts = {
            "structure": best.structure.hash,
            "to": to,
            "files": report.files,
            "notes": (*notes, *report.notes),
            "max_difference": report.max_difference,
        }
        with zipfile.ZipFile(file, "a") as archive:
            archive.comment = json.dumps(facts).encode()
    except BaseException:
        shutil.rmtree(scratch)
        raise
    finally:
        _one_at_a_time.release()
    done = BackgroundTask(shutil.rmtree, scratch)
    return FileResponse(
        file, media_type="application/zip", filename=f"{name}.zip", background=done
    )
