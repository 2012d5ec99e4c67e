"""Prefixes: their formula, the queries that they see, and what happens around them."""

import copy
import math

import pytest
import torch

from sparsearch.errors import ConfigError, StructureError
from sparsearch.spaces.attachment.attach import attach, attach_modules
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.backbone.parameters import base_of, positions_of
from sparsearch.spaces.compaction.compact import compact
from sparsearch.spaces.families.position import find, weight_at
from sparsearch.spaces.kinds import make_kind
from sparsearch.spaces.kinds.prefix.module import PrefixUnit
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure
from tests.conftest import make_inputs, make_model
from tests.helpers.families import CONFIGS as FAMILIES
from tests.helpers.families import task_of
from tests.helpers.kind_table import units_of
from tests.helpers.language_model import CONFIGS
from tests.helpers.logits import logits

PREFIX = make_kind("prefix", {"max_length": 3})
HEADS, KEY_HEADS, WIDTH = 4, 2, 5


def moved(module, size=0.3):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator).to(parameter)
    return module


def attached(model):
    attach_modules(model, units_of(model, PREFIX), train_head=False)
    moved(attachment_of(model))
    return model


@pytest.fixture
def unit():
    torch.manual_seed(0)
    return moved(PrefixUnit(3, KEY_HEADS, WIDTH).double(), size=1.0)


@pytest.fixture
def queries():
    return torch.randn(2, 6, HEADS * WIDTH, dtype=torch.float64)


def by_the_formula(unit, queries, gate):
    """Head by head and token by token: sum_i e_i v_i / (1 + sum_i e_i)."""
    found = torch.zeros_like(queries).view(2, 6, HEADS, WIDTH)
    for row, token, head in torch.cartesian_prod(*map(torch.arange, found.shape[:3])).tolist():
        q = queries.view_as(found)[row, token, head]
        k, v = (t[:, head * KEY_HEADS // HEADS] for t in (unit.keys, unit.values))
        e = gate * torch.exp(k @ q / math.sqrt(WIDTH))
        found[row, token, head] = (e @ v / (1 + e.sum())).detach()
    return found.flatten(-2)


@pytest.mark.parametrize("gate", [[1, 1, 1], [0.3, 1, 0.9], [0, 1, 0], [0, 0, 0]], ids=str)
def test_it_is_the_formula(unit, queries, gate):
    z = torch.tensor(gate, dtype=torch.float64)
    assert torch.allclose(unit(queries, z), by_the_formula(unit, queries, z))
    if gate == [1, 1, 1]:
        assert torch.equal(unit(queries, None), unit(queries, z))


def test_gates_have_gradients_at_zero_and_a_closed_one_leaves_a_shorter_prefix(unit, queries):
    z = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(unit(queries, z).square().sum() + unit(queries, z).sum(), [z])
    step = 1e-4
    with torch.no_grad():
        for i, gradient in enumerate(found.tolist()):
            ends = [unit(queries, s * step * torch.eye(3)[i].double()).sum() for s in (1, -1)]
            assert gradient == pytest.approx(float(ends[0] - ends[1]) / (2 * step), rel=1e-3)
    shorter = PrefixUnit(2, KEY_HEADS, WIDTH).double()
    with torch.no_grad():
        shorter.keys.copy_(unit.keys[:2])
        shorter.values.copy_(unit.values[:2])
        closed = unit(queries, torch.tensor([1.0, 1.0, 0.0]))
        assert torch.allclose(shorter(queries, None), closed)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_scores_stay_finite(size):
    unit = PrefixUnit(1, 1, 2)
    with torch.no_grad():
        unit.keys.fill_(size)
        unit.values.fill_(1.0)
    z = torch.full((1,), 0.5, requires_grad=True)
    found = unit(torch.ones(1, 1, 2), z)
    (gradient,) = torch.autograd.grad(found.sum(), [z])
    assert torch.allclose(found, torch.full((1, 1, 2), float(size > 0)))
    assert gradient.isfinite().all()


def queries_of(model, inputs):
    """What the unit of the last layer's attention reads."""
    seen = []
    slot = next(
        s for s in reversed(attachment_of(model).slots) if s.position.name.endswith(".attn")
    )
    slot.unit.register_forward_hook(lambda unit, args, change: seen.append(args[0]))
    logits(model, inputs)
    return seen, slot.position.queries


def test_normed_queries_are_read_behind_their_norm(inputs):
    model = attached(make_model("qwen3"))
    own = []
    norm = base_of(model).layers[1].self_attn.q_norm
    norm.register_forward_hook(lambda module, args, output: own.append(output.flatten(-2)))
    (seen,), queries = queries_of(model, inputs)
    assert torch.equal(seen, own[0]) and (queries.heads, queries.key_heads) == (4, 2)


def test_relative_positions_that_pass_the_same_linear_are_no_queries(inputs):
    model = attached(make_model("deberta-v2"))
    own = []
    linear = base_of(model).encoder.layer[1].attention.self.query_proj
    linear.register_forward_hook(lambda module, args, output: own.append(output))
    (seen,), _ = queries_of(model, inputs)
    assert torch.equal(seen, own[0]) and len(own) == 2


def test_queries_of_a_linear_that_is_fused_group_by_group(inputs):
    model = attached(make_model("falcon-40b"))
    own = []
    fused = base_of(model).h[1].self_attention.query_key_value
    fused.register_forward_pre_hook(lambda module, args: own.append(args[0]))
    (seen,), queries = queries_of(model, inputs)
    weight = weight_at(find(positions_of(model), "layers.1.attn.q"), fused)
    assert torch.allclose(seen, own[0] @ weight.T, atol=1e-6) and queries.key_heads == 2


def test_what_an_interrupted_pass_left_is_forgotten(build, inputs):
    model = attached(build("bert"))
    expected = logits(model, inputs)

    def stop(module, args):
        raise KeyboardInterrupt

    handle = base_of(model).encoder.layer[0].attention.self.value.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        logits(model, make_inputs(rows=3, tokens=4))
    handle.remove()
    assert torch.equal(logits(model, inputs), expected)


@pytest.mark.parametrize("family", CONFIGS)
def test_it_generates_with_a_cache_what_it_generates_without(family):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()
    ids = torch.tensor([[0, 0, 2, 7, 9], [2, 6, 8, 7, 10]])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long()}

    def written(cached):
        return model.generate(
            **inputs, max_new_tokens=12, min_new_tokens=12, do_sample=False, use_cache=cached
        )

    plain = written(cached=True)
    attached(model)
    with torch.no_grad():
        for parameter in attachment_of(model).parameters():
            parameter *= 10
    assert torch.equal(written(cached=True), written(cached=False))
    assert not torch.equal(written(cached=True), plain)


@pytest.mark.filterwarnings("ignore")
def test_checkpointed_compiled_or_in_half_precision_it_computes_the_same(build, inputs):
    model = attached(build("llama"))
    expected = logits(model, inputs)
    model(**inputs).logits.square().sum().backward()
    wanted = [p.grad.clone() for p in attachment_of(model).parameters()]
    model.zero_grad()
    again = copy.deepcopy(model).train()
    again.gradient_checkpointing_enable({"use_reentrant": False})
    again(**inputs).logits.square().sum().backward()
    for parameter, gradient in zip(attachment_of(again).parameters(), wanted, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.allclose(logits(compiled, inputs), expected, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert (logits(model, inputs) - expected).abs().max() < 0.05
    assert (logits(model.to(torch.bfloat16), inputs) - expected).abs().max() < 0.05


def test_a_prefix_and_a_cut_of_the_same_heads_are_refused(build):
    with pytest.raises(ConfigError, match=r"heads of layers.0.attn may go, with which prefix"):
        build_space(build("bert"), kinds={"prefix": {}, "heads": {}})
    kinds = {"prefix": {"on": ["layers.0.attn"]}, "heads": {"on": ["layers.1.attn.heads"]}}
    assert build_space(build("bert"), kinds=kinds).candidates


def test_a_prefix_stays_while_other_heads_are_cut(build, inputs, monkeypatch):
    model = build("bert")
    kinds = {"prefix": {"on": ["layers.0.attn"]}, "heads": {"on": ["layers.1.attn.heads"]}}
    space = build_space(model, kinds=kinds)
    chosen = [*(c for c in space.candidates if c.kind == "prefix"), space.candidates[-1]]
    structure = make_structure(space, chosen, identify(model), "classification")
    moved(attachment_of(attach(model, structure)))
    expected = logits(model, inputs)
    assert torch.allclose(logits(compact(model, structure), inputs), expected, atol=1e-6)
    assert [slot.kind.name for slot in attachment_of(model).slots] == ["prefix"]

    monkeypatch.setattr("sparsearch.spaces.space.conflicts", lambda places: ())
    model = build("bert")
    space = build_space(model, kinds={"prefix": {}, "heads": {}})
    chosen = [space.candidates[0], next(c for c in space.candidates if c.which)]
    structure = make_structure(space, chosen, identify(model), "classification")
    with pytest.raises(StructureError, match="prefix at layers.0.attn computes with heads"):
        compact(attach(model, structure), structure)


def test_no_token_sees_a_later_one(inputs):
    """Queries in another order would mix tokens with heads, and a decoder would read what it has to predict."""
    tested = set()
    for family in (f for f in FAMILIES if task_of(f) in ("classification", "causal-lm")):
        model = make_model(family)
        base = base_of(model)
        if model.config.is_encoder_decoder:
            continue
        changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
        changed["input_ids"][:, -1] = 2

        def earlier(base=base, changed=changed):
            with torch.no_grad():
                states = [base(**x)[0][:, :-1] for x in (inputs, changed)]
            return states[0], (states[0] - states[1]).abs().max()

        before, difference = earlier()
        if difference or not units_of(model, PREFIX):
            continue
        attached(model)
        after, difference = earlier()
        assert not torch.equal(after, before) and difference < 1e-6, family
        tested.add(family)
    assert {"gemma3_text", "llama", "qwen3", "gpt2"} <= tested and len(tested) > 15
