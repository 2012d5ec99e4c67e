"""The conformance table on the families beside the core: one model each, every kind everywhere it can go."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sparsearch.results.export.peft import plan_adapter
from sparsearch.results.export.peft_model import fill, make_config
from sparsearch.spaces.attachment.attach import attach, attach_modules, detach
from sparsearch.spaces.attachment.weights_file import load_weights, weights_of
from sparsearch.spaces.backbone.flops import dense_flops_per_token
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.backbone.parameters import base_of, positions_of
from sparsearch.spaces.backbone.tokens import count_tokens
from sparsearch.spaces.compaction.merge import merge
from sparsearch.spaces.compaction.remove import remove_units
from sparsearch.spaces.coverage import find_unreached
from sparsearch.spaces.families.position import MATRICES, find, weight_at
from sparsearch.spaces.families.registry import FAMILIES
from sparsearch.spaces.kinds import make_kind
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure
from tests.conftest import inputs_of, make_model
from tests.helpers.cut_model import TOLERANCE, cuts_of, furthest, gated, some_units
from tests.helpers.families import AUTO_MODELS, VARIANTS, task_of
from tests.helpers.kind_table import TABLE, units_of
from tests.helpers.logits import logits, scores

APART = (
    *("rotary_emb", "pooler", ".conv1", ".conv2"),
    *(".patch_embeddings", ".patch_embedding", "VisionModel.head"),
)
"""Ends of paths of modules whose FLOPs are left out."""

BESIDE = {
    "dinov2": ("embeddings", "projection", "layer_scale1", "layer_scale2"),
    "gemma4-a4b": ("router",),
    "gpt_oss": ("self_attn",),
    "qwen3_next": ("linear_attn", "conv1d", "norm"),
    "vit": ("embeddings", "projection"),
}
"""Modules with weights that are neither matrix nor norm: what no position reaches."""
ELSEWHERE = {"gemma4-a4b": {"attn.v"}, "gemma4-e2b": {"attn.k", "attn.v"}}
"""What the last layer lacks: its values are its keys, or both are those of an earlier layer."""


@torch.no_grad()
def move(model, seed=7):
    """Every parameter that trains goes away from its initial value."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def without_untaken(silent, places):
    """Without the experts of the last layer that no row's last token takes: all of such an expert is silent."""
    untaken = {n.rpartition(".")[0] for n in silent if n.startswith("layers.1.ffn.experts.")}
    whole = {e for e in untaken if {n for n in places if n.startswith(f"{e}.")} <= {*silent}}
    return [n for n in silent if n.rpartition(".")[0] not in whole]


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    return request.param


@pytest.fixture(scope="module")
def model(variant):
    """All weights are far from 0, norms too; tests leave it as it is."""
    model = make_model(variant)
    move(model)
    return model.requires_grad_(
        False
    )  # torch's own attention rounds otherwise where weights are frozen


@pytest.fixture(scope="module")
def inputs(model):
    return inputs_of(model)


@pytest.fixture(scope="module")
def plain(model, inputs):
    """What it computes."""
    return logits(model, inputs)


def test_positions_reach_all_linears_and_norms_once(variant, model):
    positions = positions_of(model)
    modules = dict(base_of(model).named_modules())
    assert len({p.name for p in positions}) == len(positions)
    places: dict[str, list[torch.Tensor]] = {}
    for p in positions:
        if p.role in MATRICES:
            weight = torch.arange(modules[p.module].get_parameter(p.parameter).numel())
            weight = weight.view_as(modules[p.module].get_parameter(p.parameter))
            places.setdefault(p.host, []).append(weight_at(p, modules[p.module], weight))
    for found in places.values():
        numbers = torch.cat([part.flatten() for part in found])
        assert torch.equal(numbers.sort().values, torch.arange(numbers.numel()))
    aside = tuple(FAMILIES[base_of(model).config.model_type].aside)
    unreached = [u for u in find_unreached(model) if not u.module.startswith(aside)]
    if variant not in BESIDE:
        unreached = [u for u in unreached if u.what in ("linear", "norm", "expert")]
    names = {u.module.rpartition(".")[2] for u in unreached}
    assert names <= {"pooler", *BESIDE.get(variant, ())}


def test_a_row_says_what_its_family_lacks(variant, model):
    lacks = FAMILIES[
        VARIANTS[variant][0]
    ].lacks  # of some of its modules only, where more words say of which
    found = {p.role for p in positions_of(model)} - {"expert", "router"}
    assert found == {"linear", "norm", "block", "heads", "neurons"} - lacks.keys()


def test_canonical_names(variant, model):
    names = {p.name for p in positions_of(model)}
    stack = FAMILIES[base_of(model).config.model_type].stacks[-1].prefix
    last = {"albert": 0, "gemma4-e2b": 3}.get(variant, 1)
    up, down = ("ffn.up", "ffn.down")
    if "layers.1.ffn.up" not in names and "layers.1.ffn.router" in names:
        up, down = ("ffn.experts.2.up", "ffn.experts.0.down")
    parts = {"attn", "attn.q", "attn.k", "attn.v", "attn.o", "ffn", up, down}
    elsewhere = ELSEWHERE.get(variant, set())
    assert {p for p in parts if f"{stack}layers.{last}.{p}" not in names} == elsewhere
    assert not any(f"layers.{last + 1}." in name for name in names)


@pytest.mark.parametrize(
    ("name", "options"),
    TABLE,
    ids=[f"{k}{'-parallel' if 'parallel' in o else ''}" for k, o in TABLE],
)
def test_a_kind_everywhere(model, inputs, plain, name, options):
    kind = make_kind(name, options)
    if not (units := units_of(model, kind)):
        pytest.skip("its norms have no weights")
    attachment = attach_modules(model, units, train_head=False)
    try:
        if name != "weight_mask":  # a mask prunes from the start
            assert torch.equal(logits(model, inputs), plain)
        for (position, _, size, _), unit in zip(units, attachment.units.values(), strict=True):
            assert sum(p.numel() for p in unit.parameters()) == kind.params(position, size)
        move(model)
        attached = logits(model, inputs)
        assert furthest(attached, plain) > 1e-3
        z = torch.full((sum(u[3] for u in units),), 0.5, requires_grad=True)
        with attachment.gated(z):
            loss = scores(model, inputs).square().sum()
        (gradient,) = torch.autograd.grad(loss, [z])
        places = [u[0].name for u in units for _ in range(u[3])]
        silent = [n for n, g in zip(places, gradient.tolist(), strict=True) if g == 0]
        silent = without_untaken(silent, places)
        assert torch.isfinite(gradient).all()
        assert all(n.endswith(".k") and name == "bitfit" for n in silent), silent
        with attachment.gated(torch.ones_like(z)):
            assert furthest(logits(model, inputs), attached) < 1e-5
        with attachment.gated(torch.zeros_like(z)):
            assert furthest(logits(model, inputs), plain) < 1e-5
        trained = weights_of(model)
    finally:
        detach(model)
    assert torch.equal(logits(model, inputs), plain)
    attach_modules(model, units, train_head=False)
    try:
        load_weights(model, trained)
        assert torch.equal(logits(model, inputs), attached)
    finally:
        detach(model)


@pytest.mark.parametrize("name", ["heads", "neurons"])
def test_gates_of_what_can_be_cut_have_gradients(model, inputs, plain, name):
    kind = make_kind(name, {} if name == "heads" else {"block": 32})
    if not (units := units_of(model, kind)):
        pytest.skip("the support matrix says why")
    attachment = attach_modules(
        model, [(p, k, size, len(k.sizes(p))) for p, k, size, _ in units], train_head=False
    )
    try:
        z = torch.full((sum(attachment.gate_sizes),), 0.5, requires_grad=True)
        with attachment.gated(z):
            (gradient,) = torch.autograd.grad(scores(model, inputs).square().sum(), [z])
        assert gradient.isfinite().all() and gradient.ne(0).all()
        with attachment.gated(torch.zeros_like(z)):
            assert furthest(logits(model, inputs), plain) < 1e-5
    finally:
        detach(model)


@pytest.mark.filterwarnings("ignore")
def test_a_peft_adapter_of_it_computes_the_same(variant, model, inputs, tmp_path):
    """LoRA on every linear and LNFit on every norm; also into fused linears, and at one place for shared layers.

    Experts, shared ones too, and routers are refused.
    """
    linears = [p.name for p in positions_of(model) if p.role == "linear"]
    on = [name for name in linears if ".ffn.shared." not in name or name.endswith("router")]
    if any(
        p.role == "expert" for p in positions_of(model)
    ):  # PEFT takes dense layers beside them for theirs
        on = [name for name in on if not name.endswith((".ffn.gate", ".ffn.up", ".ffn.down"))]
    kinds = {"lora": {"max_rank": 2, "on": on}} | ({"lnfit": {}} if variant != "olmo" else {})
    whole = copy.deepcopy(model)
    whole.config.save_pretrained(tmp_path)  # PEFT looks for it
    space = build_space(whole, kinds=kinds)
    task = task_of(variant)
    structure = make_structure(space, space.candidates, identify(whole, str(tmp_path)), task)
    attach(whole, structure)
    move(whole)
    expected, tensors = logits(whole, inputs), weights_of(whole)
    plan = plan_adapter(whole, structure, tensors)
    adapted = peft.get_peft_model(detach(whole), make_config(plan, structure))
    fill(adapted, plan)
    assert furthest(logits(adapted.eval(), inputs), expected) < 1e-5


@pytest.mark.parametrize("name", ["lora", "weight_mask", "ia3", "bitfit"])
def test_folded_into_the_weights_a_kind_computes_the_same(variant, model, inputs, name):
    """Also into slices of fused linears that lie head by head."""
    whole = copy.deepcopy(model).double()
    kind = make_kind(name, dict(TABLE)[name])
    units = [
        u
        for u in units_of(whole, kind)
        if name != "bitfit" or (u[0].has_bias and u[0].role == "linear")
    ]
    if not units:
        pytest.skip("no linear of this family has a bias")
    attach_modules(whole, units, train_head=False)
    move(whole)
    whole.double()
    expected = logits(whole, inputs)
    merge(whole)
    assert furthest(logits(whole, inputs), expected) < TOLERANCE


def test_what_is_cut_out_of_the_weights_was_zero(model, inputs):
    whole = copy.deepcopy(model).double()
    removed = some_units(whole)
    assert removed
    dense = logits(whole, inputs)
    with gated(whole, removed):
        expected = logits(whole, inputs)
    found = logits(remove_units(whole, removed), inputs)
    assert furthest(found, expected) < TOLERANCE
    assert furthest(found, dense) > 1e-3
    left = {p.name: p.units for p in cuts_of(whole)}
    assert left == {p.name: p.units - len(removed[p.name]) for p in cuts_of(model)}


def test_flops_are_what_torch_counts(variant, model, inputs):
    if variant in AUTO_MODELS and variant != "whisper":
        pytest.skip("text and image have tokens of their own")
    eager = make_model(variant, attention="eager")
    arguments = {**inputs}
    if base_of(eager).config.is_encoder_decoder and "input_ids" in inputs:
        arguments["decoder_input_ids"] = inputs["input_ids"]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        base_of(eager)(**arguments)
    aside = sum(
        count
        for module, counts in counter.get_flop_counts().items()
        if module.endswith(APART)
        for count in counts.values()
    ) + state_flops(counter)
    tokens = count_tokens(eager, inputs)
    expected = 2 * tokens * dense_flops_per_token(positions_of(eager), tokens)
    assert counter.get_total_flops() - aside == expected


def state_flops(counter):
    """What linear attention does beside its linears, which is left out."""
    flops = {m: sum(counts.values()) for m, counts in counter.get_flop_counts().items()}
    states = [m for m in flops if m.endswith(".linear_attn")]
    inside = sum(n for m, n in flops.items() if m.rpartition(".")[0] in states)
    return sum(flops[m] for m in states) - inside


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_parts_that_are_fused_group_by_group_are_those_that_the_attention_takes(key_heads):
    """With one part's weights doubled, its heads alone are doubled."""
    model = make_model("falcon-40b", num_kv_heads=key_heads)
    fused = base_of(model).get_submodule("h.1.self_attention.query_key_value")
    attention = base_of(model).get_submodule("h.1.self_attention")
    x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    whole = attention._split_heads(fused(x))
    for i, part in enumerate("qkv"):
        position = find(positions_of(model), f"layers.1.attn.{part}")
        own = weight_at(position, fused)
        found = (x @ own.T).view(1, 5, -1, 8)
        heads = whole[i] if part == "q" else whole[i][:, :, :: 4 // key_heads]
        assert torch.allclose(found, heads)
