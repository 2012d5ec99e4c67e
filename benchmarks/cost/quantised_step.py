"""What a training step costs over a backbone in full, in 8 and in 4 bits: time, and memory.

A Llama of random weights, with rank-1 LoRA on q and v, on random tokens. Each precision has a process of its own. The
weights are counted tensor by tensor, scales among them; peak memory is that of some steps beyond the loaded model.

    python benchmarks/cost/quantised_step.py --out benchmarks/results/quantised_step.json
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from sparsearch.search.training.device import peak_bytes, reset_peak
from sparsearch.spaces.attachment.attach import attach_modules
from sparsearch.spaces.backbone.loading import load_model, skeleton
from sparsearch.spaces.backbone.quantised.settings import quantise_to
from sparsearch.spaces.backbone.quantised.weights import stored_parts
from sparsearch.spaces.space import build_space
from sparsearch.workers.trials.provenance import environment

BITS = (32, 8, 4)
AUTO = "AutoModelForCausalLM"
CPU = torch.device("cpu")


def held() -> int:
    """Resident bytes, once freed blocks have been given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def load(folder: str, bits: int) -> PreTrainedModel:
    """The model in so many bits, every weight of which has been read."""
    quantisation = None if bits == 32 else quantise_to(bits, skeleton(folder, None, AUTO))  # type: ignore[arg-type]
    model = load_model(folder, auto_model=AUTO, quantisation=quantisation)
    with torch.no_grad():
        model(torch.arange(3, 7)[None])
    return model


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a step, bytes of the weights, and peak bytes beyond them."""
    torch.set_num_threads(arguments.threads)
    model = load(arguments.folder, arguments.bits)
    weights = sum(
        part.nbytes
        for name, parameter in model.named_parameters()
        for _, part in stored_parts(name, model.get_submodule(name.rpartition(".")[0]), parameter)
    )
    space = build_space(model, kinds={"lora": {"max_rank": 1, "on": ["*.attn.[qv]"]}})
    units = [(space.position(c.position), space.kinds[c.kind], 1, 1) for c in space.candidates]
    attachment = attach_modules(model, units)
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 1000, (arguments.rows, arguments.tokens), generator=generator)
    start, seconds = held(), []
    reset_peak(CPU)
    for _ in range(arguments.steps + 1):
        began = time.perf_counter()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    return {
        "seconds": statistics.median(seconds[1:]),
        "weight_bytes": weights,
        "peak_bytes": peak_bytes(CPU) - start,
    }


def main() -> int:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--bits", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bits:
        print(json.dumps(measure(arguments)))
        return 0
    wide = 11 * arguments.width // 4
    config = LlamaConfig(
        hidden_size=arguments.width, intermediate_size=wide, num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.width // 64, num_key_value_heads=arguments.width // 64, vocab_size=1000,
    )  # fmt: skip
    found: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        for bits in BITS:
            command = [sys.executable, __file__, f"--bits={bits}", f"--folder={folder}"]
            names = ("rows", "tokens", "steps", "threads")
            command += [f"--{name}={getattr(arguments, name)}" for name in names]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[bits] = json.loads(done.stdout.splitlines()[-1])
    print(f"{'bits':>4} {'ms':>7} {'x':>5} {'weights MiB':>12} {'peak MiB':>9}")
    for bits, row in found.items():
        sizes = (row[name] / 2**20 for name in ("weight_bytes", "peak_bytes"))
        times = row["seconds"] / found[32]["seconds"]
        print(
            "{:>4} {:7.0f} {:5.2f} {:12.0f} {:9.0f}".format(
                bits, 1000 * row["seconds"], times, *sizes
            )
        )
    if arguments.out:
        settings = {k: v for k, v in vars(arguments).items() if k not in ("out", "bits", "folder")}
        document = {"settings": settings, "by_bits": found, "environment": asdict(environment())}
        arguments.out.write_text(json.dumps(document, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
