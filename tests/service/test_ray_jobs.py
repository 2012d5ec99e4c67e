"""Drivers as jobs of a real Ray cluster, whose head is killed in the middle of a study."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest

from sparsearch.results import Store
from sparsearch.service.launches.folder import find_launch, make_launch
from sparsearch.workers.study import run
from tests.helpers.served import served
from tests.helpers.waiting import until
from tests.service.conftest import RUN

_PATIENCE = 90

pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture
def token(tmp_path):
    """Makes a cluster ask for a token of its own, whatever this machine's user has set up."""
    path = tmp_path / "ray-token"
    path.write_text(secrets.token_hex(32))
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}


@contextmanager
def head(port, token, gcs):
    """A Ray cluster with its dashboard and its GCS at these ports; its own processes are gone in the end."""
    folder = Path(tempfile.mkdtemp(prefix="ss-ray-", dir="/tmp"))  # its sockets have short names
    ports = {
        "--port": gcs,
        "--dashboard-port": port,
        "--dashboard-agent-listen-port": free_port(),
        "--ray-client-server-port": free_port(),
        "--min-worker-port": 0,
        "--max-worker-port": 0,
    }
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    command += ["--num-cpus=2", "--node-ip-address=127.0.0.1", f"--temp-dir={folder}"]
    command += ["--disable-usage-stats", *(f"{name}={value}" for name, value in ports.items())]
    with (folder / "said").open("w") as said:
        start = subprocess.Popen(command, stdout=said, stderr=said, env=os.environ | token)
    process = psutil.Process(start.pid)
    try:
        yield process
    finally:
        if start.poll() is None:
            kill([*process.children(recursive=True), process])
        start.wait()
        shutil.rmtree(folder, ignore_errors=True)


def kill(processes):
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(processes, timeout=30)


def driver_of(folder):
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or ()
        if str(folder) in command and "sparsearch.service.launches.driver" in command:
            return process
    return None


SUBMIT = """
import sys
from pathlib import Path
from sparsearch.errors import WorkersError
from sparsearch.service.launches.folder import Launch
from sparsearch.service.launches.ray_jobs import RayJobs
try:
    RayJobs(*sys.argv[1:3]).start(Launch(Path(sys.argv[3])))
except WorkersError as error:
    sys.exit(str(error))
"""


def submitted_twice(address, study, folder, token):
    """The one job of two servers that submit a driver and are gone before they count it."""
    launch = make_launch(folder, "other", study)
    launch.ask_to_stop()  # its driver ends as soon as it has begun
    command = [sys.executable, "-c", SUBMIT, address, "sqlite:///none.db", str(launch.folder)]
    servers = [subprocess.Popen(command, env=os.environ | token) for _ in range(2)]
    assert sorted(server.wait(_PATIENCE) for server in servers)[0] == 0
    found = [job["submission_id"] for job in jobs_of(address, token)]
    assert [name for name in found if name and launch.id in name] == [f"sparsearch-{launch.id}-1"]


def rows(db):
    with Store.open(db, create=False) as store:
        return [
            (t.number, t.strategy, t.budget, t.seed, t.state, t.score, t.test_score, t.structure)
            for t in store.trials("tiny")
        ]


def test_a_study_outlives_the_server_and_ends_although_the_head_is_killed(
    study, tiny_folder, tiny_data, tmp_path, token
):
    study = study | {
        "train": study["train"] | {"epochs": 60}
    }  # so that one can be killed in the middle
    whole, db = (f"sqlite:///{tmp_path / name}" for name in ("whole.db", "jobs.db"))
    run(study, whole)
    launches, port, gcs = tmp_path / "launches", free_port(), free_port()
    address = f"http://127.0.0.1:{port}"
    options = ("--ray-jobs", address, "--root", str(tiny_folder), "--root", str(tiny_data))
    tokens = {"SPARSEARCH_RUN_TOKEN": RUN} | token
    headers = {"authorization": f"Bearer {RUN}"}
    with head(port, token, gcs) as first:
        with served(db, launches, *options, **tokens) as client:
            client.headers = headers
            many = {"workers": {"runner": "ray", "max_concurrent": 1000}}
            planned = client.post("/plans", json=study | many)
            assert planned.status_code == 200, "they are the cluster's, not this machine's"
            client.post("/launches", json=study).raise_for_status()
            launch = find_launch(launches, "tiny")
            until(
                lambda: (
                    launch.events.exists() and '"event": "finished"' in launch.events.read_text()
                )
            )
        driver = driver_of(launch.folder)
        assert driver.is_running(), "it outlives the server"
        assert driver.environ()["RAY_ADDRESS"].endswith(f":{gcs}")
        assert RUN not in driver.environ().values() and launch.starts == 1
        assert not (launch.folder / "environment.json").exists()
        shown = json.dumps(jobs_of(address, token))
        assert launch.id in shown and db not in shown and "SPARSEARCH_DB" not in shown
        family = first.children(recursive=True)
        kill([*first.children(), first])  # the rest dies with them
    kill([p for p in family if p.is_running()])
    psutil.wait_procs([driver], timeout=30)
    assert launch.state == "queued" and 0 < finished(db) < len(rows(whole))
    with served(db, launches, *options, **tokens) as client:
        log = tmp_path / "server.log"
        until(lambda: "takes no jobs now" in log.read_text())
        time.sleep(2)
        assert log.read_text().count("takes no jobs now") == 1, "once"
        assert client.get("/health").status_code == 200
        with head(port, token, free_port()):
            until(lambda: launch.state == "finished")
            assert "drivers can be started again" in log.read_text()
            submitted_twice(address, study, tmp_path / "others", token)
    assert rows(db) == rows(whole)
    told = [json.loads(line) for line in launch.events.read_text().splitlines()]
    assert sorted(e["trial"] for e in told if e["event"] == "finished") == [
        row[0] for row in rows(whole)
    ]
    assert launch.starts == 2


def jobs_of(address, token):
    key = Path(token["RAY_AUTH_TOKEN_PATH"]).read_text()
    headers = {"authorization": f"Bearer {key}"}
    return httpx.get(f"{address}/api/jobs/", headers=headers, trust_env=False).json()


def finished(db):
    with Store.open(db, create=False) as store:
        return store.find_study("tiny").finished
