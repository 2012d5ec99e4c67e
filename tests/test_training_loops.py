"""Training what is attached in loops of other libraries: the shipped examples, and what such loops do to a model."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    get_linear_schedule_with_warmup,
    set_seed,
)

import sparsearch as ss
from sparsearch.errors import StructureError
from sparsearch.spaces.attachment.attach import attach_modules
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.backbone.loading import load_model
from sparsearch.spaces.kinds import make_kind
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure
from tests.conftest import make_inputs, make_model
from tests.helpers.kind_table import TABLE, units_of
from tests.helpers.language_model import prompts, save_language_model

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = ("plain_loop", "train_with_trainer", "train_with_accelerate", "train_with_lightning")
KINDS = {"lora": {"max_rank": 2}, "adapter": {"bottleneck": 2}, "bitfit": {}, "lnfit": {}}


def script_of(name):
    """A script of the examples as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.fixture(scope="module")
def structure(tiny_folder):
    model = load_model(str(tiny_folder))
    space = ss.build_space(model, kinds=KINDS)
    return make_structure(
        space, space.candidates[::3], identify(model, str(tiny_folder)), "classification"
    )


@pytest.fixture(scope="module")
def trained(structure, tiny_folder, tiny_data, tmp_path_factory):
    """Script -> the model that it trained, and the folder that it saved."""
    folder = tmp_path_factory.mktemp("loops")
    (folder / "structure.json").write_text(structure.to_json())
    files = tiny_folder, folder / "structure.json", tiny_data / "train.jsonl"
    return {
        name: (script_of(name).train(*map(str, (*files, folder / name))), folder / name)
        for name in SCRIPTS
    }


@pytest.fixture(scope="module")
def trained_language(tmp_path_factory):
    """A tiny GPT-2 that TRL's script has trained; the same one by a plain loop; a batch, and the folder saved."""
    folder = tmp_path_factory.mktemp("language")
    save_language_model("gpt2", folder)
    rows = [
        {"prompt": row["question"] + " ", "completion": row["answer"]} for row in prompts(32, 0)
    ]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = load_model(str(folder), auto_model="AutoModelForCausalLM")
    space = ss.build_space(plain, kinds={"lora": {"max_rank": 1}})
    structure = make_structure(space, space.candidates, identify(plain, str(folder)), "causal-lm")
    (folder / "structure.json").write_text(structure.to_json())
    by_trl = script_of("train_with_trl").train(
        *map(str, (folder, folder / "structure.json", data, folder / "trl"))
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    parts = [
        [tokenizer(text).input_ids for text in (r["prompt"], r["completion"] + "[END]")]
        for r in rows
    ]
    length = max(len(one) + len(other) for one, other in parts)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for row, (prompt, completion) in enumerate(parts):
        end = len(prompt) + len(completion)
        ids[row, :end] = torch.tensor(prompt + completion)
        labels[row, len(prompt) : end] = torch.tensor(completion)
        mask[row, :end] = 1
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    set_seed(0)
    ss.attach(plain, structure)
    trained = [p for p in plain.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, 50)
    for step in range(50):
        half = slice(16 * (step % 2), 16 * (step % 2) + 16)
        optimizer.zero_grad()
        plain(**{name: tensor[half] for name, tensor in batch.items()}).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
    return by_trl, plain, batch, folder


def test_trl_reaches_the_loss_of_a_plain_loop(trained_language):
    by_trl, plain, batch, folder = trained_language
    fresh = load_model(str(folder), auto_model="AutoModelForCausalLM")
    loss = loss_of(by_trl, batch)
    assert loss == pytest.approx(loss_of(plain, batch), abs=1e-4)
    assert loss < loss_of(fresh, batch) - 0.2
    assert loss_of(ss.attach(fresh, folder / "trl"), batch) == pytest.approx(loss)


def batch_of(folder, file):
    """All rows of a file."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    tokens = AutoTokenizer.from_pretrained(folder)(
        [r["text"] for r in rows], padding=True, return_tensors="pt"
    )
    return {**tokens, "labels": torch.tensor([r["label"] for r in rows])}


@torch.no_grad()
def loss_of(model, batch):
    return float(model.eval()(**batch).loss)


def test_the_loops_of_the_examples_reach_the_same_loss(trained, tiny_folder, tiny_data):
    batch = batch_of(tiny_folder, tiny_data / "train.jsonl")
    losses = {name: loss_of(model, batch) for name, (model, _) in trained.items()}
    assert max(losses.values()) - min(losses.values()) < 1e-4
    assert max(losses.values()) < 0.6


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_a_loop_has_saved_computes_the_same(trained, tiny_folder, tiny_data, script):
    model, folder = trained[script]
    config = AutoConfig.from_pretrained(folder / "task_config.json")
    fresh = load_model(str(tiny_folder), config=config)
    assert config.id2label == {0: "0", 1: "1"}
    batch = batch_of(tiny_folder, tiny_data / "validation.jsonl")
    assert loss_of(ss.attach(fresh, folder), batch) == pytest.approx(loss_of(model, batch))


def test_a_model_without_what_was_attached_is_not_saved(structure, tiny_folder, tmp_path):
    with pytest.raises(StructureError, match="nothing is attached") as error:
        ss.save(load_model(str(tiny_folder)), structure, tmp_path / "out")
    assert "unwrap_model" in error.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", ["alpha", "where", "backbone"])
def test_a_structure_that_is_not_what_was_trained_is_not_saved(tiny_folder, tmp_path, change):
    model = load_model(str(tiny_folder))

    def structure_with(on, alpha):
        space = build_space(model, kinds={"lora": {"max_rank": 1, "on": [on], "alpha": alpha}})
        return make_structure(
            space, space.candidates, identify(model, str(tiny_folder)), "classification"
        )

    given = structure_with("*.v" if change == "where" else "*.q", 8 if change == "alpha" else 16)
    ss.attach(model, structure_with("*.q", 16))
    if change == "backbone":
        with torch.no_grad():
            model.base_model.embeddings.word_embeddings.weight[5] += 0.1
    said = {
        "alpha": "'alpha': 8",
        "where": "differ in lora",
        "backbone": "weights of the backbone",
    }
    with pytest.raises(StructureError, match=said[change]):
        ss.save(model, given, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_attached_in_inference_mode_can_train(structure, tiny_folder, tiny_data):
    model = load_model(str(tiny_folder))
    with torch.inference_mode():
        ss.attach(model, structure)
    model(**batch_of(tiny_folder, tiny_data / "validation.jsonl")).loss.backward()
    assert all(p.grad is not None for p in attachment_of(model).parameters() if p.requires_grad)


def test_what_was_cast_says_what_its_file_holds(tiny_folder, tmp_path):
    model = load_model(str(tiny_folder))
    kinds = {"spectral": {"block": 4, "max_blocks": 1}}
    space = build_space(model, kinds=kinds)
    identity = identify(model, str(tiny_folder))
    structure = make_structure(space, space.candidates, identity, "classification")
    ss.attach(model, structure)
    first = "bytes of tensors, not"
    assert first not in " ".join(ss.save(model, structure, tmp_path / "as-made").notes)
    report = ss.save(model.float(), structure, tmp_path / "cast")
    held = load_file(tmp_path / "cast" / "modules.safetensors")
    size = sum(t.nbytes for name, t in held.items() if not name.startswith("head:"))
    assert report.notes[0].startswith(f"the file has {size:,} {first} {structure.bytes:,}")


def steps(model, rows, folder, count, **settings):
    """Some steps in the Trainer, with a checkpoint after each."""
    arguments = TrainingArguments(
        output_dir=folder, max_steps=count, per_device_train_batch_size=8, learning_rate=1e-2,
        train_sampling_strategy="sequential", report_to="none", disable_tqdm=True, save_steps=1,
        lr_scheduler_type="constant",
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=rows).train(**settings)
    return model


def test_the_trainer_goes_on_from_its_checkpoint(structure, tiny_folder, tiny_data, tmp_path):
    batch = batch_of(tiny_folder, tiny_data / "train.jsonl")
    rows = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]

    config = AutoConfig.from_pretrained(tiny_folder)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0

    def fresh():
        set_seed(0)
        return ss.attach(load_model(str(tiny_folder), config=config), structure)

    whole = steps(fresh(), rows, tmp_path / "whole", 4)
    steps(fresh(), rows, tmp_path / "parts", 2)
    parts = steps(fresh(), rows, tmp_path / "parts", 4, resume_from_checkpoint=True)
    started = fresh()
    for (name, one), (_, other), (_, first) in zip(
        whole.named_parameters(), parts.named_parameters(), started.named_parameters(), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-6), name
        assert one.requires_grad or torch.equal(one, first), name
    assert loss_of(parts, batch) < loss_of(started, batch) - 0.05


def mixed(family="bert", **settings):
    """A tiny model with every kind of ``TABLE`` at each of its positions, and none of its values 0."""
    model = make_model(family, **settings)
    kinds = [make_kind(name, dict(options)) for name, options in dict(TABLE).items()]
    attach_modules(model, [unit for kind in kinds for unit in units_of(model, kind)])
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in attachment_of(model).parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    attachment_of(model).advance(0, 10)  # scores of masks learn from now on
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def gradients(model, run=None):
    """Of what is attached, after a pass over a batch."""
    (model if run is None else run)(**make_inputs(), labels=torch.tensor([0, 2])).loss.backward()
    return {name: p.grad.clone() for name, p in attachment_of(model).named_parameters()}


@pytest.fixture(scope="module")
def expected():
    """Gradients without any of what follows, by family."""
    found = {family: gradients(mixed(family)) for family in ("bert", "llama")}
    assert all(g.abs().max() > 0 for g in found["bert"].values())
    return found


def check_same(found, expected, rtol=1e-4):
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert torch.allclose(gradient, expected[name], rtol=rtol, atol=1e-6), name


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_checkpointed_activations_give_the_same_gradients(expected, family, reentrant):
    model = mixed(family).train()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    check_same(gradients(model), expected[family])


def test_a_compiled_model_gives_the_same_gradients():
    model, plain = (mixed(num_hidden_layers=1) for _ in range(2))
    found = gradients(model, torch.compile(model, backend="aot_eager"))
    check_same(found, gradients(plain))


def test_a_deep_copy_trains_by_itself(expected):
    model = mixed()
    twin = copy.deepcopy(model)
    check_same(gradients(twin), expected["bert"])
    assert all(p.grad is None for p in model.parameters())
    torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=1.0).step()
    check_same(gradients(model), expected["bert"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_trains_alike(expected, dtype):
    found = gradients(mixed().to(dtype))
    assert {g.dtype for g in found.values()} == {dtype}
    one, other = (
        torch.cat([g.float().flatten() for g in gs.values()]) for gs in (found, expected["bert"])
    )
    assert torch.isfinite(one).all()
    assert torch.cosine_similarity(one, other, dim=0) > 0.98


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def test_a_model_wrapped_for_processes_gives_the_same_gradients(expected, process_group):
    model = mixed()
    wrapped = nn.parallel.DistributedDataParallel(model)
    check_same(gradients(model, wrapped), expected["bert"])


def test_accumulated_halves_give_the_gradients_of_the_whole(expected):
    model, batch = mixed(), make_inputs()
    for row in (slice(0, 1), slice(1, 2)):
        halves = {name: tensor[row] for name, tensor in batch.items()}
        (model(**halves, labels=torch.tensor([0, 2])[row]).loss / 2).backward()
    found = {name: p.grad for name, p in attachment_of(model).named_parameters()}
    check_same(found, expected["bert"])
