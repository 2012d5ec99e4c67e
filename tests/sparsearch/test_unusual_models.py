"""Models and tokenizers that are not as usual: the right result, or an error that names the way out."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    GraniteConfig,
)

import sparsearch as ss
from sparsearch.config.study import ModelConfig, TaskConfig
from sparsearch.errors import (
    BackboneError,
    ConfigError,
    DataError,
    ModelStateError,
    StructureError,
)
from sparsearch.search.tasks.task import batches
from sparsearch.spaces.attachment.attach import attach_modules
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.backbone.parameters import positions_of
from sparsearch.spaces.kinds import make_kind
from sparsearch.workers.preflight import check_study
from sparsearch.workers.trials.session import load_backbone
from tests.conftest import make_inputs, make_model
from tests.helpers.families import CONFIGS
from tests.helpers.kind_table import TABLE, units_of
from tests.helpers.language_model import make_language_model, make_tokenizer

TASKS = {
    "classification": {"text": ["text"]},
    "multi-label": {"text": ["text"], "labels": ["a", "b"]},
    "token-classification": {"tokens": "words", "tags": "tags"},
    "question-answering": {"question": "q", "context": "c", "answers": "a"},
}
CPU = torch.device("cpu")


@pytest.mark.parametrize("task", TASKS)
def test_a_family_without_the_head_of_a_task_is_refused(study, tmp_path, task):
    GraniteConfig(hidden_size=8, num_attention_heads=2, vocab_size=9).save_pretrained(tmp_path)
    columns = {"data": study["task"]["data"], "type": task, **TASKS[task]}
    wrong = study | {"model": {"path": str(tmp_path)}, "task": columns}
    with pytest.raises(ConfigError, match="(?s)no model of family 'granite'.*another task.type"):
        check_study(wrong)


@pytest.mark.parametrize("family", ["t5", "mt5"])
def test_a_class_that_keeps_its_head_inside_is_refused(study, tiny_folder, tmp_path, family):
    """It would be counted, and frozen, with the backbone: a search that trains no head, without a word."""
    model = AutoModelForQuestionAnswering.from_config(CONFIGS[family]())
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelStateError, match="ForQuestionAnswering keeps its head inside"):
        ss.build_space(model, kinds={"lora": {}})
    row = {"q": "is it?", "c": "it was good", "a": {"text": ["good"], "answer_start": [7]}}
    (tmp_path / "rows.jsonl").write_text(4 * (json.dumps(row) + "\n"))
    files = {split: "rows.jsonl" for split in ("train", "validation", "test")}
    data = {"path": "json", "data_files": files}
    task = {"data": data, "type": "question-answering", **TASKS["question-answering"]}
    with pytest.raises(ConfigError, match="(?s)model.path.*keeps its head inside"):
        check_study(study | {"model": {"path": str(tmp_path)}, "task": task})
    config = TaskConfig.model_validate(task)
    with pytest.raises(BackboneError, match="no head is found.*none would be trained") as error:
        load_backbone(ModelConfig(path=str(tmp_path)), config, tmp_path, CPU)
    assert "another family" in error.value.hint


@pytest.fixture
def load(study, tiny_folder, tmp_path):
    """Saves a model beside the tiny tokenizer, whose attributes change, and loads it with the tiny study's data."""

    def load(model, **changes):
        tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
        for name, value in changes.items():
            setattr(tokenizer, name, value)
        tokenizer.save_pretrained(tmp_path)
        model.save_pretrained(tmp_path)
        task = TaskConfig.model_validate(study["task"])
        model, _, data = load_backbone(ModelConfig(path=str(tmp_path)), task, tmp_path, CPU)
        return model.eval(), data

    return load


def make_decoder(vocabulary):
    torch.manual_seed(0)
    return GPT2ForSequenceClassification(
        GPT2Config(vocab_size=vocabulary, n_positions=24, n_embd=16, n_layer=1, n_head=2)
    )


def test_without_a_padding_token_the_end_token_pads(load):
    """A decoder pools at the last token that is no padding: what a row gives does not hang on those beside it."""
    model, data = load(make_decoder(24), pad_token=None, eos_token="[SEP]")
    (batch,) = batches(data.validation, len(data.validation), CPU)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert mask.min() == 0 and set(ids[mask == 0].tolist()) == {3} == {model.config.pad_token_id}
    together = model(ids, attention_mask=mask).logits
    for row, real, logits in zip(ids, mask.bool(), together, strict=True):
        assert torch.allclose(model(row[real][None]).logits[0], logits, atol=1e-5)


def test_a_token_beyond_the_vocabulary_is_named(load):
    with pytest.raises(DataError, match=r"token 15 \('the'\), .* of tokens 0 to 9 ") as error:
        load(make_decoder(10), eos_token="[SEP]")
    assert "resize the embeddings" in error.value.hint


def test_rows_padded_at_the_left_are_answered_as_they_are_alone():
    model, tokenizer = make_language_model("llama"), make_tokenizer(padding_side="left")
    kind = make_kind("lora", {"max_rank": 2})
    attachment = attach_modules(model, units_of(model, kind))
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter += torch.randn(parameter.shape)
    texts = ["ask the red number", "two", "blue is seven"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    assert batch["attention_mask"][1, 0] == 0

    def answers(**inputs):
        return model.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=None)

    together = answers(**batch)[:, batch["input_ids"].shape[1] :]
    for text, row in zip(texts, together, strict=True):
        alone = tokenizer(text, return_tensors="pt")
        assert torch.equal(answers(**alone)[0, alone["input_ids"].shape[1] :], row)


@pytest.mark.parametrize(("name", "options"), TABLE)
def test_a_model_of_mixed_types_trains_as_in_one(name, options):
    """Norms in float32 over a bfloat16 backbone, as many loaders leave it."""

    def gradient(mix):
        model = make_model("bert").to(torch.bfloat16)
        for module in model.modules():
            if isinstance(module, nn.LayerNorm) or not mix:
                module.float()
        attach_modules(model, units_of(model, make_kind(name, dict(options))))
        attachment = attachment_of(model)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in attachment.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        attachment.advance(0, 10)
        model(**make_inputs(), labels=torch.tensor([0, 2])).loss.backward()
        return torch.cat([p.grad.float().flatten() for p in attachment.parameters()])

    one, other = gradient(mix=True), gradient(mix=False)
    assert other.norm() > 0
    assert torch.cosine_similarity(one, other, dim=0) > 0.98


def test_tied_embeddings_stay_tied_and_frozen():
    model = make_language_model("gpt2")
    head, embeddings = model.lm_head.weight, model.transformer.wte.weight
    before = embeddings.clone()
    attachment = attach_modules(model, units_of(model, make_kind("lora", {"max_rank": 1})))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in attachment.parameters()}
    ids = torch.tensor([[2, 6, 9, 3]])
    for _ in range(3):
        model(ids, labels=ids).loss.backward()
        torch.optim.SGD(trained, lr=0.1).step()
    expected = model(ids).logits
    merged = ss.merge(model)
    assert merged.lm_head.weight is merged.transformer.wte.weight is embeddings is head
    assert torch.equal(embeddings, before)
    assert torch.allclose(merged(ids).logits, expected, atol=1e-6)


def share_layer(model):
    """The second layer is the first."""
    model.bert.encoder.layer[1] = model.bert.encoder.layer[0]
    return model


@pytest.mark.parametrize("name", ["lora", "bitfit", "lnfit", "adapter", "sparse_delta"])
def test_a_shared_layer_has_one_position_and_the_gradient_of_all_its_uses(name):
    shared = share_layer(make_model("bert"))
    apart = share_layer(make_model("bert"))
    apart.bert.encoder.layer[1] = copy.deepcopy(apart.bert.encoder.layer[0])
    kind = make_kind(name, dict(dict(TABLE[::-1])[name]))
    gradients, start = [], {}
    for model in (shared, apart):
        units = [u for u in units_of(model, kind) if u[0].name.startswith("layers.")]
        attachment = attach_modules(model, units)
        with torch.no_grad():
            for unit in attachment.slots:
                place = unit.position.name.split(".", 2)[2]
                for i, parameter in enumerate(unit.unit.parameters()):
                    start.setdefault((place, i), torch.randn(parameter.shape))
                    parameter.copy_(0.1 * start[place, i])
        model(**make_inputs(), labels=torch.tensor([0, 2])).loss.backward()
        found = {}
        for unit in attachment.slots:
            place = unit.position.name.split(".", 2)[2]
            own = torch.cat([p.grad.flatten() for p in unit.unit.parameters()])
            found[place] = found.get(place, 0) + own
        gradients.append(found)
    one, both = gradients
    assert one.keys() == both.keys() and len(one) > 1
    for place, gradient in one.items():
        assert torch.allclose(gradient, both[place], atol=1e-6), place


def test_a_block_whose_end_other_layers_use_is_refused():
    model = make_model("bert")
    first, second = model.bert.encoder.layer
    second.output.dense = first.output.dense
    kind = make_kind("adapter", {"bottleneck": 2, "parallel": True})
    attach_modules(model, units_of(model, kind))
    with pytest.raises(StructureError, match=r"layers\.0\.ffn ends in .*: layers share it"):
        model(**make_inputs())


def test_a_model_with_a_peft_adapter_is_refused_with_the_way_out():
    model = get_peft_model(make_model("bert"), LoraConfig(target_modules=["query"]))
    for inner in (model, model.base_model.model):
        with pytest.raises(ModelStateError, match="carries a PEFT adapter") as error:
            ss.build_space(inner, preset="s3pet-m")
        assert "merge_and_unload" in error.value.hint
    space = ss.build_space(model.merge_and_unload(), preset="s3pet-m")
    assert {p.name for p in space.positions} == {p.name for p in positions_of(make_model("bert"))}
