"""Make the artefacts of one version: run with that version's environment, in an empty folder.

    python create.py model             # once: the tiny model and the data that every version uses
    python create.py database NAME     # a study's database, and what it holds, as NAME.db.gz
    python create.py folders           # exports, structures and identities of this version

The files of a version are never made again: they say what that version wrote.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

HERE = Path("/tmp/sparsearch-artefacts")
"""Stands in the files as the model's path."""
WORDS = [f"w{i}" for i in range(40)] + ["good", "bad", "nice"]
STUDY = """
name: golden
model: {path: "../model"}
task:
  data: {path: json, data_files: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}}
  text: [text]
  label: label
  max_length: 16
space: {kinds: {lora: {max_rank: 2}, bitfit: {}, lnfit: {}}}
budgets: {max_trainable_params: ["3%", "6%"]}
search: {steps: 4}
train: {epochs: 1, batch_size: 8}
baselines: [probe, random, lora-qv]
"""
SPACES = {
    "pet": {
        "lora": {"max_rank": 2},
        "bitfit": {},
        "lnfit": {},
        "adapter": {"bottleneck": 4},
        "low_rank_adapter": {},
    },
    "scaled": {"lora": {"alpha": 8.0, "on": ["*.attn.*"]}, "ia3": {}, "spectral": {"block": 4}},
    "sparse": {"sparse_delta": {"support": "magnitude"}, "heads": {}, "neurons": {}},
    "masks": {"weight_mask": {"rank": 2, "pattern": "2:4"}},
}


def make_model() -> None:
    """A tiny BERT with its tokenizer, and three splits."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        AutoModelForSequenceClassification,
        BertConfig,
        PreTrainedTokenizerFast,
    )

    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(HERE / "model")
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(
        BertConfig(
            vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=32, num_labels=3,
        )
    ).save_pretrained(HERE / "model")  # fmt: skip
    draw, folder = random.Random(0), HERE / "study"
    folder.mkdir()
    for split, rows in (("train", 60), ("validation", 24), ("test", 24)):
        labels = [draw.randrange(3) for _ in range(rows)]
        lines = (
            {"text": " ".join([*draw.choices(WORDS[:40], k=5), WORDS[40 + y]]), "label": y}
            for y in labels
        )
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "study.yaml").write_text(STUDY)


def make_database(name: str) -> None:
    """A study's database."""
    file = HERE / f"{name}.db"
    file.unlink(missing_ok=True)
    command = [
        Path(sys.executable).with_name("sparsearch"),
        "run",
        "study.yaml",
        "--db",
        f"sqlite:///{file}",
    ]
    subprocess.run(
        command, cwd=HERE / "study", check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    pack(file)


def pack(file: Path) -> None:
    """Compressed, without what tells of the machine."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        tables = {
            row[0]
            for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
        connection.execute(
            'UPDATE trials SET environment = \'{"versions": {"sparsearch": "0.1.0"}}\''
        )
        if "attempts" in tables:
            connection.execute("UPDATE attempts SET worker = 'worker'")
        connection.commit()
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("VACUUM")
    with gzip.GzipFile(f"{file}.gz", "wb", mtime=0) as packed:
        packed.write(file.read_bytes())


def make_folders() -> None:
    """Exports of the best structure, structures of several spaces, and every identity."""
    from transformers import AutoModelForSequenceClassification

    import sparsearch as ss
    from sparsearch.config.reader import read_study
    from sparsearch.config.study import StudyConfig
    from sparsearch.results.export.export import export
    from sparsearch.spaces.backbone.identity import identify
    from sparsearch.spaces.budget import resolve_all
    from sparsearch.spaces.structure import make_structure
    from sparsearch.workers.plan import study_identity
    from sparsearch.workers.trials.ranking_key import ranking_key
    from sparsearch.workers.trials.session import open_session

    file = HERE / "r0006.db"
    with ss.open(f"sqlite:///{file}") as store:
        best = store.best(study="golden")
        weights = store.weights(best.study, best.trial)
    for to in ("spec", "peft", "checkpoint"):
        shutil.rmtree(HERE / to, ignore_errors=True)
        export(best, weights, to, HERE / to)
    model = AutoModelForSequenceClassification.from_pretrained(HERE / "model")
    identities: dict[str, object] = {"exported": best.structure.hash}
    structures, spaces = {}, {}
    for name, kinds in SPACES.items():
        space = ss.build_space(model, kinds=kinds)
        chosen = [c for c in space.candidates if not c.which] + [
            c for c in space.candidates if c.which
        ][:1]
        structure = make_structure(
            space, chosen, identify(model, str(HERE / "model")), "classification"
        )
        (HERE / f"{name}.json").write_text(structure.to_json())
        structures[name], spaces[name] = structure.hash, space.fingerprint
    raw, folder = read_study(HERE / "study" / "study.yaml")
    config = StudyConfig.model_validate(raw)
    config._folder = folder
    session = open_session(config)
    budget = resolve_all(config.budgets, session.space.backbone_params)[0]
    identities |= {
        "structures": structures,
        "spaces": spaces,
        "backbone": identify(model).as_dict() | {"path": ""},
        "study": study_identity(config),
        "ranking": {s: ranking_key(session, s, budget, 0) for s in ("s3pet", "probe", "random")},
    }
    (HERE / "identities.json").write_text(json.dumps(identities, indent=1) + "\n")


if __name__ == "__main__":
    {"model": make_model, "database": make_database, "folders": make_folders}[sys.argv[1]](
        *sys.argv[2:]
    )
