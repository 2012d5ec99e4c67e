"""A database filled by hand, the name of a new one, and an empty folder for every test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.filled_study import fill, plan


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('cli') / 'x.db'}"
    fill(url, "trec-toy", plan())
    return url


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPARSEARCH_DB", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    yield


@pytest.fixture
def new_db(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'new.db'}"
