#!/usr/bin/env bash
# accelerate 1.15.0: `cpu_offload(..., offload_buffers=True)` fails on a module with an empty non-persistent buffer.
#
# torch allows `register_buffer(name, None)` as a place that is filled later (a cache, a mask). With persistent=True
# accelerate leaves it alone. With persistent=False the hook asks None for its device as it is attached.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 accelerate==1.15.0
"$folder/venv/bin/python" -W ignore - <<'PY'
import accelerate
import torch
from torch import nn


def outcome(persistent):
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_buffer("cache", None, persistent=persistent)
    try:
        model = accelerate.cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=True)
    except AttributeError as error:
        return f"AttributeError: {error}"
    return tuple(model(torch.ones(1, 2)).shape)


print("accelerate", accelerate.__version__, "torch", torch.__version__)
seen = {"persistent": outcome(True), "not persistent": outcome(False)}
print(*(f"{case}: {found}" for case, found in seen.items()), sep="\n")
assert seen == {
    "persistent": (1, 2),
    "not persistent": "AttributeError: 'NoneType' object has no attribute 'device'",
}, "the behaviour has changed"
PY
