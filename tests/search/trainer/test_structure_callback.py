"""A search inside the Trainer: the budget holds, the training goes on with what it chose, nothing else changes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    TrainingArguments,
)

import sparsearch as ss
from sparsearch.errors import ConfigError, DataError, ModelStateError, StructureError
from sparsearch.search.trainer.callback import _check_unrounded
from sparsearch.search.trainer.rows import task_of_rows
from sparsearch.spaces.attachment.attach import detach
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.backbone.loading import load_model
from sparsearch.spaces.backbone.parameters import head_parameters
from sparsearch.spaces.compaction.sparsity import weight_sparsity
from tests.helpers.language_model import make_language_model, make_tokenizer, prompts

EXAMPLE = Path(__file__).parents[3] / "examples" / "search_in_trainer.py"
BUDGET = {"max_trainable_params": 100}


def script():
    spec = importlib.util.spec_from_file_location("search_in_trainer", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_searches_trains_and_saves(tiny_folder, tiny_data, tmp_path, capsys):
    file = tiny_data / "train.jsonl"
    model = script().train(str(tiny_folder), str(file), str(tmp_path / "out"), budget=300)
    structure = ss.Structure.load(tmp_path / "out")
    assert 200 < structure.trainable_params <= 300
    assert f"{structure.candidates[0].kind} at {structure.candidates[0].position}" in (
        capsys.readouterr().out
    )
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    batch = AutoTokenizer.from_pretrained(tiny_folder)(
        [row["text"] for row in rows], padding=True, return_tensors="pt"
    )
    labels = torch.tensor([row["label"] for row in rows])
    logits = model.eval()(**batch).logits
    assert (logits.argmax(-1) == labels).float().mean() > 0.9
    fresh = load_model(str(tiny_folder), num_labels=2)
    assert torch.allclose(ss.attach(fresh, tmp_path / "out")(**batch).logits, logits, atol=1e-5)


def callback(budget=BUDGET, **settings):
    return ss.StructureCallback("classification", budget, **{"search": {"steps": 3}, **settings})


def test_the_search_leaves_head_weights_and_random_numbers_as_they_were(trainer):
    search = callback()
    run = trainer(search, learning_rate=1e-12)
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    run.train()
    drawn = torch.rand(3)
    trainer(
        model=run.model, learning_rate=1e-12
    ).train()  # what is attached trains on, without a search
    assert torch.equal(torch.rand(3), drawn)
    assert {n for n, _ in head_parameters(run.model)} == {"classifier.weight", "classifier.bias"}
    detach(run.model)
    assert all(torch.allclose(p, before[n], atol=1e-9) for n, p in run.model.named_parameters())


def test_the_optimiser_trains_what_is_attached_and_the_head_alone(trainer):
    search = callback(space={"kinds": {"lora": {"max_rank": 1}, "lnfit": {}}})
    run = trainer(search, weight_decay=0.1)
    run.train()
    groups = run.optimizer.param_groups
    decays = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    for name, parameter in run.model.named_parameters():
        if parameter.requires_grad:
            assert decays[id(parameter)] == (0.0 if name.endswith("bias") else 0.1), name
    trained = {id(p) for group in groups for p in group["params"]}
    assert trained == {id(p) for p in run.model.parameters() if p.requires_grad}
    attached = sum(p.numel() for p in attachment_of(run.model).parameters())
    assert attached == search.structure.trainable_params <= 100
    assert all(p.grad is None or id(p) in trained for p in run.model.parameters())


@pytest.mark.parametrize("preset", ["fine", "pst"])
def test_presets_with_directions_and_with_masks(trainer, preset):
    budget = {"max_trainable_params": 300}
    if preset == "pst":
        budget = {"max_trainable_params": 3000, "min_weight_sparsity": "40%"}
    search = callback(budget, space={"preset": preset})
    run = trainer(search, max_steps=4)
    run.train()
    assert search.structure.candidates and attachment_of(run.model).settled
    if preset == "pst":
        assert weight_sparsity(run.model) >= 0.4


def test_a_training_goes_on_from_a_checkpoint(trainer, tiny_folder, tmp_path):
    search = callback()
    trainer(search, save_strategy="steps", save_steps=1).train()
    checkpoint = tmp_path / "trainer" / "checkpoint-1"
    model = load_model(str(tiny_folder), num_labels=2)
    ss.attach(model, ss.Structure.load(checkpoint / "structure.json"))
    again = callback()
    run = trainer(again, model=model)
    run.train(resume_from_checkpoint=str(checkpoint))
    assert run.state.global_step == 2 and again.structure == search.structure
    state = trainer(callback())
    state.state.global_step = 1
    with pytest.raises(StructureError, match="goes on from step 1, but no structure is attached"):
        state.callback_handler.on_train_begin(state.args, state.state, state.control)


def test_several_processes_are_refused(trainer, monkeypatch):
    run = trainer(callback())
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    with pytest.raises(ModelStateError, match="wrapped the model for 2 processes") as error:
        run.callback_handler.on_train_begin(run.args, run.state, run.control)
    assert "before the Trainer is made" in error.value.hint


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ss.StructureCallback("classify", BUDGET), "'classify' is no task type"),
        (lambda: callback({"max_params": 3}), "budget.max_params: unknown key"),
        (lambda: callback(search={"steps": "few"}), "search.steps: .*'few'"),
        (lambda: callback(search={"strategy": "head"}), "'head' chooses no structure"),
        (lambda: callback(space={"preset": "s3pet-x"}), "unknown preset 's3pet-x'"),
        (
            lambda: ss.StructureCallback(
                "question-answering", {"max_bytes": 2000}, search={"checkpoint": "best"}
            ),
            "goes by scores",
        ),
        (lambda: callback(space={"preset": "ticket"}), "cuts the backbone itself"),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_model_of_another_task_is_refused(trainer):
    run = trainer(ss.StructureCallback("causal-lm", BUDGET))
    with pytest.raises(ConfigError, match="a BertForSequenceClassification is no model for 'caus"):
        run.train()


def test_rows_that_cannot_be_searched_with_are_refused(trainer, rows):
    with pytest.raises(DataError, match="3 training rows are too few"):
        trainer(callback(), rows=rows[:3]).train()


def test_rows_without_numbers_are_refused(trainer, rows):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(rows)

    with pytest.raises(DataError, match="an IterableDataset has no numbers") as error:
        trainer(callback(), rows=Stream()).train()
    assert "list(rows)" in error.value.hint


def language_rows(side):
    tokenizer = make_tokenizer(padding_side=side)
    rows = []
    for row in prompts(16, 0):
        prompt, answer = (
            tokenizer(text, add_special_tokens=False).input_ids
            for text in (row["question"], row["answer"])
        )
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return rows, DataCollatorForSeq2Seq(tokenizer)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_loss_over_collated_rows_is_that_of_the_trainer(side):
    model = make_language_model("llama")
    rows, collate = language_rows(side)
    task = task_of_rows("causal-lm", model, rows, collate, 0)
    assert len(task.train) == 14 and len(task.validation) == 2
    with torch.no_grad():
        alone = [model(**collate([row])) for row in rows]
    counts = [sum(label != -100 for label in row["labels"]) for row in rows]
    whole = sum(float(out.loss) * n for out, n in zip(alone, counts, strict=True)) / sum(counts)
    losses = [task.behaviour.split_loss(model, s, "fp32") for s in (task.train, task.validation)]
    learnt = [int((s.labels != -100).sum()) for s in (task.train, task.validation)]
    found = sum(loss * n for loss, n in zip(losses, learnt, strict=True)) / sum(learnt)
    assert sum(learnt) == sum(counts) and found == pytest.approx(whole, abs=1e-5)


def test_rows_with_labels_for_tokens_and_for_spans(build):
    from transformers import AutoModelForQuestionAnswering, AutoModelForTokenClassification

    config = build("bert", labels=2).config
    tokenizer = make_tokenizer()
    rows = [{"input_ids": [2, 5 + i % 7, 3], "labels": [-100, i % 2, -100]} for i in range(16)]
    tagger = AutoModelForTokenClassification.from_config(config)
    collate = DataCollatorForTokenClassification(tokenizer)
    task = task_of_rows("token-classification", tagger, rows, collate, 0)
    assert task.train.token_labels and len(task.classes) == config.num_labels
    spans = [{"input_ids": [2, 5, 6, 3], "start_positions": 1, "end_positions": 2}] * 16
    answerer = AutoModelForQuestionAnswering.from_config(config)
    collate = DataCollatorWithPadding(tokenizer)
    task = task_of_rows("question-answering", answerer, spans, collate, 0)
    assert task.train.labels.tolist() == [[1, 2]] * 14 and task.num_labels == 2
    with pytest.raises(DataError, match="needs input_ids and labels"):
        task_of_rows("token-classification", tagger, spans, collate, 0)


@pytest.mark.parametrize("length", [None, 6], ids=["longest", "equal-lengths"])
def test_targets_of_a_sequence_to_sequence_model_are_learnt_from_the_first_token_on(build, length):
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_config(build("t5").config).eval()
    tokenizer, targets = make_tokenizer(), [[9], [8, 7, 1], [10, 1], [11, 12, 7, 8, 1]]
    rows = [{"input_ids": [5 + i, 6, 1], "labels": targets[i % 4]} for i in range(16)]
    padding = {"padding": "max_length", "max_length": length} if length else {}
    collate = DataCollatorForSeq2Seq(tokenizer, **padding)
    task = task_of_rows("seq2seq", model, rows, collate, 0)
    with torch.no_grad():
        alone = [model(**collate([row])) for row in rows]
    counts = [len(row["labels"]) for row in rows]
    whole = sum(float(out.loss) * n for out, n in zip(alone, counts, strict=True)) / sum(counts)
    losses = [task.behaviour.split_loss(model, s, "fp32") for s in (task.train, task.validation)]
    learnt = [int((s.labels != -100).sum()) for s in (task.train, task.validation)]
    assert sum(learnt) == sum(counts) and not task.train.token_labels
    found = sum(loss * n for loss, n in zip(losses, learnt, strict=True)) / sum(learnt)
    assert found == pytest.approx(whole, abs=1e-5)


def test_rows_with_choices(build):
    from transformers import AutoModelForMultipleChoice, DataCollatorForMultipleChoice

    model = AutoModelForMultipleChoice.from_config(build("bert").config).eval()
    choices = [
        {"input_ids": [[2, 5 + i % 7, 3], [2, 6, 7, 3]], "labels": i % 2} for i in range(16)
    ]
    collate = DataCollatorForMultipleChoice(make_tokenizer())
    task = task_of_rows("multiple-choice", model, choices, collate, 0)
    assert task.train.inputs["input_ids"].shape == (14, 2, 4)
    assert task.train.lengths.tolist() == [4] * 14
    with torch.no_grad():
        whole = model(**collate(choices)).loss
    losses = [task.behaviour.split_loss(model, s, "fp32") for s in (task.train, task.validation)]
    assert (14 * losses[0] + 2 * losses[1]) / 16 == pytest.approx(float(whole), abs=1e-5)


def test_what_a_model_reads_beside_tokens_is_not_left_out_in_silence(build):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(build("llama").config).eval()
    rows = [{"input_ids": [2, 5 + i % 7, 3], "labels": [2, 5, 3]} for i in range(16)]

    def collate(rows):
        batch = {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
        return batch | {"attention_mask": torch.ones(len(rows), 3, 3)}

    with pytest.raises(DataError, match=r"attention_mask of shape \(16, 3, 3\)"):
        task_of_rows("causal-lm", model, rows, collate, 0)


def test_a_collator_that_shifts_the_labels_gives_the_same_loss(build):
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_config(build("t5").config).eval()
    rows = [{"input_ids": [5 + i, 6, 1], "labels": [9, 8, 7, 6 + i, 1]} for i in range(16)]
    plain, shifting = (DataCollatorForSeq2Seq(make_tokenizer(), m) for m in (None, model))
    assert "decoder_input_ids" in shifting([dict(row) for row in rows])
    losses = []
    for collate in (plain, shifting):
        task = task_of_rows("seq2seq", model, rows, collate, 0)
        losses.append(task.behaviour.split_loss(model, task.train, "fp32"))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_weights_that_loading_has_rounded_are_refused_before_the_search(
    half, trainer, tiny_folder, tmp_path
):
    """No file gives them back. A folder that has them in half precision does."""
    load = AutoModelForSequenceClassification.from_pretrained
    with pytest.raises(ModelStateError, match="no file holds the rounded weights"):
        trainer(callback(), model=load(tiny_folder, dtype=half)).train()
    folder = tmp_path / "half"
    load(tiny_folder, dtype=half).save_pretrained(folder)
    _check_unrounded(load(folder, dtype="auto"))
    _check_unrounded(load(tiny_folder))
    other = torch.float16 if half is torch.bfloat16 else torch.bfloat16
    with pytest.raises(ModelStateError, match=f"loaded in {other}, and .* has .*{half}"):
        _check_unrounded(load(folder, dtype=other))
