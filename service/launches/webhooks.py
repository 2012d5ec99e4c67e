"""Tells receivers that the operator names how launched studies ended."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
from starlette.concurrency import run_in_threadpool

from sparsearch.documents import plain
from sparsearch.errors import NotFoundError
from sparsearch.results.store.store import Store
from sparsearch.service.launches.folder import UNTOLD

__all__ = ["Webhooks", "public_part", "signed"]

_LOOK_SECONDS = 1.0
_ANSWER_SECONDS = 10.0
_NOTE_SECONDS = 30.0
_PAUSES = (1.0, 5.0, 30.0, 120.0, 600.0)
"""Seconds before each further try."""

_logger = logging.getLogger(__name__)


def public_part(url: str) -> str:
    """What may be shown of a receiver's URL, whose path may be a secret.

    >>> public_part("https://hooks.example.org:8443/T0/secret?key=x")
    'https://hooks.example.org:8443'
    """
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def signed(secret: bytes | None, delivery: str, body: bytes, at: int) -> dict[str, str]:
    """The headers of a delivery, as the Standard Webhooks specification has them (standardwebhooks.com).

    Args:
        secret: Key of the HMAC-SHA256; None for no signature.
        delivery: Id of the delivery.
        body: What is sent.
        at: Seconds since 1970.
    """
    headers = {"webhook-id": delivery, "webhook-timestamp": str(at)}
    if secret is not None:
        digest = hmac.digest(secret, f"{delivery}.{at}.".encode() + body, "sha256")
        headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    return headers


@dataclass
class _Delivery:
    """Of one end to one receiver: what was tried, when to go on, and whether it was taken or given up."""

    tries: int = 0
    due: float = 0.0
    over: bool = False


class Webhooks:
    """Looks every second for ends that a receiver has not been told, and posts them.

    Each receiver has a task of its own, so that none waits for another. What is to be told is in the launches' folders:
    another server goes on where this one was killed.

    Args:
        root: Folder of the launches.
        store: The database, for how many trials have finished, and the best score.
        urls: Of the receivers.
        secret: Key of the signatures; None for none.
    """

    def __init__(
        self, root: Path, store: Store, urls: tuple[str, ...], secret: bytes | None
    ) -> None:
        self.root, self.store, self.secret = root, store, secret
        self.urls = {hashlib.sha256(url.encode()).hexdigest()[:16]: url for url in urls}
        """By the ending of the file that says that a receiver was told."""

    async def run(self) -> None:
        """Tell the receivers until cancelled; without any, what ended is told to nobody, later neither."""
        if not self.urls:
            for notice in self._notices():
                notice.unlink(missing_ok=True)
            return
        logging.getLogger(httpx.__name__).setLevel(logging.WARNING)  # else it logs whole URLs
        client = httpx.AsyncClient(follow_redirects=False, timeout=_ANSWER_SECONDS)
        async with client, asyncio.TaskGroup() as all:
            for mark in self.urls:
                all.create_task(self._serve(client, mark))

    def _notices(self) -> list[Path]:
        return sorted(self.root.glob(f"*/{UNTOLD}/*.json"))

    async def _serve(self, client: httpx.AsyncClient, mark: str) -> None:
        """Tell one receiver whatever it was not told."""
        deliveries: defaultdict[Path, _Delivery] = defaultdict(_Delivery)
        while True:
            try:
                for notice in self._notices():
                    if not notice.with_suffix(f".{mark}").exists():
                        await self._deliver(client, mark, notice, deliveries[notice])
            except OSError as error:  # of the folders: a later look may find them well
                self._warn(mark, error.strerror or type(error).__name__)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _deliver(
        self, client: httpx.AsyncClient, mark: str, notice: Path, delivery: _Delivery
    ) -> None:
        """Try once, if it is due; once it is over, only note that."""
        if delivery.due > time.monotonic():
            return
        if not delivery.over:
            problem = await self._post(client, self.urls[mark], notice)
            delivery.tries += 1
            if problem and delivery.tries <= len(_PAUSES):
                delivery.due = time.monotonic() + _PAUSES[delivery.tries - 1]
                return
            if problem:
                self._warn(mark, f"given up after {delivery.tries} tries: {problem}")
            delivery.over = True
        try:
            self._note(notice, notice.with_suffix(f".{mark}"))
        except OSError as error:
            delivery.due = time.monotonic() + _NOTE_SECONDS
            self._warn(mark, f"told, which cannot be noted: {error.strerror}")

    def _warn(self, mark: str, what: str) -> None:
        _logger.warning("webhook %s: %s", public_part(self.urls[mark]), what)

    def _note(self, notice: Path, told: Path) -> None:
        """Note that a receiver was told, or that it was given up; after the last one nothing is left to tell."""
        with suppress(FileNotFoundError):  # its study was deleted
            told.touch()
            if all(notice.with_suffix(f".{mark}").exists() for mark in self.urls):
                for file in notice.parent.glob(f"{notice.stem}.*"):
                    file.unlink(missing_ok=True)

    async def _post(self, client: httpx.AsyncClient, url: str, notice: Path) -> str:
        """Send one end; why it was not taken, empty if it was."""
        try:
            return await self._try(client, url, notice)
        except FileNotFoundError:
            return ""  # its study was deleted
        except Exception as error:  # noqa: BLE001 - its text may hold the URL; other ends are told
            return type(error).__name__

    async def _try(self, client: httpx.AsyncClient, url: str, notice: Path) -> str:
        facts = json.loads(notice.read_text("utf-8"))
        facts |= await run_in_threadpool(self._figures, facts["study"])
        content = json.dumps(plain(facts)).encode()
        headers = signed(self.secret, facts["delivery"], content, int(time.time()))
        headers["content-type"] = "application/json"
        request = client.stream("POST", url, content=content, headers=headers)
        async with asyncio.timeout(_ANSWER_SECONDS), request as answer:  # its body is not read
            return "" if answer.is_success else f"status {answer.status_code}"

    def _figures(self, study: str) -> Mapping[str, Any]:
        with suppress(NotFoundError):
            record = self.store.find_study(study)
            if record.name == study:  # not one whose name goes on
                return {"finished_trials": record.finished, "best_score": record.best_score}
        return {"finished_trials": None, "best_score": None}
