"""A structure as files: downloaded as the zip file that a service makes, and unpacked."""

from __future__ import annotations

import json
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from sparsearch.errors import ExportError
from sparsearch.results.export.folders import ExportReport, check_target, new_folder
from sparsearch.service.client.connection import WORK, Connection, segment

__all__ = ["download_export", "unpack"]


def download_export(
    connection: Connection, structure: str, asked: Mapping[str, Any], out: Path
) -> tuple[str, ExportReport]:
    """Have a service export a structure, and write the files into a folder of this machine.

    Args:
        connection: To the service.
        structure: The beginning of its hash.
        asked: The queries ``to``, ``also``, ``study`` and ``max_bytes``.
        out: A folder that does not exist yet, or is empty.

    Returns:
        The structure's hash, and what was written.

    Raises:
        ExportError: If the folder cannot be written, or what comes is no export.
        SparsearchError: That of the service.
    """
    check_target(out)
    path, query = f"/structures/{segment(structure)}/export", {k: v for k, v in asked.items() if v}
    with tempfile.TemporaryFile() as file:
        with connection.stream(path, WORK, params=query) as answer:
            for piece in answer.iter_bytes():
                file.write(piece)
        try:
            with zipfile.ZipFile(file) as archive, new_folder(out) as folder:
                facts = json.loads(archive.comment)
                unpack(archive, folder)
            report = ExportReport(
                out, tuple(facts["files"]), tuple(facts["notes"]), facts["max_difference"]
            )
            return str(facts["structure"]), report
        except (zipfile.BadZipFile, ValueError, LookupError) as error:
            raise ExportError(
                f"what {connection.url} sent is no export: {error}",
                "are client and service of one version?",
            ) from error


def unpack(archive: zipfile.ZipFile, folder: Path) -> None:
    """Write the files of an archive, without the one folder in which they stand, into a folder.

    Raises:
        ExportError: If one would be written elsewhere, or is no plain file.
    """
    for entry in archive.infolist():
        path = PurePosixPath(entry.filename)
        inside = path.parts[1:]
        kind = stat.S_IFMT(entry.external_attr >> 16)
        unsafe = path.is_absolute() or ".." in path.parts or "\\" in entry.filename
        if unsafe or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ExportError(
                f"the download holds {entry.filename!r}, which is no file of an export"
            )
        target = folder.joinpath(*inside)
        if entry.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif inside:
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, target.open("xb") as file:
                shutil.copyfileobj(source, file)
