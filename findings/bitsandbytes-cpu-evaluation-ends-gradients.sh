#!/usr/bin/env bash
# bitsandbytes 0.50.2: on a CPU with AVX512-BF16, one evaluation of a 4-bit linear ends the gradients that pass it.
#
# The first forward in evaluation mode repacks the weight for a faster product, for good: scales become bfloat16 and are no
# longer quantised themselves, and training mode does not undo it. The fast product has no backward. The output still
# says `requires_grad=True`, torch only warns, and what lies below the linear gets no gradient at all. So QLoRA on such a
# CPU learns until the first evaluation, then in the last layers alone.
# A trained vector below one linear shows it: its gradient before an evaluation, and after. Where the CPU has no
# AVX512-BF16 nothing is repacked, and the script says so and fails.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 bitsandbytes==0.50.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PY' 2> errors.txt || { tail -n 3 errors.txt; exit 1; }
import sys

import bitsandbytes
import torch

torch.manual_seed(0)
linear = bitsandbytes.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
linear.load_state_dict(torch.nn.Linear(64, 64, bias=False).state_dict())
linear = linear.to("cpu")
if not linear.support_avx512bf16_for_cpu:
    sys.exit("this CPU has no AVX512-BF16: bitsandbytes repacks nothing here")
inputs, below = torch.randn(2, 64), torch.ones(64, requires_grad=True)


def learn():
    """The output in training mode, and the gradient of what lies below."""
    output = linear.train()(inputs * below)
    return output, torch.autograd.grad(output.sum(), below, allow_unused=True)[0]


def scales():
    return tuple(linear.weight.shape), linear.weight.quant_state.absmax.dtype


first, gradient, loaded = *learn(), scales()
with torch.no_grad():
    linear.eval()(inputs)
second, lost, repacked = *learn(), scales()
print(f"torch {torch.__version__.split('+')[0]}, bitsandbytes {bitsandbytes.__version__}")
print(f"before an evaluation: weight and scales {loaded}, gradient below of norm {gradient.norm():.2f}")
print(f"after it: weight and scales {repacked}, requires_grad {second.requires_grad}, gradient below {lost}")
print(f"outputs in training mode differ by {float((first - second).abs().max()):.4f}")
assert float(gradient.norm()) > 1 and second.requires_grad and lost is None
assert loaded[1] == torch.uint8 and repacked[1] == torch.bfloat16
PY
