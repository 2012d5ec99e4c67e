#!/usr/bin/env bash
# torch 2.13.0: on a CPU `FlopCounterMode` counts no FLOPs of `scaled_dot_product_attention` as it runs by default.
#
# The default kernel on a CPU is a flash attention with an operator of its own, for which the counter has no formula. It
# neither warns nor lists the operator. The same call with the plain kernel is counted: two products of
# batch x heads x length x length x width. So the FLOPs of a transformer, measured on a CPU, lack all attention over pairs, and
# ratios of models (before and after cutting heads, short and long rows) come out wrong.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/python" -W ignore - <<'PY'
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

BATCH, HEADS, LENGTH, WIDTH = 2, 4, 64, 32
states = torch.randn(BATCH, HEADS, LENGTH, WIDTH)


def counted():
    with FlopCounterMode(display=False) as counter:
        out = scaled_dot_product_attention(states, states, states)
    return counter.get_total_flops(), out


default, out = counted()
with sdpa_kernel(SDPBackend.MATH):
    plain, same = counted()
assert torch.allclose(out, same, atol=1e-5), "both compute attention"
print("torch", torch.__version__)
print("counted by default:", default)
print("counted with the plain kernel:", plain)
print("right:", right := 2 * 2 * BATCH * HEADS * LENGTH**2 * WIDTH)
assert (default, plain) == (0, right), "the behaviour has changed"
PY
