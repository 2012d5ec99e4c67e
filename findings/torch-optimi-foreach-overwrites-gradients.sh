#!/usr/bin/env bash
# torch-optimi 0.3.3 with torch 2.13.0: `StableAdamW(foreach=True).step()` leaves other numbers in `.grad`.
#
# The path over lists of tensors takes the gradients as working memory; the path tensor by tensor leaves them as they were.
# Parameters come out equal. What reads `.grad` after the step does not: a norm that is logged, a sensitivity score
# (|w * g|) that is added up over steps, or a gradient that is meant to go on growing over further batches. On a GPU the
# path over lists is what is taken unless said otherwise (or triton's).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 torch-optimi==0.3.3 packaging==25.0
"$folder/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from optimi import StableAdamW


def after_a_step(foreach):
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    weight.grad = torch.tensor([0.5, 0.25, -1.0])
    StableAdamW([weight], lr=0.1, foreach=foreach, triton=False).step()
    return weight.detach(), weight.grad


print("torch", torch.__version__, "torch-optimi", version("torch-optimi"))
(one, kept), (other, changed) = after_a_step(False), after_a_step(True)
print("gradient before:", [0.5, 0.25, -1.0])
print("after a step tensor by tensor:", kept.tolist())
print("after a step over lists:", changed.tolist())
assert torch.allclose(one, other), "both take the same step"
assert kept.tolist() == [0.5, 0.25, -1.0], "the behaviour has changed"
assert not torch.allclose(changed, kept), "the behaviour has changed"
PY
