"""Data sets that are sent to the service: checked by the reader that studies use, then at hand by their name."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.concurrency import run_in_threadpool

from sparsearch.errors import NotFoundError
from sparsearch.search.tasks.data_files import is_packed, read_file
from sparsearch.service.access import may_run
from sparsearch.service.audit import note
from sparsearch.service.models import UploadModel
from sparsearch.service.problems import Problem
from sparsearch.service.routes.asked import BINARY
from sparsearch.service.settings import ServiceSettings

__all__ = ["router"]

router = APIRouter(prefix="/uploads", tags=["uploads"], dependencies=[Depends(may_run)])

MOST_BYTES = 100_000_000
_FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}

FileName = Annotated[
    str,
    Path(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,80}\.(json|jsonl|csv|parquet)$",
        description="Of the file; its ending says what is in it.",
    ),
]


def _settings(request: Request) -> ServiceSettings:
    settings: ServiceSettings = request.app.state.settings
    settings.uploads.mkdir(exist_ok=True, mode=0o700)
    return settings


Settings = Annotated[ServiceSettings, Depends(_settings)]


def _checked(path: FilePath, name: str, delimiter: str) -> dict[str, Any]:
    """What is in a file, read as a study would."""
    if is_packed(path):
        raise Problem(f"{name} is compressed or an archive", "send the file itself", status=422)
    format = _FORMATS[FilePath(name).suffix]
    columns = read_file(format, path, (), delimiter).column_names
    rows = read_file(format, path, columns[:1], delimiter)
    if not columns or not len(rows):
        raise Problem(f"{name} has no rows", status=422)
    facts = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    return {"name": name, "columns": list(columns), "rows": len(rows), **facts}


def _sha256(path: FilePath) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _keep(scratch: FilePath, target: FilePath, digest: str) -> None:
    """Give a file its name; the same one again changes nothing, another one is refused."""
    try:
        os.link(scratch, target)
    except FileExistsError:
        if _sha256(target) != digest:
            raise Problem(
                f"there is another file {target.name!r}", "delete it first, or rename", status=409
            ) from None


@router.put(
    "/{name}",
    response_model=UploadModel,
    status_code=201,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": BINARY}},
        }
    },
)
async def upload_file(
    name: FileName,
    request: Request,
    settings: Settings,
    delimiter: Annotated[str, Query(min_length=1, max_length=1)] = ",",
) -> Any:
    """Send a data file as the body: JSON (an object a line), CSV or Parquet, 100 MB at most.

    A study then names it in `data_files`.
    """
    with tempfile.TemporaryDirectory(dir=settings.uploads) as folder:
        scratch = FilePath(folder) / name
        size = 0
        with scratch.open("wb") as file:
            async for piece in request.stream():
                size += len(piece)
                if size > MOST_BYTES:
                    raise Problem(f"{name} has more than {MOST_BYTES:,} bytes", status=413)
                file.write(piece)
        found = await run_in_threadpool(_checked, scratch, name, delimiter)
        _keep(scratch, settings.uploads / name, found["sha256"])
    note(request, "upload", name)
    return found


@router.get("", response_model=list[str])
def list_uploads(settings: Settings) -> Any:
    """List the files that were sent."""
    return sorted(path.name for path in settings.uploads.iterdir() if path.is_file())


@router.delete("/{name}", status_code=204)
def delete_upload(name: FileName, settings: Settings, request: Request) -> None:
    """Delete a file; studies that named it cannot go on without it."""
    try:
        (settings.uploads / name).unlink()
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {name!r}", "uploads list those that are") from error
    note(request, "delete upload", name)
