"""What an operator may choose: addresses, tokens, host names."""

from __future__ import annotations

import base64
import ipaddress
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from sparsearch.errors import ConfigError
from sparsearch.results.store.connection.urls import absolute_url

__all__ = [
    "READ_TOKEN",
    "RUN_TOKEN",
    "WEBHOOKS",
    "WEBHOOK_SECRET",
    "ServiceSettings",
    "is_loopback",
    "read_secrets",
]

READ_TOKEN, RUN_TOKEN = "SPARSEARCH_READ_TOKEN", "SPARSEARCH_RUN_TOKEN"
WEBHOOK_SECRET = "SPARSEARCH_WEBHOOK_SECRET"
"""Environment variables that hold a secret; with ``_FILE`` behind them, the name of a file that does."""

WEBHOOKS = "SPARSEARCH_WEBHOOKS"
"""Environment variable that holds what ``--webhook`` takes, for URLs that no list of processes is to show."""

_SHORTEST, _SHORTEST_KEY = 16, 24
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """Whether an address or a name is this machine's own.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    if host in _LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class ServiceSettings:
    """Where the service listens, and to whom it answers.

    Attributes:
        db: The database.
        host: The address to listen on.
        port: Likewise.
        root_path: The prefix under which a proxy serves it, like ``/search``.
        hosts: Names by which it may be called beside the loopback's and ``host``; ports do not matter.
        launches: Folder of the studies that are launched over HTTP.
        drivers: Of these, how many run at a time.
        ray_jobs: Address of the Ray dashboard whose cluster runs them; None for processes here.
        roots: Folders from which they may take data and models.
        hub: Whether they may take them from the hub.
        packages: Packages whose functions they may name.
        read_token: Lets one read; None where none is asked for.
        run_token: Lets one do everything.
        rate: Requests a second of one client; 0 for any number.
        streams: Event streams that may be open at a time.
        proxies: Addresses whose word on the client's address is believed.
        webhooks: URLs that are told how launched studies end.
        webhook_secret: Signs what they are told; ``whsec_`` and the key in base64.

    Raises:
        ConfigError: If it would answer strangers without a token, or any setting is not valid.
    """

    db: str = field(repr=False)
    host: str = "127.0.0.1"
    port: int = 8642
    root_path: str = ""
    hosts: tuple[str, ...] = ()
    launches: Path = Path("sparsearch-launches")
    drivers: int = 1
    ray_jobs: str | None = None
    roots: tuple[Path, ...] = ()
    hub: bool = False
    packages: tuple[str, ...] = ()
    read_token: str | None = field(default=None, repr=False)
    run_token: str | None = field(default=None, repr=False)
    rate: float = 200.0
    streams: int = 400
    proxies: tuple[str, ...] = ()
    webhooks: tuple[str, ...] = field(default=(), repr=False)
    webhook_secret: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "db", absolute_url(self.db)
        )  # drivers run in folders of their own
        object.__setattr__(self, "launches", self.launches.resolve())
        object.__setattr__(self, "roots", tuple(root.resolve() for root in self.roots))
        problems = [
            f"the {name} token has fewer than {_SHORTEST} characters"
            for name, token in (("reading", self.read_token), ("running", self.run_token))
            if token is not None and len(token) < _SHORTEST
        ]
        if self.read_token is not None and self.read_token == self.run_token:
            problems.append("one token for reading and running: who reads could run too")
        if not self.tokens and not is_loopback(self.host):
            problems.append(f"{self.host} is no loopback address, and there is no token")
        make = "python -c 'import secrets; print(secrets.token_urlsafe())'"
        hint = f"{make} makes one for {RUN_TOKEN}" if problems else ""
        if self.root_path and (not self.root_path.startswith("/") or self.root_path[-1] == "/"):
            problems.append(f"root path {self.root_path!r}: write it like /search")
        if not 0 <= self.rate < math.inf:
            problems.append(f"rate {self.rate}: a number of requests a second, or 0 for any")
        problems += [
            f"proxy {proxy!r} is no IP address or network"
            for proxy in self.proxies
            if not _is_network(proxy)
        ]
        problems += [f"root {str(r)!r} is no folder" for r in self.roots if not r.is_dir()]
        if self.ray_jobs is not None and (problem := _url_problem(self.ray_jobs)):
            problems.append(f"ray jobs: {problem}")
        problems += [
            f"webhook {number}: {problem}"
            for number, url in enumerate(self.webhooks, 1)
            if (problem := _url_problem(url))
        ]
        if self.webhook_secret is not None and self.webhook_key is None:
            problems.append(
                f"{WEBHOOK_SECRET} is not whsec_ and the base64 of 24 bytes or more; `python -c 'import base64, "
                'secrets; print("whsec_" + base64.b64encode(secrets.token_bytes(32)).decode())\'` makes one'
            )
        if problems:
            raise ConfigError(problems, hint)

    @property
    def uploads(self) -> Path:
        """Folder of the data files that were sent."""
        return self.launches / "uploads"

    @property
    def tokens(self) -> tuple[str, ...]:
        """Those that there are."""
        return tuple(t for t in (self.read_token, self.run_token) if t is not None)

    @property
    def webhook_key(self) -> bytes | None:
        """The key of the signatures; None where there is no valid secret."""
        head, _, text = (self.webhook_secret or "").partition("_")
        try:
            key = base64.b64decode(text, validate=True)
        except ValueError:
            return None
        return key if head == "whsec" and len(key) >= _SHORTEST_KEY else None

    @property
    def allowed_hosts(self) -> frozenset[str]:
        """Host names to answer to, in lower case, without ports."""
        return frozenset(h.lower() for h in (*_LOOPBACK_NAMES, self.host, *self.hosts))


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def _url_problem(url: str) -> str:
    """Why nothing is sent to a URL, which may be a secret and is not repeated; empty if nothing is wrong."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "it is no URL"
    if parts.scheme not in ("http", "https") or not host:
        return "write it like https://HOST/PATH"
    return "it holds a user or a password" if "@" in parts.netloc else ""


_SECRETS = {
    "read_token": READ_TOKEN,
    "run_token": RUN_TOKEN,
    "webhook_secret": WEBHOOK_SECRET,
}


def read_secrets(environ: Mapping[str, str] = os.environ) -> dict[str, str | None]:
    """The tokens and the secret of the settings, by the names of the arguments, from the environment or from files.

    Raises:
        ConfigError: If a file cannot be read, or a secret is given in both ways.
    """
    found: dict[str, str | None] = {}
    for argument, name in _SECRETS.items():
        token, file = environ.get(name), environ.get(f"{name}_FILE")
        if token and file:
            raise ConfigError([f"{name} and {name}_FILE are both set"], "unset one of them")
        if file:
            try:
                token = Path(file).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError([f"{name}_FILE: cannot read {file!r}: {error}"]) from error
        found[argument] = token or None
    return found
