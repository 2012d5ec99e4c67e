"""Tiny random models of every family, offline; a throwaway PostgreSQL server."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsearch.config.tasks.types import facts_of
from tests.helpers.families import AUTO_MODELS, CONFIGS, CORE, VOCAB, task_of

torch.set_num_threads(1)

FAMILIES = tuple(CORE)
ONLY_EAGER = ("deberta-v2", "bloom", "gemma2", "gpt_oss", "mpnet")


def make_model(
    family: str, seed: int = 0, labels: int = 3, attention: str = "sdpa", **settings: object
) -> nn.Module:
    """A tiny random model with a head, see ``TASKS`` and ``AUTO_MODELS``; ``settings`` change its config."""
    torch.manual_seed(seed)
    config = CONFIGS[family]()
    for name, value in settings.items():
        setattr(config, name, value)
    config.num_labels = labels
    attention = "eager" if family in ONLY_EAGER else attention
    config._experts_implementation = (
        "eager"  # the only one that takes float64, and whose FLOPs torch counts
    )
    name = AUTO_MODELS.get(family) or facts_of(task_of(family)).auto_model
    model = getattr(transformers, name).from_config(config, attn_implementation=attention)
    return model.eval()


def make_inputs(rows: int = 2, tokens: int = 7) -> dict[str, Tensor]:
    """Random token ids that end in T5's end-of-sequence token."""
    ids = torch.randint(3, VOCAB, (rows, tokens), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = 1
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def inputs_of(model: nn.Module, rows: int = 2) -> dict[str, Tensor]:
    """A batch of what a tiny model reads: text, images, both, or spectrograms with what is said in them."""
    config, generator = model.config, torch.Generator().manual_seed(1)
    found: dict[str, Tensor] = {}
    if model.main_input_name == "input_ids":
        found |= make_inputs(rows)
    images = getattr(config, "vision_config", config)
    if hasattr(images, "image_size"):
        shape = (rows, images.num_channels, images.image_size, images.image_size)
        found["pixel_values"] = torch.randn(shape, generator=generator)
    if model.main_input_name == "input_features":
        shape = (rows, config.num_mel_bins, 2 * config.max_source_positions)
        found["input_features"] = torch.randn(shape, generator=generator)
        found["decoder_input_ids"] = make_inputs(rows, config.max_source_positions)["input_ids"]
    return found


TIERS = {
    "system": (
        300,
        """test_generated_client test_launching test_lost_database test_postgres test_ray test_ray_jobs test_readers
        test_resume test_server_running test_shelf""",
    ),
    "integration": (
        180,
        """test_access test_adapters test_architecture test_artefacts test_bad_input test_bilevel test_checkpoint
        test_checkpoint_export test_cli_best test_cli_database test_cli_export test_cli_reading test_cli_run
        test_cli_usage test_code_blocks test_copying test_data test_documents test_elsewhere test_estimate
        test_events test_examples test_expert_adapters
        test_export test_export_conformance test_export_use test_fuzz test_gguf_study
        test_gradient_guard test_gradients test_growth test_identity test_image_study test_kinds test_language_study
        test_late_tickets test_limits test_masking test_merge test_migrations test_model_folder test_model_parts
        test_model_state test_notebook test_optimiser test_optuna_loop test_other_hooks test_outer_study
        test_plugins test_prefix
        test_profile test_quantised test_quantised_study test_quantised_trainer
        test_reading test_remove_units test_server_option test_site test_slim test_sparse_delta
        test_sparse_delta_supports test_store test_structure_callback test_study test_study_driver
        test_study_exports test_study_report test_support test_task_identity test_task_studies test_train
        test_training_loops test_transfer test_tutorials test_two_budgets test_unknown_family test_unusual_models
        test_uploads test_webhooks test_weight_mask test_weight_mask_candidates test_weight_mask_gates
        test_weight_mask_merge""",
    ),
}
"""Tier -> seconds that a test may take, and its files; all others are unit tests, and may take a minute."""

_TIER_OF = {
    name: (tier, limit) for tier, (limit, names) in TIERS.items() for name in names.split()
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test its tier; the files of the workers, the longest, go first: all processes then end together."""
    items.sort(key=lambda item: "workers" not in item.path.parts)
    for item in items:
        tier, limit = _TIER_OF.get(item.path.stem, ("unit", 60))
        item.add_marker(tier)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(limit))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Every family."""
    return str(request.param)


@pytest.fixture
def build() -> Callable[..., nn.Module]:
    """Builds a tiny model of a family."""
    return make_model


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    """A batch for any tiny model."""
    return make_inputs()


@pytest.fixture
def randomise() -> Callable[[nn.Module], None]:
    """Moves every trainable parameter away from its initial value."""

    @torch.no_grad()
    def move(model: nn.Module) -> None:
        generator = torch.Generator().manual_seed(7)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)

    return move


WORDS = [
    "good",
    "fine",
    "great",
    "happy",
    "bad",
    "sad",
    "poor",
    "awful",
    "film",
    "book",
    "song",
    "the",
    "a",
    "was",
    "is",
    "very",
    "not",
    "so",
    "it",
    "this",
]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny BERT with a tokenizer, as a user's local model folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    vocab = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    make_model("bert").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three JSON-lines splits of a learnable two-class task."""
    import json
    import random

    folder = tmp_path_factory.mktemp("moods")
    stream = random.Random(0)
    for split, rows in (("train", 64), ("validation", 24), ("test", 24)):
        lines = []
        for _ in range(rows):
            label = stream.randrange(2)
            mood = stream.choice(WORDS[4 * label : 4 * label + 4])
            text = (
                f"the {stream.choice(WORDS[8:11])} was {stream.choice(['very ', 'so ', ''])}{mood}"
            )
            lines.append(json.dumps({"text": text, "label": label}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def tiny_study(folder: Path, data: Path) -> dict[str, object]:
    """The raw content of a tiny study."""
    files = {s: str(data / f"{s}.jsonl") for s in ("train", "validation", "test")}
    return {
        "name": "tiny",
        "model": {"path": str(folder)},
        "task": {
            "data": {"path": "json", "data_files": files},
            "text": ["text"],
            "max_length": 16,
        },
        "space": {"kinds": {"lora": {"max_rank": 2}, "bitfit": {}, "lnfit": {}}},
        "budgets": {"max_trainable_params": [200, 600]},
        "search": {"steps": 3, "batch_size": 8},
        "train": {"epochs": 1, "batch_size": 16, "precision": "fp32"},
        "baselines": ["random", "lora-qv", "head", "full"],
        "seeds": [0],
    }


@pytest.fixture
def study(tiny_folder: Path, tiny_data: Path) -> dict[str, object]:
    """The raw content of a tiny study."""
    return tiny_study(tiny_folder, tiny_data)


REQUIRE_POSTGRES = "SPARSEARCH_REQUIRE_POSTGRES"
"""Environment variable under which a missing PostgreSQL is an error: continuous integration sets it."""

_HBA = "local all guarded scram-sha-256\nlocal all all trust\n"


def _postgres_programs() -> Path:
    """The folder of initdb and pg_ctl; Debian keeps it off the PATH."""
    found = [Path(p).resolve() for p in (shutil.which("initdb"), shutil.which("pg_ctl")) if p]
    folders = [*(p.parent for p in found), *Path("/usr/lib/postgresql").glob("*/bin")]
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "pg_ctl").exists():
            return folder
    reason = "no PostgreSQL here: apt-get install postgresql"
    if os.environ.get(REQUIRE_POSTGRES):
        pytest.fail(f"{REQUIRE_POSTGRES} is set, but there is {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a throwaway server on a socket of its own, with ``{}`` where a database is named.

    Everybody is let in, but the user ``guarded``, whose password is ``secret``.
    """
    programs = _postgres_programs()
    psycopg = pytest.importorskip("psycopg")
    # The server refuses to run as root.
    user = "postgres" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="sparsearch-"))

    def do(*command: str) -> None:
        done = subprocess.run(command, cwd=folder, user=user, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    data, initdb, control = folder / "data", str(programs / "initdb"), str(programs / "pg_ctl")
    try:
        if user:
            shutil.chown(folder, user)
        do(initdb, "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        (data / "pg_hba.conf").write_text(_HBA)
        settings = {"listen_addresses": "", "unix_socket_directories": folder, "fsync": "off"}
        options = " ".join(f"-c {name}='{value}'" for name, value in settings.items())
        log = ("-l", str(folder / "log"))
        do(control, "start", "-w", "-D", str(data), *log, "-o", options)
        try:
            url = f"postgresql://postgres@/{{}}?host={folder}"
            with psycopg.connect(url.format("postgres")) as admin:
                admin.execute("CREATE ROLE guarded LOGIN PASSWORD 'secret'")
            yield url
        finally:
            do(control, "stop", "-w", "-m", "immediate", "-D", str(data))
    finally:
        shutil.rmtree(folder)


_OURS = {
    "RAY_CLIENT_MODE",
    "PYTEST_CURRENT_TEST",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY",  # a session sets it
    "KMP_DUPLICATE_LIB_OK",  # these two: scikit-learn, as it is imported
    "KMP_INIT_AT_FORK",
}


@pytest.fixture(autouse=True)
def _leaves_no_trace() -> Iterator[None]:
    """What a test changes of the process would reach processes that later tests start."""
    before, folder = dict(os.environ), os.getcwd()
    methods = PreTrainedModel.tie_weights, PreTrainedModel.init_weights
    yield
    assert (PreTrainedModel.tie_weights, PreTrainedModel.init_weights) == methods
    changed = {k: v for k, v in os.environ.items() if before.get(k) != v}
    gone = before.keys() - os.environ.keys()
    assert (changed.keys() | gone) <= _OURS, (changed, gone)
    assert os.getcwd() == folder


_numbers = itertools.count()


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """URL of an empty database."""
    import psycopg

    name = f"test_{next(_numbers)}"
    with psycopg.connect(postgres_server.format("postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        yield postgres_server.format(name)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
