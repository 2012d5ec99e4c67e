"""What an operator may choose: addresses, tokens, host names."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sparsearch.errors import ConfigError

__all__ = ["READ_TOKEN", "RUN_TOKEN", "ServiceSettings", "is_loopback", "read_tokens"]

READ_TOKEN, RUN_TOKEN = "SPARSEARCH_READ_TOKEN", "SPARSEARCH_RUN_TOKEN"
"""Environment variables that hold a token; with ``_FILE`` behind them, the name of a file that does."""

_SHORTEST = 16
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
        roots: Folders from which they may take data and models.
        hub: Whether they may take them from the hub.
        read_token: Lets one read; None where none is asked for.
        run_token: Lets one do everything.

    Raises:
        ConfigError: If it would answer strangers without a token, or a token is too short.
    """

    db: str = field(repr=False)
    host: str = "127.0.0.1"
    port: int = 8642
    root_path: str = ""
    hosts: tuple[str, ...] = ()
    launches: Path = Path("sparsearch-launches")
    drivers: int = 1
    roots: tuple[Path, ...] = ()
    hub: bool = False
    read_token: str | None = field(default=None, repr=False)
    run_token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
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
        problems += [f"root {str(r)!r} is no folder" for r in self.roots if not r.is_dir()]
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
    def allowed_hosts(self) -> frozenset[str]:
        """Host names to answer to, in lower case, without ports."""
        return frozenset(h.lower() for h in (*_LOOPBACK_NAMES, self.host, *self.hosts))


def read_tokens(environ: Mapping[str, str] = os.environ) -> dict[str, str | None]:
    """The arguments ``read_token`` and ``run_token`` of the settings, from the environment or from files.

    Raises:
        ConfigError: If a file cannot be read, or a token is given in both ways.
    """
    found: dict[str, str | None] = {}
    for argument, name in (("read_token", READ_TOKEN), ("run_token", RUN_TOKEN)):
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
