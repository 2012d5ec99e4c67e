"""The export target checkpoint: smaller, merged, proven; and the serving files beside it."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import sparsearch
from sparsearch.errors import ExportError
from sparsearch.results.export import serving
from sparsearch.results.export.export import export
from sparsearch.results.export.serving import write_serving
from sparsearch.results.records import Best
from sparsearch.spaces.attachment.attach import attach
from sparsearch.spaces.attachment.weights_file import weights_of
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.backbone.loading import load_model
from sparsearch.spaces.compaction.checkpoint_document import read_checkpoint
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure
from tests.helpers.families import CORE
from tests.helpers.feed_forward import WIDTH

CUT = {"lora": {"max_rank": 2}, "lnfit": {}, "heads": {}, "neurons": {"block": 24}}
MERGED = {"lora": {"max_rank": 2}, "lnfit": {}}
NEEDS_ONNX = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None, reason="needs the extra onnx"
)
UNSERVED = "t5"
"""Its head looks for the end of each row, which tracing cannot follow."""


@pytest.fixture
def trained(build, randomise, inputs, tmp_path):
    """A backbone on disk and a trial with a trained structure on it: (trial, weights, logits, folder)."""

    def make(family, kinds=CUT, folder=None, **settings):
        if folder is None:
            folder = tmp_path / f"backbone-{family}"
            settings |= {WIDTH.get(family, "intermediate_size"): 96}
            build(family, **settings).save_pretrained(folder)
        model = load_model(str(folder), num_labels=3)
        space = build_space(model, kinds=kinds)
        cut = (("heads", (1,)), ("neurons", (3,)))
        chosen = [
            c
            for number, c in enumerate(space.candidates)
            if ((c.kind, c.which) in cut if c.which else number % 2)
        ]
        structure = make_structure(space, chosen, identify(model, str(folder)), "classification")
        attach(model, structure)
        randomise(model)
        classes = {"classes": json.dumps(["no", "perhaps", "yes"])}
        weights = safetensors.torch.save(weights_of(model), classes)
        with torch.no_grad():
            logits = model.eval()(**inputs).logits
        best = Best(
            "s", 0, "s3pet", "accuracy", 0.9, 0.9, structure, structure.trainable_params, 1, 0.8,
            None, 0, str(folder), "t", structure.stored_bytes,
        )  # fmt: skip
        return best, weights, logits, folder

    return make


def logits_of(model, inputs):
    with torch.no_grad():
        return model.eval()(**inputs).logits


def furthest(found, expected):
    return float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("adapters", [False, True], ids=["merged", "adapters"])
def test_the_folder_computes_what_was_trained(trained, family, adapters, inputs, tmp_path):
    kinds = CUT | ({"adapter": {"bottleneck": 4}} if adapters else {})
    best, weights, logits, _ = trained(family, kinds)
    report = export(best, weights, "checkpoint", tmp_path / "small")
    assert report.files == ("checkpoint.json", "config.json", "model.safetensors")
    assert report.max_difference < 1e-5
    assert any("load_checkpoint" in note for note in report.notes)
    assert any("no tokenizer" in note for note in report.notes)
    model = sparsearch.load_checkpoint(tmp_path / "small")
    assert furthest(logits_of(model, inputs), logits) < 1e-5
    assert model.config.id2label == {0: "no", 1: "perhaps", 2: "yes"}
    checkpoint = read_checkpoint(tmp_path / "small")
    assert checkpoint.costs.inference_flops_ratio == 0.8 and not checkpoint.tokenizer
    assert checkpoint.structure == json.loads(best.structure.to_json())
    assert not any("sparsearch" in n for n in model.state_dict()) or adapters


@pytest.mark.parametrize("shrunk", [True, False], ids=["cut", "adapter"])
def test_transformers_alone_cannot_take_a_cut_model_for_a_whole_one(trained, shrunk, tmp_path):
    best, weights, _, _ = trained("bert", CUT if shrunk else MERGED | {"adapter": {}})
    report = export(best, weights, "checkpoint", tmp_path / "small")
    assert any("transformers alone does not know" in note for note in report.notes)
    if shrunk:
        with pytest.raises(RuntimeError, match="mismatched"):
            AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")


@pytest.mark.parametrize(("kind", "falls"), [("lora", True), ("lnfit", False)])
def test_zeros_that_merging_fills_are_told(build, trained, tmp_path, kind, falls):
    """A backbone that is pruned already is no longer, where something is added to its weights."""
    pruned = build("bert")
    with torch.no_grad():
        for name, weight in pruned.named_parameters():
            if "encoder" in name and weight.dim() == 2:
                weight[:, ::2] = 0
    pruned.save_pretrained(tmp_path / "pruned")
    best, weights, _, _ = trained("bert", {kind: {}}, tmp_path / "pruned")
    report = export(best, weights, "checkpoint", tmp_path / "small")
    told = [note for note in report.notes if "zeros" in note]
    assert len(told) == falls and all("50.0% -> " in note and "spec" in note for note in told)


def test_where_nothing_but_weights_changed_transformers_loads_it(
    trained, family, inputs, tmp_path
):
    best, weights, logits, _ = trained(family, MERGED)
    report = export(best, weights, "checkpoint", tmp_path / "merged")
    assert read_checkpoint(tmp_path / "merged").plain
    assert any("with transformers alone" in note for note in report.notes)
    plain, found = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "merged", output_loading_info=True
    )
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert furthest(logits_of(plain, inputs), logits) < 1e-5
    again = sparsearch.load_checkpoint(tmp_path / "merged")
    assert torch.equal(logits_of(again, inputs), logits_of(plain, inputs))


def test_a_new_bias_is_no_plain_model(trained, inputs, tmp_path):
    best, weights, logits, _ = trained("llama", {"bitfit": {"on": ["*.q"]}})
    export(best, weights, "checkpoint", tmp_path / "merged")
    checkpoint = read_checkpoint(tmp_path / "merged")
    assert not checkpoint.plain and "q_proj.bias" in checkpoint.added_biases[0]
    model = sparsearch.load_checkpoint(tmp_path / "merged")
    assert furthest(logits_of(model, inputs), logits) < 1e-5


def test_the_tokenizer_goes_with_it(trained, tiny_folder, tmp_path):
    best, weights, _, _ = trained("bert", MERGED, tiny_folder)
    report = export(best, weights, "checkpoint", tmp_path / "small")
    listed = read_checkpoint(tmp_path / "small").tokenizer
    assert {"tokenizer.json", "tokenizer_config.json"} == set(listed) < set(report.files)
    words = AutoTokenizer.from_pretrained(tmp_path / "small")("the film was good")
    assert (
        words["input_ids"]
        == AutoTokenizer.from_pretrained(tiny_folder)("the film was good").input_ids
    )
    for file in ("config.json", "tokenizer_config.json"):
        assert str(tiny_folder) not in (tmp_path / "small" / file).read_text()


def test_a_structure_that_cannot_be_merged_is_refused_by_name(trained, tmp_path):
    best, weights, _, _ = trained("llama", {"bitfit": {}, "lora": {}})
    with pytest.raises(ExportError, match=r"bitfit at .*norm .*has no bias") as caught:
        export(best, weights, "checkpoint", tmp_path / "small")
    assert "--to spec" in caught.value.hint
    assert [p.name for p in tmp_path.iterdir()] == ["backbone-llama"]


def test_what_was_written_is_loaded_before_it_counts(trained, tmp_path, monkeypatch):
    from sparsearch.spaces.compaction import checkpoint

    best, weights, _, _ = trained("bert")

    def damage(tensors, file, metadata):
        tensors = {n: t * 1.01 if n.endswith("query.weight") else t for n, t in tensors.items()}
        safetensors.torch.save_file(tensors, file, metadata)

    monkeypatch.setattr(checkpoint, "save_file", damage)
    with pytest.raises(sparsearch.SparsearchError):
        export(best, weights, "checkpoint", tmp_path / "small")
    assert [p.name for p in tmp_path.iterdir()] == ["backbone-bert"]


@pytest.mark.parametrize("damage", ["empty", "no head", "other structure"])
def test_weights_that_are_not_the_structures_are_refused(trained, damage, tmp_path):
    best, weights, _, _ = trained("bert")
    tensors = safetensors.torch.load(weights)
    kept = {n: t for n, t in tensors.items() if damage != "no head" or not n.startswith("head:")}
    if damage == "other structure":
        kept = {n: t for n, t in tensors.items() if ":lora" not in n}
    meta = {"classes": json.dumps(["a", "b", "c"])}
    data = b"" if damage == "empty" else safetensors.torch.save(kept, meta)
    with pytest.raises(sparsearch.SparsearchError, match="weights"):
        export(best, data, "checkpoint", tmp_path / "small")
    assert [p.name for p in tmp_path.iterdir()] == ["backbone-bert"]


def test_a_spec_holds_what_is_attached_under_a_cut(trained, inputs, tmp_path):
    best, weights, logits, backbone = trained("bert")
    assert best.structure.trainable_params < sum(
        t.numel() for n, t in safetensors.torch.load(weights).items() if not n.startswith("head:")
    )
    export(best, weights, "spec", tmp_path / "spec")
    model = attach(load_model(str(backbone), num_labels=3), tmp_path / "spec")
    assert furthest(logits_of(model, inputs), logits) < 1e-5


# Serving files


@pytest.mark.parametrize(
    ("name", "to"),
    [(name, "torch") for name in CORE if name not in (UNSERVED, "roberta")]
    + [pytest.param("llama", "onnx", marks=NEEDS_ONNX)],
)
def test_a_serving_file_gives_the_checkpoints_logits(trained, name, to, inputs, tmp_path):
    best, weights, _, _ = trained(name, CUT | {"adapter": {"bottleneck": 4}})
    report = export(best, weights, "checkpoint", tmp_path / "small", also=[to])
    file = serving.SERVING[to]
    assert file in report.files and not any(f.startswith(".") for f in report.files)
    assert any(note.startswith(f"{file}: input_ids, attention_mask") for note in report.notes)
    expected = logits_of(sparsearch.load_checkpoint(tmp_path / "small"), inputs)
    if "token_type_ids" in " ".join(report.notes):
        inputs = inputs | {"token_type_ids": torch.zeros_like(inputs["input_ids"])}
    if to == "torch":
        found = torch.export.load(tmp_path / "small" / file).module()(**inputs).detach()
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(tmp_path / "small" / file)
        assert [d.name for d in session.get_outputs()] == ["logits"]
        (found,) = session.run(None, {n: t.numpy() for n, t in inputs.items()})
        found = torch.from_numpy(found)
    assert furthest(found, expected) < 1e-5


@NEEDS_ONNX
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_an_onnx_file_of_the_smallest_layers_quantises_and_still_computes(
    trained, name, inputs, tmp_path
):
    import onnxruntime
    from onnxruntime.quantization import quantize_dynamic

    kinds = {"heads": {}, "neurons": {"block": 16}}
    best, weights, _, folder = trained(name, kinds)
    space = build_space(load_model(str(folder), num_labels=3), kinds=kinds)
    most = {"heads": 3, "neurons": 2}  # of 4 heads, and of 6 blocks of which 64 neurons stay
    chosen = [c for c in space.candidates if c.which[0] < most[c.kind]]
    backbone, task = best.structure.backbone, best.structure.task_type
    small = dataclasses.replace(best, structure=make_structure(space, chosen, backbone, task))
    tensors = {n: t for n, t in safetensors.torch.load(weights).items() if n.startswith("head:")}
    packed = safetensors.torch.save(tensors, {"classes": json.dumps(["a", "b", "c"])})
    export(small, packed, "checkpoint", tmp_path / "small", also=["onnx"])
    model = sparsearch.load_checkpoint(tmp_path / "small")
    widths = {p.shape[-1] for n, p in model.named_parameters() if p.dim() == 2}
    assert (
        0 < min(widths) <= 24 and 64 in widths
    )  # one head (fused with its keys and values), 64 neurons
    quantize_dynamic(tmp_path / "small" / "model.onnx", tmp_path / "int8.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "int8.onnx")
    fed = inputs | {"token_type_ids": torch.zeros_like(inputs["input_ids"])}
    fed = {d.name: fed[d.name].numpy() for d in session.get_inputs()}
    (found,) = session.run(None, fed)
    expected = logits_of(model, inputs)
    assert float((torch.from_numpy(found) - expected).abs().max()) < 0.2 * expected.abs().max()
    import onnx

    nodes = onnx.load(tmp_path / "int8.onnx").graph.node
    assert sum(node.op_type == "MatMulInteger" for node in nodes) >= 8


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_a_sliding_window_does_not_bound_the_length_of_a_serving_file(trained, name, tmp_path):
    best, weights, _, _ = trained(name, MERGED, sliding_window=6)
    report = export(best, weights, "checkpoint", tmp_path / "small", also=["torch"])
    assert "model.pt2" in report.files
    model = sparsearch.load_checkpoint(tmp_path / "small")
    run = torch.export.load(tmp_path / "small" / "model.pt2").module()
    for tokens in (4, 6, 7, 20):
        ids = torch.full((2, tokens), 5)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        assert furthest(run(**batch).detach(), logits_of(model, batch)) < 1e-5


def test_a_family_that_cannot_be_served_keeps_its_checkpoint(trained, inputs, tmp_path, capfd):
    best, weights, logits, _ = trained(UNSERVED)
    capfd.readouterr()
    with pytest.raises(ExportError, match=r"holds the checkpoint, without torch: a t5 model") as e:
        export(best, weights, "checkpoint", tmp_path / "small", also=["torch"])
    assert "TORCH_LOGS" not in str(e.value) and "Traceback" not in capfd.readouterr().err
    files = sorted(p.name for p in (tmp_path / "small").iterdir())
    assert files == ["checkpoint.json", "config.json", "model.safetensors"]
    model = sparsearch.load_checkpoint(tmp_path / "small")
    assert furthest(logits_of(model, inputs), logits) < 1e-5


def test_a_serving_file_that_computes_something_else_does_not_count(
    trained, tmp_path, monkeypatch
):
    best, weights, _, _ = trained("bert")
    export(best, weights, "checkpoint", tmp_path / "small")
    real = serving._program

    def shifted(model):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.classifier.bias += 1
        return real(other)

    monkeypatch.setattr(serving, "_program", shifted)
    with pytest.raises(ExportError, match="differ from the checkpoint's by 1"):
        write_serving(tmp_path / "small", "torch")
    assert not (tmp_path / "small" / "model.pt2").exists()


def test_bad_serving_requests_are_refused_before_any_work(trained, tmp_path, monkeypatch):
    best, weights, _, _ = trained("bert")
    target = tmp_path / "small"
    with pytest.raises(ExportError, match="unknown serving format 'tflite'; known: onnx, torch"):
        export(best, weights, "checkpoint", target, also=["torch", "tflite"])
    with pytest.raises(ExportError, match="not with spec"):
        export(best, weights, "spec", target, also=["torch"])
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n: None if n == "onnxruntime" else find(n)
    )
    with pytest.raises(ExportError, match="ONNX needs onnxruntime") as caught:
        export(best, weights, "checkpoint", target, also=["onnx"])
    assert caught.value.hint == "pip install 'sparsearch[onnx]'"
    assert not Path(target).exists()


def test_a_folder_in_use_is_left_alone(trained, tmp_path):
    best, weights, _, _ = trained("bert")
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "mine.txt").write_text("keep")
    with pytest.raises(ExportError, match="not an empty folder"):
        export(best, weights, "checkpoint", tmp_path / "small")
    assert [p.name for p in (tmp_path / "small").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    other = dataclasses.replace(best, inference_flops_ratio=1.0)
    assert export(other, weights, "checkpoint", tmp_path / "empty").path == tmp_path / "empty"
