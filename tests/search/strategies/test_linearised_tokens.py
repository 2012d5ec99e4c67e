"""Joint selection where each token has a loss of its own: language models, tags, spans."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    BertConfig,
    set_seed,
)

from sparsearch.config.study import SearchConfig, TrainConfig
from sparsearch.search.strategies.base import RankingContext
from sparsearch.search.strategies.linearised.directions import find_directions
from sparsearch.search.strategies.linearised.explained import OutputsOfTokens, explain
from sparsearch.search.strategies.linearised.jacobian import (
    jacobian_columns,
    least_squares,
    moved_units,
)
from sparsearch.search.strategies.registry import rank
from sparsearch.search.strategies.supernet_start import open_supernet
from sparsearch.search.tasks.task import Split, Task, batches
from sparsearch.search.tasks.types.registry import find_task_type
from sparsearch.search.training.warm_start import WarmStarts
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.space import build_space
from tests.helpers.language_model import make_language_model
from tests.helpers.tiny_task import TRAIN

BUDGET = Budget(max_bytes=3000, text="3000 bytes")
CPU = torch.device("cpu")
ROWS, TOKENS = 12, 6
HEADED = {
    "token-classification": AutoModelForTokenClassification,
    "question-answering": AutoModelForQuestionAnswering,
}


def make_model(task_type):
    if task_type == "causal-lm":
        return make_language_model("llama")
    set_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(
        vocab_size=17, intermediate_size=32, max_position_embeddings=16, num_labels=3, **sizes
    )
    if task_type == "question-answering":
        config.num_labels = 2
    return HEADED[task_type].from_config(config).eval()


def make_task(task_type):
    stream = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 17, (ROWS, TOKENS), generator=stream)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = {
        "causal-lm": torch.where(torch.arange(TOKENS) < 2, -100, ids),
        "token-classification": torch.where(ids > 14, -100, ids % 3),
        "question-answering": ids[:, :2] % TOKENS,
    }[task_type]
    lengths = torch.full((ROWS,), TOKENS)
    split = Split(inputs, lengths, labels, token_labels=task_type != "question-answering")
    classes = ("O", "B-a", "I-a") if task_type == "token-classification" else ()
    return Task("toy", task_type, "loss", classes, TOKENS, split, split, split)


@pytest.fixture(params=["causal-lm", "token-classification", "question-answering"])
def problem(request):
    model, task = make_model(request.param), make_task(request.param)
    kinds = {"lora": {"max_rank": 2}, "bitfit": {}, "lnfit": {}, "ia3": {}}
    starts = WarmStarts(model, task, TrainConfig(precision="fp32"))
    return RankingContext(
        model,
        build_space(model, kinds=kinds),
        task,
        SearchConfig(linearised={"rows": 8, "outputs": 3}),
        TRAIN,
        (BUDGET,),
        lambda: starts.get(0, ()),
    )


@pytest.fixture
def supernet(problem):
    found = open_supernet(problem, seed=0, warm=True)
    yield found
    found.close()


def test_losses_of_tokens_are_those_that_the_task_means(problem):
    task_type, model = problem.task.behaviour, problem.model
    (batch,) = batches(problem.task.train, ROWS, CPU)
    found = task_type.token_losses(model, batch, "fp32")
    assert found.losses.mean().item() == pytest.approx(
        task_type.loss(model, batch, "fp32").item(), rel=1e-5
    )
    assert found.rows.tolist() == sorted(found.rows.tolist()) and len(found.rows) > 2 * ROWS - 1
    assert set(found.rows.tolist()) == set(range(ROWS))
    assert ((found.residuals > 0) & (found.residuals < 2**0.5)).all()


def test_columns_are_the_derivatives_of_the_losses(problem, supernet):
    (explained,) = explain(supernet, problem.task, [problem.task.train], most=3, seed=0)
    move = find_directions(supernet, explained, 1, problem.train)
    (batch,) = batches(problem.task.train, ROWS, CPU)
    found = jacobian_columns(supernet, batch, explained, moved_units(supernet, move))
    z = torch.zeros(len(problem.space.candidates))
    with torch.no_grad(), supernet.attachment.gated(z):
        for parameter, change in move[0].items():
            parameter += change
        reach, residuals = found.abs().amax(dim=(0, 1)), _residuals(problem, batch)
        for i, step in enumerate((3e-3 / reach.clamp_min(1e-3)).tolist()):
            ends = []
            for z[i] in (step, -step):
                ends.append(_with_residuals(explained, supernet, batch, residuals))
            z[i] = 0.0
            difference = (ends[0] - ends[1]) / (2 * step)
            error = (difference - found[..., i]).abs().max()
            assert error < 0.01 * reach[i] + 1e-5, problem.space.candidates[i]


def _residuals(problem, batch):
    """Of the model as it is: they do not move with a step."""
    return problem.task.behaviour.token_losses(problem.model, batch, "fp32").residuals


def _with_residuals(explained, supernet, batch, residuals):
    class Fixed:
        def token_losses(self, *arguments):
            found = explained.task_type.token_losses(*arguments)
            return type(found)(found.losses, residuals, found.rows)

    fixed = OutputsOfTokens(
        explained.rows, Fixed(), explained.shared, explained.pulls, explained.seed
    )
    return fixed.outputs(supernet, batch)


def test_where_each_token_has_a_number_of_its_own_the_normal_equations_are_exact(
    problem, supernet
):
    (explained,) = explain(supernet, problem.task, [problem.task.train], most=TOKENS, seed=0)
    moves = find_directions(supernet, explained, 2, problem.train)
    found = least_squares(supernet, explained, moves)
    (batch,) = batches(problem.task.train, ROWS, CPU)
    columns = jacobian_columns(supernet, batch, explained, moved_units(supernet, moves)).double()
    tokens = columns[:, 1:].flatten(0, 1)
    scale = float(found.gram.diagonal().max())
    assert torch.allclose(found.gram * ROWS, tokens.T @ tokens, rtol=1e-3, atol=1e-5 * scale)
    pull = columns[:, 0].sum(0)
    assert torch.allclose(
        found.target * ROWS, pull, rtol=1e-3, atol=1e-4 * float(pull.abs().max())
    )
    again = explain(supernet, problem.task, [problem.task.train], most=TOKENS, seed=1)[0]
    other = least_squares(supernet, again, moves)  # signs do not matter then
    assert torch.allclose(other.gram, found.gram, rtol=1e-3, atol=1e-5 * scale)


def test_a_row_has_the_same_signs_in_every_batch(problem, supernet):
    (explained,) = explain(supernet, problem.task, [problem.task.train], most=2, seed=0)
    (whole,) = batches(problem.task.train, ROWS, CPU)
    expected = explained.outputs(supernet, whole)[whole["rows"].argsort()]
    for batch in batches(problem.task.train, 5, CPU):
        found = explained.outputs(supernet, batch)
        assert torch.allclose(found, expected[batch["rows"]], rtol=1e-4, atol=1e-5)
    other = explain(supernet, problem.task, [problem.task.train], most=2, seed=2**63 - 1)[
        0
    ]  # as large as they come
    assert not torch.allclose(other.outputs(supernet, whole)[:, 1:], expected[:, 1:], atol=1e-2)


def test_every_candidate_gets_a_place(problem):
    first, again = (rank("linearised", problem, BUDGET, seed=0).scores for _ in range(2))
    assert first == again and sorted(first) == list(range(len(problem.space.candidates)))
    assert isinstance(find_task_type(problem.task.type), type(problem.task.behaviour))
