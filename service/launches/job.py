"""What a Ray job runs: it becomes the driver of a launch, with the environment and the log of that launch.

python -m sparsearch.service.launches.job FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sparsearch.service.launches.folder import Launch

__all__ = ["main"]


def main() -> None:
    """Become the driver of the folder that the command line names."""
    launch = Launch(Path(sys.argv[1]))
    environment = dict(os.environ)
    environment.pop("OMP_NUM_THREADS", None)  # Ray says 1 to what reserves no core
    environment |= launch.take_over()
    log = os.open(launch.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(launch.folder)
    command = [sys.executable, "-m", "sparsearch.service.launches.driver", str(launch.folder)]
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    main()
