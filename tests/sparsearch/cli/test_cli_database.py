"""Which database a command takes: the default, the environment's, none, one with a password."""

import shlex
from pathlib import Path

import pytest

from sparsearch.results.store.store import DEFAULT_URL
from tests.helpers.command_line import answer, call
from tests.helpers.filled_study import fill, plan


def test_default_database_is_the_stores() -> None:
    from sparsearch.cli.options import DEFAULT_DB

    assert DEFAULT_DB == DEFAULT_URL


def test_next_commands_of_a_url_with_a_password_can_be_pasted(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They hold neither the password nor stars; where the environment names the database, no URL at all."""
    fill(postgres_url, "trec-toy", plan())
    db = postgres_url.replace("postgres@", "postgres:secret@")
    done = call("best", "--db", db)
    assert "secret" not in done.out and "***" not in done.out
    assert "the password is left out: set PGPASSWORD" in done.out
    command = done.out.partition("next: sparsearch ")[2].splitlines()[0]
    assert "postgresql://postgres@/" in command
    assert call(*shlex.split(command)).code == 0
    monkeypatch.setenv("SPARSEARCH_DB", db)
    done = call("best")
    assert "--db" not in done.out and "PGPASSWORD" not in done.out


@pytest.mark.parametrize("words", [("studies",), ("best",), ("stop", "x"), ("train", "abcd", "s")])
def test_nothing_of_a_password_is_shown(words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "s").write_text("name: x\n")
    done = call(*words, "--db", "postgresql://me:Q1@Q2/Q3:Q4#Q5%20@127.0.0.1:5432/studies")
    assert done.code in (1, 2)
    assert "Q" not in done.out + done.err


@pytest.mark.parametrize(
    "words", [("studies",), ("trials", "x"), ("best",), ("pareto", "x"), ("show", "abcd")]
)
def test_missing_database(words: tuple[str, ...]) -> None:
    done = call(*words, "--json")
    assert (done.code, done.out) == (1, "")
    assert "sparsearch.db" in done.err and "hint:" in done.err
    assert not list(Path().iterdir())


def test_database_from_the_environment(db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEARCH_DB", db)
    assert len(answer("studies")) == 1
