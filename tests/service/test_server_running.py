"""`sparsearch --server URL`: studies run, are left, stopped and deleted; exports are unpacked."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml

from sparsearch.errors import ExportError
from sparsearch.results import Store
from sparsearch.service.client.exports import unpack
from sparsearch.service.settings import ServiceSettings
from sparsearch.workers.study import run
from tests.conftest import tiny_study
from tests.helpers.command_line import call
from tests.helpers.waiting import until
from tests.service.conftest import served

pytestmark = [pytest.mark.usefixtures("plain_environment"), pytest.mark.slow]

_PATIENCE = 150
_SAME = ("number", "strategy", "budget", "seed", "state", "score", "test_score", "structure")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_folder, tiny_data):
    """A database with the tiny study, run here."""
    url = f"sqlite:///{tmp_path_factory.mktemp('whole') / 'whole.db'}"
    run(tiny_study(tiny_folder, tiny_data), url)
    return url


@pytest.fixture
def settings(tmp_path, tiny_folder, tiny_data):
    url, roots = f"sqlite:///{tmp_path / 'launched.db'}", (tiny_folder, tiny_data)
    return ServiceSettings(url, launches=tmp_path / "launches", roots=roots)


@pytest.fixture
def study_file(study, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return str(path)


@contextmanager
def command(*words):
    """The command line in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sparsearch.cli.main", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def told(settings, event):
    """Whether any launch has told of an event."""
    files = settings.launches.glob("*/events.jsonl")
    return any(f'"event": "{event}"' in file.read_text() for file in files)


def trials(*words):
    return [{key: row[key] for key in _SAME} for row in json.loads(call(*words).out)]


def test_a_study_runs_at_a_service_as_it_does_here(whole, settings, study_file):
    """The server ends in the middle, though somebody watches, and comes back: who watches loses nothing."""
    roots = [word for root in settings.roots for word in ("--root", str(root))]
    serve = ["serve", "--db", settings.db, "--launches", str(settings.launches), "--port", "0"]
    with ExitStack() as opened:
        with command(*serve, *roots) as server:
            url = server.stderr.readline().split()[-1].removesuffix("/api/v1")
            process = opened.enter_context(command("--server", url, "run", study_file))
            until(lambda: told(settings, "finished"))
            server.terminate()
            server.communicate(timeout=30)
        time.sleep(1.0)
        assert process.poll() is None, "it waits for the service"
        opened.enter_context(served(settings, port=int(url.rpartition(":")[2])))
        out, err = process.communicate(timeout=_PATIENCE)
        assert process.returncode == 0, err
        expected = trials("trials", "tiny", "--json", "--db", whole)
        assert trials("--server", url, "trials", "tiny", "--json") == expected
        again = call("--server", url, "run", study_file)
    here = call("run", study_file, "--db", whole)
    assert "is finished already" in here.err and "is finished already" in again.err

    def shown(text):
        """The summary, without where it is stored, and without what is said of data that was read."""
        elsewhere = re.compile(r"^warning: |^stored |^  sparsearch |^  http|^  .*--(db|server) ")
        return [line for line in text.splitlines() if not elsewhere.search(line)]

    assert shown(out) == shown(again.out) == shown(here.out)
    assert "warning: " in out and "smallest candidate" in err and "all rows" in err
    assert "no position reaches:\n  pooler.dense" in err
    assert f"stored at {url}" in out and f"sparsearch --server {url} best" in out.replace(
        "\n", " "
    )
    assert "trials to run" in err
    finished = re.findall(r"^ *(\d+)  \S+ .* ok .* validation 0\.\d{4}  test 0\.\d{4}", err, re.M)
    assert sorted(map(int, finished)) == [t["number"] for t in expected], "each once"


def test_a_study_is_left_stopped_and_deleted(settings, study_file):
    longer = ["--set", "train.epochs=3000", "--set", "baselines=[]", "--set", "budgets=[200]"]
    with served(settings) as url:
        with command("--server", url, "run", study_file, *longer) as process:
            until(lambda: told(settings, "progressed"))
            time.sleep(1.0)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=_PATIENCE)
        assert process.returncode == 130 and f"study tiny goes on at {url}" in err
        assert f"--server {url} stop tiny" in err
        twice = call("--server", url, "run", study_file, *longer)
        assert twice.code == 1 and "is running already" in twice.err
        busy = call("--server", url, "delete", "tiny", "--yes")
        assert busy.code == 1 and "stop it first" in busy.err
        with command("--server", url, "run", study_file, "--set", "name=other") as other:
            until(lambda: len(list(settings.launches.glob("*/request.json"))) == 2)
            waiting = call("--server", url, "stop", "other", "--json")
            assert json.loads(waiting.out) == {"study": "other", "stopped": "the queue"}
            _, err = other.communicate(timeout=_PATIENCE)
            assert other.returncode == 130 and "the same command continues" in err
        stopped = call("--server", url, "stop", "ti", "--json")
        assert stopped.code == 0 and json.loads(stopped.out)["study"] == "tiny"
        assert str(os.uname().nodename) in json.loads(stopped.out)["stopped"]
        nobody = call("--server", url, "stop", "tiny")
        assert nobody.code == 0 and "nobody runs study tiny" in nobody.out
        assert "whole name" in call("--server", url, "delete", "tin", "--yes").err
        assert call("--server", url, "delete", "tiny", "--yes").code == 0
        gone = call("--server", url, "delete", "tiny", "--yes")
        assert gone.code == 1 and "there is no study 'tiny'" in gone.err


def test_what_is_wrong_with_a_study_is_said_as_here(settings, study_file, tmp_path):
    wrong = ["--set", "budgets=[]", "--set", "seeds=[x]"]
    tight = ["--set", "budgets=[1]"]
    with served(settings) as url:
        for change in (wrong, tight):
            theirs = call("--server", url, "run", study_file, *change)
            here = call("run", study_file, "--db", str(tmp_path / "none.db"), *change)
            assert theirs == here and here.code in (2, 3)
        train = ("train", "00000000", study_file)
        theirs, here = call("--server", url, *train), call(*train, "--db", settings.db)
        assert theirs == here and "neither a file or folder nor found as a hash" in here.err
        elsewhere = call("--server", url, "run", study_file, "--set", "model.path=/etc")
        assert elsewhere.code == 2 and "serve --root" in elsewhere.err
        infinite = call("--server", url, "run", study_file, "--set", "train.lr=.inf")
        assert infinite.code == 2 and "what JSON cannot" in infinite.err


def test_a_study_that_fails_ends_with_its_error(settings, study_file):
    """The stored study of that name is another one."""
    with Store.open(settings.db, create=True):
        pass
    content = yaml.safe_load(Path(study_file).read_text())
    run(content | {"baselines": [], "budgets": [200]}, settings.db)
    change = ["--set", "space={kinds: {bitfit: {}}}"]
    with served(settings) as url:
        theirs = call("--server", url, "run", study_file, *change)
        here = call("run", study_file, "--db", settings.db, *change)
    said = [line for line in here.err.splitlines() if line.startswith(("error", "hint"))]
    assert theirs.code == here.code == 1 and len(said) == 2
    assert all(line in theirs.err for line in said)


def test_an_export_is_the_same(whole, tmp_path):
    with Store.open(whole, create=False) as store:
        best = next(b for b in store.pareto("tiny") if b.strategy == "lora-qv").structure.hash
    settings = ServiceSettings(whole, launches=tmp_path / "launches")
    folders = [tmp_path / name for name in ("here", "there")]
    with served(settings) as url:
        for to in ("spec", "peft"):
            outs = [folder / to for folder in folders]
            asked = ("export", best[:10], "--to", to, "--json")
            here = call(*asked, "--out", str(outs[0]), "--db", whole)
            there = call("--server", url, *asked, "--out", str(outs[1]))
            assert here.code == there.code == 0, there.err
            ours, theirs = json.loads(here.out), json.loads(there.out)
            assert theirs == ours | {"path": str(outs[1])} and ours["files"]
            for name in ours["files"]:
                assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes(), name
        full = call("--server", url, "export", best[:10], "--out", str(outs[1]))
        assert full.code == 1 and "is not an empty folder" in full.err
        none = call("--server", url, "export", "0000", "--out", str(tmp_path / "none"))
        assert none.code == 1 and "no successful trial" in none.err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("name", "mode"),
    [("../out", 0), ("/out", 0), ("top/../../out", 0), ("top\\..\\out", 0), ("top/link", 0o120777),
     ("top/pipe", 0o010644)],
)  # fmt: skip
def test_a_download_writes_nothing_elsewhere(name, mode, tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("top/good.txt", "good")
        entry = zipfile.ZipInfo(name)
        entry.filename, entry.external_attr = name, mode << 16
        archive.writestr(entry, "/etc/passwd")
    folder = tmp_path / "folder"
    folder.mkdir()
    with (
        zipfile.ZipFile(file) as archive,
        pytest.raises(ExportError, match="no file of an export"),
    ):
        unpack(archive, folder)
    assert [p.name for p in tmp_path.rglob("*")] == ["folder", "good.txt"]
