"""The folder of a launch: what is written, and read back in pieces."""

from __future__ import annotations

import json

import pytest

from sparsearch.errors import NotFoundError
from sparsearch.service.launches.folder import End, find_launch, launches, make_launch

pytestmark = pytest.mark.unit


def full_disk(value, file):
    file.write("{")
    raise OSError(28, "No space left on device")


def test_a_launch_that_cannot_be_written_leaves_its_name_free(tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(json, "dump", full_disk)
        make_launch(tmp_path, "mine", {"seeds": [0]})
    assert launches(tmp_path) == [] and not [p for p in tmp_path.rglob("*") if p.is_file()]
    with pytest.raises(NotFoundError):
        find_launch(tmp_path, "mine")
    assert make_launch(tmp_path, "mine", {"seeds": [0]}).state == "queued"


def test_a_launch_that_cannot_be_queued_again_stays_as_it_ended(tmp_path, monkeypatch):
    launch = make_launch(tmp_path, "mine", {"seeds": [0]})
    launch.finish(End(1, "its data is missing"))
    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(json, "dump", full_disk)
        make_launch(tmp_path, "mine", {"seeds": [1]})
    assert (launch.state, launch.request["study"]) == ("failed", {"seeds": [0]})
    make_launch(tmp_path, "mine", {"seeds": [1]})
    assert (launch.state, launch.request["study"]) == ("queued", {"seeds": [1]})
