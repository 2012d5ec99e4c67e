"""Adapters in other forms: LoRA of one rank, several PEFT adapters together, LoRA for llama.cpp."""

from __future__ import annotations

import json
from dataclasses import replace

import gguf
import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from sparsearch.errors import ExportError
from sparsearch.results.export.adapters.gguf_lora import FILE, read_adapter
from sparsearch.results.export.export import export
from sparsearch.results.records import Best
from sparsearch.spaces.attachment.attach import attach
from sparsearch.spaces.attachment.weights_file import pack_weights
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.backbone.loading import load_model
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure
from tests.helpers.exported import furthest, logits_of, train_on
from tests.helpers.families import CONFIGS

pytestmark = pytest.mark.filterwarnings("ignore")
MIXED = {
    "lora": {"max_rank": 1, "on": ["*.attn.[qk]", "*.ffn.up"]},
    "dora": {"rank": 2, "on": ["*.attn.[qo]"]},
    "ia3": {},
    "bitfit": {"on": ["*.attn.q", "*.ffn.down"]},
    "lnfit": {},
}


@pytest.mark.parametrize(
    "kinds", [{"lora": {"max_rank": 3}}, {"lora": {}, "bitfit": {"on": ["*.q"]}}]
)
def test_all_lora_have_one_rank_and_the_logits_are_the_same(build, randomise, tmp_path, kinds):
    folder, adapter = tmp_path / "base", tmp_path / "adapter"
    build("bert").save_pretrained(folder)
    case = train_on(folder, kinds, randomise)
    assert (
        len({c.size for c in case.best.structure.candidates if c.kind == "lora"}) > 1
        or "bitfit" in kinds
    )
    report = export(case.best, case.weights, "peft-one-rank", adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert not config["rank_pattern"] and not config["alpha_pattern"]
    assert {t.shape[0] for n, t in tensors.items() if "lora_A" in n} == {config["r"]}
    assert any("filled up with zeros" in note for note in report.notes)
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    assert furthest(logits_of(peft.PeftModel.from_pretrained(base, adapter)), case.logits) < 1e-5


def test_one_rank_is_of_lora(build, randomise, tmp_path):
    build("bert").save_pretrained(tmp_path / "base")
    case = train_on(tmp_path / "base", {"ia3": {}}, randomise)
    with pytest.raises(ExportError, match="PEFT's IA3"):
        export(case.best, case.weights, "peft-one-rank", tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5"])
def test_a_mixed_structure_is_several_adapters_that_are_loaded_together(
    build, family, randomise, tmp_path
):
    folder, out = tmp_path / "base", tmp_path / "set"
    build(family).save_pretrained(folder)
    case = train_on(folder, MIXED, randomise)
    kinds = {c.kind for c in case.best.structure.candidates}
    assert {"lora", "dora", "ia3", "bitfit", "lnfit"} == kinds
    with pytest.raises(ExportError, match="PEFT cannot express"):
        export(case.best, case.weights, "peft", out)
    export(case.best, case.weights, "peft-set", out)
    types = {
        name: json.loads((out / name / "adapter_config.json").read_text())["peft_type"]
        for name in ("dora", "lora", "ia3")
    }
    assert types == {"dora": "LORA", "lora": "LORA", "ia3": "IA3"}
    code = (out / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    found: dict[str, torch.nn.Module] = {}
    exec(code.replace('"set/', f'"{out}/'), found)
    assert furthest(logits_of(found["model"]), case.logits) < 1e-5


@pytest.mark.parametrize("to", ["peft", "peft-set"])
def test_the_readme_loads_the_revision_that_was_trained(build, randomise, tmp_path, to):
    """Left out, a hub id would load the newest weights, silently."""
    build("bert").save_pretrained(tmp_path / "base")
    case = train_on(tmp_path / "base", {"lora": {"max_rank": 1}}, randomise)
    backbone = replace(case.best.structure.backbone, revision="v2")
    best = replace(case.best, structure=replace(case.best.structure, backbone=backbone))
    export(best, case.weights, to, tmp_path / "out")
    code = "".join((tmp_path / "out" / "README.md").read_text().split())
    assert f'"{tmp_path / "base"}",revision="v2",config=config' in code


def as_gguf(model, architecture, file, changes):
    """Write a model as llama.cpp's converter does, with an adapter's changes added in the file's own order of rows."""
    config = model.config
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    arch = {n: a for a, n in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for key, tensor in model.state_dict().items():
        name, rows = names.get_name(key, (".weight", ".bias")), tensor.numpy()
        if architecture == "llama" and (n := heads.get(name.split(".")[-2])):
            rows = (
                rows.reshape(n, 2, rows.shape[0] // n // 2, -1).swapaxes(1, 2).reshape(rows.shape)
            )
        writer.add_tensor(name, np.ascontiguousarray(rows) + changes.pop(name, np.float32(0)))
    assert not changes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def language_case(family, folder, randomise, kinds):
    """A trained structure on a language model, with the model."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS[family]()).save_pretrained(folder)
    model = load_model(str(folder), auto_model="AutoModelForCausalLM")
    space = build_space(model, kinds=kinds)
    structure = make_structure(
        space, space.candidates[::2], identify(model, str(folder)), "causal-lm"
    )
    attach(model, structure)
    randomise(model)
    best = Best(
        "s", 0, "s3pet", "loss", -1.0, -1.0, structure, structure.trainable_params, 1, 1.0,
        None, 0, str(folder), "t", structure.stored_bytes,
    )  # fmt: skip
    return best, pack_weights(model, []), model


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_an_adapter_for_llama_cpp_changes_the_weights_of_a_gguf_file_alike(
    family, randomise, tmp_path
):
    """Added to the file's own tensors, whose rows of queries and keys Llama's files keep in another order."""
    base, out = tmp_path / "base", tmp_path / "adapter"
    best, weights, model = language_case(family, base, randomise, {"lora": {"max_rank": 3}})
    report = export(best, weights, "gguf-lora", out)
    assert {FILE, "task_config.json"} <= {*report.files}
    reader = gguf.GGUFReader(out / FILE)
    said = {n: f.contents() for n, f in reader.fields.items() if not n.startswith("GGUF.")}
    assert said["general.type"] == "adapter" and said["adapter.type"] == "lora"
    assert said["general.architecture"] == family
    ranks = {int(t.shape[0]) for t in reader.tensors if t.name.endswith("lora_b")}
    assert len(ranks) > 1 and said["adapter.lora.alpha"] == max(ranks)
    assert {"blk.0.attn_q.weight.lora_a", "blk.1.ffn_down.weight.lora_b"} <= {
        t.name for t in reader.tensors
    }
    changes = {name: change.numpy() for name, change in read_adapter(out / FILE).items()}
    plain = AutoModelForCausalLM.from_pretrained(base)
    as_gguf(plain, family, tmp_path / "merged.gguf", changes)
    merged = load_model(str(tmp_path / "merged.gguf"), auto_model="AutoModelForCausalLM")
    ids = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = model.eval()(input_ids=ids).logits, merged.eval()(input_ids=ids).logits
        assert furthest(plain(input_ids=ids).logits, expected) > 1e-2
    assert furthest(found, expected) < 1e-5


@pytest.mark.parametrize(
    ("family", "kinds", "message"),
    [("llama", {"lora": {}, "lnfit": {}}, "has lnfit"), ("gpt2", {"lora": {}}, "family 'gpt2'")],
)
def test_what_llama_cpp_cannot_hold_is_refused(family, kinds, message, randomise, tmp_path):
    best, weights, _ = language_case(family, tmp_path / "base", randomise, kinds)
    with pytest.raises(ExportError, match=message):
        export(best, weights, "gguf-lora", tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_classifier_is_refused(build, randomise, tmp_path):
    build("llama").save_pretrained(tmp_path / "base")
    case = train_on(tmp_path / "base", {"lora": {}}, randomise)
    with pytest.raises(ExportError, match="language models"):
        export(case.best, case.weights, "gguf-lora", tmp_path / "adapter")
