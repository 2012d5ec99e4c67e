"""Write rows of the E2E NLG challenge as prompts and completions, for ``gemma-e2e.yaml``.

    python examples/make_e2e_rows.py E2E OUT

E2E is a folder with ``train.jsonl`` (columns ``mr``, ``ref``), ``validation.jsonl`` and ``test.jsonl`` (columns ``mr``,
``references``, a list). OUT gets files of the same names, with 128, 32 and 64 rows that are drawn at random, each
with its first reference. The same rows come out on each run.
"""

import json
import random
import sys
from pathlib import Path

ROWS = {"train": 128, "validation": 32, "test": 64}


def main(source: str, out: str) -> None:
    """Write the three files."""
    Path(out).mkdir(parents=True, exist_ok=True)
    for split, count in ROWS.items():
        text = (Path(source) / f"{split}.jsonl").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines()]
        drawn = random.Random(0).sample(rows, count)
        lines = [
            json.dumps(
                {"prompt": row["mr"] + "\n", "completion": row.get("ref") or row["references"][0]}
            )
            for row in drawn
        ]
        (Path(out) / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:3])
