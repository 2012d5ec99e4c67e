"""Compacter's matrices against sums of Kronecker products that are formed."""

import torch

from sparsearch.spaces.kinds import make_kind
from sparsearch.spaces.kinds.compacter.module import KroneckerLinear


def test_a_matrix_is_a_sum_of_kronecker_products():
    torch.manual_seed(0)
    linear = KroneckerLinear(in_features=12, out_features=8, division=4, rank=2).double()
    torch.nn.init.normal_(linear.bias)
    inner = linear.inner.view(4, 2, 3)
    outer = linear.outer.view(2, 4, 2)
    weight = sum(torch.kron(linear.rules[i], outer[:, i] @ inner[i]) for i in range(4))
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    assert torch.allclose(linear(x), x @ weight.T + linear.bias)


def test_only_blocks_that_the_division_divides_and_whole_parts_of_the_bottleneck(build):
    from sparsearch.spaces.backbone.parameters import positions_of

    blocks = [p for p in positions_of(build("bert")) if p.role == "block"]
    odd, even = make_kind("compacter", {"division": 5}), make_kind("compacter", {"bottleneck": 5})
    assert not any(odd.accepts(p) for p in blocks)
    assert all(even.accepts(p) and even.sizes(p) == (8,) for p in blocks)
