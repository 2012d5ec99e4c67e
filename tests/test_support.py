"""The support matrix says what the code does."""

from __future__ import annotations

import pytest

from tests.helpers.support_matrix import PAGE, page


@pytest.mark.filterwarnings("ignore")
def test_the_support_matrix_is_up_to_date():
    """`python -m tests.helpers.support_matrix` writes it anew."""
    assert PAGE.read_text(encoding="utf-8") == page()
