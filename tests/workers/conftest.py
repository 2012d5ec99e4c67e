"""The database of a study."""

from __future__ import annotations

import pytest


@pytest.fixture
def db(tmp_path):
    return f"sqlite:///{tmp_path / 'study.db'}"
