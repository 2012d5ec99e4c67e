"""The connection to a service: its address, a token, and what goes wrong on the way."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx2

import sparsearch
from sparsearch import errors
from sparsearch.errors import ConfigError, NotFoundError, SparsearchError
from sparsearch.service import PREFIX
from sparsearch.service.settings import READ_TOKEN, RUN_TOKEN, read_secrets

__all__ = ["WORK", "Connection", "Unreachable", "base_url", "segment", "understood"]

_TIMEOUT = httpx2.Timeout(60.0, connect=10.0)
WORK = httpx2.Timeout(900.0, connect=10.0)
"""Of requests for which the service builds or loads a model."""

_GATEWAY = (502, 503, 504)


class Unreachable(SparsearchError):
    """The service does not answer now."""


def base_url(text: str) -> str:
    """The address of a service, with its proxy's path and without a slash at the end.

    >>> base_url("https://example.org/search/")
    'https://example.org/search'
    >>> base_url("http://127.0.0.1:8642/api/v1")
    'http://127.0.0.1:8642'

    Raises:
        ConfigError: If it is none, or holds more than an address.
    """
    if "@" in text:
        raise ConfigError(
            ["the URL of a service holds no user and no password"],
            f"leave them out; a token comes from {RUN_TOKEN} or {READ_TOKEN}",
        )
    if re.search(r"[?#]", text):
        raise ConfigError(["the URL of a service holds no '?' and no '#'"], "end it with its path")
    try:
        parts = urlsplit(text)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        httpx2.URL(text)
    except (ValueError, httpx2.InvalidURL):
        known = False
    if not known:
        raise ConfigError(
            [f"{text!r} is no URL of a service"],
            "write it like http://127.0.0.1:8642 or https://example.org/search",
        )
    return text.rstrip("/").removesuffix(PREFIX).rstrip("/")


def segment(name: str) -> str:
    """A name as one part of a path.

    Raises:
        NotFoundError: If no path can hold it; no study and no structure is called so.
    """
    if not name.strip("."):
        raise NotFoundError(f"there is no study and no structure {name!r}", "give a name")
    return quote(name, safe="")


@contextmanager
def understood() -> Iterator[None]:
    """Whatever is made of an answer, or the error for one that is of another version.

    Raises:
        SparsearchError: If something is missing in it, or of another type.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise SparsearchError(
            f"the service answers what this sparsearch does not understand: {error!r}",
            f"this is version {sparsearch.__version__}; the service's is in the answer of {PREFIX}/health",
        ) from error


class Connection:
    """Requests to one service. The token comes from the environment, the one for running first.

    Args:
        url: Its address.

    Raises:
        ConfigError: If the address or the tokens cannot be used.
    """

    def __init__(self, url: str) -> None:
        self.url = base_url(url)
        tokens = read_secrets()
        token = tokens["run_token"] or tokens["read_token"]
        if token is not None and not re.fullmatch(r"[!-~]+", token):
            raise ConfigError(["a token holds a character that none can have"])
        self._has_token = token is not None
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self._http = httpx2.Client(
            base_url=self.url + PREFIX, headers=headers, timeout=_TIMEOUT, follow_redirects=False
        )

    def __enter__(self) -> Self:
        """For ``with``."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Close it."""
        self._http.close()

    def get(self, path: str, **query: Any) -> Any:
        """What a route answers, from JSON; queries that are None are left out.

        Raises:
            SparsearchError: That of the service; or that it cannot be reached, or is none.
        """
        asked = {key: value for key, value in query.items() if value is not None}
        return self._answer("GET", path, params=asked)

    def post(self, path: str, content: Mapping[str, Any] | None = None) -> Any:
        """The same of a request that changes something, or has a study as its body."""
        return self._answer("POST", path, json=content, timeout=WORK)

    def delete(self, path: str, **query: str) -> None:
        """The same of a request that deletes something."""
        self._answer("DELETE", path, params=query)

    def text(self, path: str, **query: Any) -> str:
        """What a route answers, as it is; queries that are None are left out."""
        asked = {key: value for key, value in query.items() if value is not None}
        with self.stream(path, params=asked) as answer:
            answer.read()
        return answer.text

    @contextmanager
    def stream(
        self, path: str, timeout: httpx2.Timeout = _TIMEOUT, **request: Any
    ) -> Iterator[httpx2.Response]:
        """An answer that is read in pieces.

        Args:
            path: Of the route.
            timeout: Of each piece.
            request: As for ``httpx2.Client.stream``.
        """
        with (
            self._reaching(),
            self._http.stream("GET", path, timeout=timeout, **request) as answer,
        ):
            if not answer.is_success:
                answer.read()
                raise self._error_of(answer)
            yield answer

    def no_api(self, answer: httpx2.Response) -> SparsearchError:
        """The error for an answer that is none of the API's."""
        said = f"{self.url} answers {answer.status_code}"
        if answer.is_redirect:
            target = answer.headers.get("location", "another address")
            return SparsearchError(
                f"{said}, which leads to {target}", "give the address that it leads to"
            )
        if answer.status_code in _GATEWAY:
            return Unreachable(
                f"{said}: its proxy cannot reach the service", "ask again in a moment"
            )
        return SparsearchError(
            f"{said} with something else than the API of sparsearch",
            f"is that the address of `sparsearch serve`, with the path of its proxy? "
            f"{self.url}{PREFIX}/health answers if it is",
        )

    def _answer(self, method: str, path: str, **request: Any) -> Any:
        with self._reaching():
            answer = self._http.request(method, path, **request)
        if not answer.is_success:
            raise self._error_of(answer)
        if answer.status_code == 204:
            return None
        try:
            return answer.json()
        except ValueError:
            raise self.no_api(answer) from None

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Errors of the way to the service."""
        try:
            yield
        except httpx2.TimeoutException as error:
            raise Unreachable(
                f"{self.url} does not answer in time", "ask again, or look at the service's log"
            ) from error
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise Unreachable(
                f"cannot reach {self.url}: {error}",
                "is `sparsearch serve` running there, and is the address right?",
            ) from error

    def _error_of(self, answer: httpx2.Response) -> SparsearchError:
        """The service's own error, with its class."""
        try:
            said = answer.json()
            message, hint, problems = str(said["message"]), str(said["hint"]), said["problems"]
            name = str(said["error"])
        except (ValueError, LookupError, TypeError):
            return self.no_api(answer)
        if answer.status_code == 401:
            message = f"{self.url} needs a token" + (
                ", and takes another one than was given" if self._has_token else ""
            )
            hint = f"set {RUN_TOKEN} or {READ_TOKEN}, or one of these with _FILE behind it"
        if answer.status_code == 403:
            hint = f"set {RUN_TOKEN}, or {RUN_TOKEN}_FILE, to the other token"
        kind = getattr(errors, name) if name in errors.__all__ else SparsearchError
        if kind is ConfigError:
            return ConfigError(problems, hint)
        made: SparsearchError = kind("\n  - ".join([message, *problems]), hint)
        return made
