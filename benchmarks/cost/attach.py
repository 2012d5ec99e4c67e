"""What checking a backbone's identity costs: attach to a large model, with fingerprints of each form.

A random LLaMA of some billion parameters takes a structure (LoRA on all queries) and loses it again; the forms take
turns. Version 0.1 made the form ``2-``, which saw linears and norms at positions alone.

    python benchmarks/cost/attach.py --out benchmarks/results/attach.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, PreTrainedModel

from sparsearch.spaces.attachment.attach import attach, detach
from sparsearch.spaces.backbone.identity import FORMS, identify, weight_fingerprint
from sparsearch.spaces.backbone.parameters import count_params
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure
from sparsearch.workers.trials.provenance import environment

LIMIT = 1.2


def main() -> int:
    """Measure, print a table, write JSON; exit 1 if the newest form costs more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = make_model(arguments.layers, getattr(torch, arguments.dtype))
    space = build_space(model, kinds={"lora": {"max_rank": 1, "on": ["*.attn.q"]}})
    structure = make_structure(space, space.candidates, identify(model), "classification")
    of_form = {
        form: replace(
            structure,
            backbone=replace(
                structure.backbone, weight_fingerprint=weight_fingerprint(model, form)
            ),
        )
        for form in FORMS[1:]
    }
    seconds: dict[str, list[float]] = {form: [] for form in of_form}
    for _ in range(arguments.rounds):
        for form, known in of_form.items():
            started = time.perf_counter()
            attach(model, known)
            seconds[form].append(time.perf_counter() - started)
            detach(model)
    medians = {form: statistics.median(found) for form, found in seconds.items()}
    params = count_params(model)
    print(f"{params:,} parameters, {arguments.dtype}, {arguments.threads} threads")
    for form, median in medians.items():
        print(
            f"form {form}  {median:7.2f} s per attach  ({params / median / 1e9:.2f}e9 weights/s)"
        )
    ratio = medians[FORMS[-1]] / medians["2-"]
    print(f"ratio {ratio:.2f} (limit {LIMIT}): {'met' if ratio <= LIMIT else 'NOT MET'}")
    if arguments.out:
        settings = {k: v for k, v in vars(arguments).items() if k != "out"}
        document = {"settings": settings, "params": params, "seconds": seconds, "ratio": ratio}
        document["environment"] = asdict(environment())
        arguments.out.write_text(json.dumps(document, indent=1))
    return 0 if ratio <= LIMIT else 1


def make_model(layers: int, dtype: torch.dtype) -> PreTrainedModel:
    """A random LLaMA of the 1B size with 16 layers."""
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=32,
        num_labels=2,
        dtype=dtype,
        pad_token_id=0,
    )
    return AutoModelForSequenceClassification.from_config(config)


if __name__ == "__main__":
    sys.exit(main())
