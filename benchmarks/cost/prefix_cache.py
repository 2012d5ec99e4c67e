"""What storing the outputs of the frozen lower layers saves when a structure lives in the upper ones.

Trains one structure three times from the same start, on the demo's data: through the whole backbone, above inputs
that it stores first, and, as the next trial of a study would, above those that are there; compares medians of
seconds over some rounds, losses of every step and scores. fp32 by default: bf16 rounds differently for differently
shaped batches of the stored pass, which the table would show as differences of 1e-3.

    python benchmarks/cost/prefix_cache.py --out prefix_cache.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from sparsearch.config.reader import read_study, validate_study
from sparsearch.search.training.optimiser import learning_rates
from sparsearch.search.training.prefix import StoredPrefix
from sparsearch.search.training.seeds import seed_everything
from sparsearch.search.training.train import train
from sparsearch.search.training.warm_start import new_head
from sparsearch.spaces.attachment.attach import attach_modules, detach
from sparsearch.spaces.families.position import matching
from sparsearch.spaces.kinds import make_kind
from sparsearch.workers.trials.provenance import environment
from sparsearch.workers.trials.session import open_session

LIMIT, TOLERANCE = 1.5, 1e-5
STUDY = Path(__file__).resolve().parents[2] / "examples" / "demo.yaml"


def main() -> int:
    """Measure, print a table, write JSON; exit 1 if a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", default=str(STUDY))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="the three kinds take turns in each")
    parser.add_argument("--layers", nargs="+", type=int, help="lowest layers; else the upper half")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sections, problems = validate_study(*read_study(arguments.study, ()))
    assert not problems, problems
    session = open_session(sections["study"])
    layers = 1 + max(p.layer for p in session.space.positions if p.layer is not None)
    rows, good = {}, True
    print(
        f"{'lowest':>7} {'through':>9} {'first':>9} {'faster':>7} {'next':>9} {'faster':>7} "
        f"{'largest difference of a loss':>29} {'scores':>7}"
    )
    for layer in arguments.layers or range(layers // 2, layers):
        patterns = [f"layers.{n}.attn.[qv]" for n in range(layer, layers)]
        positions = matching(session.space.positions, patterns)
        turns, losses, scores = [], [], []
        prefix = StoredPrefix()
        for limit in (0, 2**32, 2**32) * arguments.rounds:  # 0 empties what is stored
            settings = session.config.train.model_copy(
                update={
                    "epochs": arguments.epochs,
                    "precision": arguments.precision,
                    "cache_bytes": limit,
                }
            )
            new_head(session.model, session.task, 0)
            seed_everything(0)
            attach_modules(session.model, [(p, make_kind("lora", {}), 1, 1) for p in positions])
            seen: list[float] = []
            loss_of = session.task.behaviour.loss

            def noted(
                *values: Any, seen: list[float] = seen, loss_of: Any = loss_of
            ) -> torch.Tensor:
                loss: torch.Tensor = loss_of(*values)
                seen.append(float(loss.detach()))
                return loss

            started = time.perf_counter()
            groups = learning_rates(session.model, settings.lr, settings.kind_lr)
            with mock.patch.object(session.task.behaviour, "loss", noted):
                result = train(
                    session.model, session.task, settings, groups, seed=0, prefix=prefix
                )
            turns.append(time.perf_counter() - started)
            detach(session.model)
            losses.append(seen)
            scores.append(result.history)
        seconds = [statistics.median(turns[kind::3]) for kind in range(3)]
        faster = [seconds[0] / other for other in seconds[1:]]
        worst = max(max(found) - min(found) for found in zip(*losses, strict=True))
        equal = all(found == scores[0] for found in scores)
        rows[layer] = {
            "seconds": seconds,
            "turns": turns,
            "faster": faster,
            "loss_difference": worst,
            "equal_scores": equal,
        }
        print(
            f"{layer:7d} {seconds[0]:7.1f} s {seconds[1]:7.1f} s {faster[0]:6.2f}x {seconds[2]:7.1f} s "
            f"{faster[1]:6.2f}x {worst:29.1e} {'equal' if equal else 'differ':>7}"
        )
        good &= faster[1] >= LIMIT and worst <= TOLERANCE
    print(
        f"limits: {LIMIT}x faster (next), losses within {TOLERANCE}: {'met' if good else 'NOT MET'}"
    )
    if arguments.out:
        settings_used = {k: v for k, v in vars(arguments).items() if k != "out"}
        document = {"settings": settings_used, "rows": rows, "environment": asdict(environment())}
        arguments.out.write_text(json.dumps(document, indent=1))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
