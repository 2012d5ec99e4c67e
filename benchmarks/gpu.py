"""All that a GPU is to tell, in ten minutes from a bare machine: one command, the most important first.

Each part is a command of its own with a limit of time; what it found is written as it ends, so that a machine that
goes away takes only the part that was under way. `docs/gpu.md` says what has been measured.

    pip install -e '.[demo,dev]'        # with a build of torch for CUDA
    python benchmarks/gpu.py --out gpu
    python benchmarks/gpu.py --out gpu --data trec --only trec      # rows as train.jsonl, validation.jsonl, test.jsonl
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from sparsearch.workers.trials.provenance import environment

ROOT = Path(__file__).resolve().parents[1]
TAIL = 4000
"""Characters of a part's output that are kept."""


@dataclass(frozen=True)
class Part:
    """One command.

    Attributes:
        name: For ``--only`` and the results.
        command: Arguments of the Python that runs this script.
        seconds: After so many it is ended.
    """

    name: str
    command: tuple[str, ...]
    seconds: int


def parts(out: Path, data: Path | None, device: str) -> list[Part]:
    """What is run, in this order.

    Args:
        out: Folder of what the parts write.
        data: Folder of the rows of TREC; the demo's are in their place if it is not given.
        device: ``cuda``; ``cpu`` tries the script itself.
    """
    cost = str(ROOT / "benchmarks/cost/step_cost.py")
    run = ("-m", "sparsearch.cli.main", "run")
    one = study(data, "gpu", {"device": device})
    share = {"gpus_per_trial": 0.5} if device == "cuda" else {}
    two = {"runner": "ray", "device": device, "max_concurrent": 2, **share}
    halves = study(data, "gpu-halves", two)
    for name, content in (("trec", one), ("halves", halves)):
        (out / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return [
        Part("tests", ("-m", "pytest", "-q", str(ROOT / "tests/test_cuda.py")), 120),
        Part(
            "step-minilm",
            (cost, "--device", device, "--spaces", "s3pet-m", "fine", "--out", f"{out}/step-minilm.json"),
            90,
        ),
        Part(
            "trec",
            (*run, f"{out}/trec.yaml", "--db", f"sqlite:///{out}/trec.db", "--json"),
            150,
        ),
        Part(
            "step-llama-1b",
            (cost, "--device", device, "--model", "llama-1b", "--spaces", "s3pet-m", "--batch", "8", "--tokens", "128",
             "--out", f"{out}/step-llama-1b.json"),
            120,
        ),
        Part(
            "halves",
            (*run, f"{out}/halves.yaml", "--db", f"sqlite:///{out}/halves.db", "--json"),
            120,
        ),
    ]  # fmt: skip


def study(data: Path | None, name: str, workers: dict[str, Any]) -> dict[str, Any]:
    """The demo's study, on other rows and other workers."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "examples/demo.yaml").read_text())
    folder = (data or ROOT / "examples/demo").resolve()
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
    content["task"]["data"]["data_files"] = files
    return content | {"name": name, "workers": workers}


def run_part(part: Part) -> dict[str, Any]:
    """Run a command; how it ended, how long it took, the end of what it said."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *part.command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said, _ = process.communicate(timeout=part.seconds)
        end: int | str = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        end = f"ended after {part.seconds} seconds"
    return {"end": end, "seconds": time.perf_counter() - began, "said": said[-TAIL:]}


def main() -> int:
    """Run the parts, write ``gpu.json`` after each; exit 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    parser.add_argument("--data", type=Path, help="folder of the rows of TREC; else the demo's")
    parser.add_argument("--only", nargs="*", help="names of parts")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --device cpu tries the script without one")
    options.out.mkdir(parents=True, exist_ok=True)
    listed = parts(options.out, options.data, options.device)
    if unknown := set(options.only or ()) - {part.name for part in listed}:
        parser.error(
            f"no part {sorted(unknown)}; there are {', '.join(part.name for part in listed)}"
        )
    found: dict[str, Any] = {"environment": asdict(environment()), "parts": {}}
    for part in listed:
        if options.only and part.name not in options.only:
            continue
        print(f"{part.name}: at most {part.seconds} s", file=sys.stderr)
        found["parts"][part.name] = result = run_part(part)
        print(f"{part.name}: {result['end']} after {result['seconds']:.0f} s", file=sys.stderr)
        (options.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    return int(any(result["end"] != 0 for result in found["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
