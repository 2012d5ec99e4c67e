#!/usr/bin/env bash
# transformers 5.23.0: after two threads have loaded models at the same time, no model of the process ties its weights.
#
# `from_pretrained` replaces `PreTrainedModel.tie_weights` by an empty function while it builds the model, and puts back
# what it found. A second thread that begins meanwhile finds the empty function, and puts that back last. From then on a
# T5 that is built has three separate embeddings in place of one, in every thread, without a word; what it saves is
# larger and does not fit the config. Loading one at a time (a lock) avoids it.
# The two threads are made to overlap: the first one waits inside `from_pretrained` until the second one is inside too.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
"$folder/venv/bin/python" -W ignore - "$folder/saved" <<'PY'
import sys
import threading

import transformers
from transformers import T5Config, T5ForConditionalGeneration

transformers.logging.set_verbosity_error()
SMALL = T5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
T5ForConditionalGeneration(SMALL).save_pretrained(sys.argv[1])
inside = {name: threading.Event() for name in ("first", "second")}
done = threading.Event()


class Watched(T5ForConditionalGeneration):
    def __init__(self, config):
        super().__init__(config)
        name = threading.current_thread().name
        if name in inside:
            inside[name].set()
            (inside["second"] if name == "first" else done).wait(60)


def load():
    Watched.from_pretrained(sys.argv[1])


def tied():
    model = T5ForConditionalGeneration(SMALL)
    return model.encoder.embed_tokens.weight is model.shared.weight


seen = {"before": tied()}
first, second = (threading.Thread(target=load, name=name) for name in ("first", "second"))
first.start()
inside["first"].wait(60)
second.start()
first.join()
done.set()
second.join()
seen["after two threads loaded at once"] = tied()
print("transformers", transformers.__version__)
print(*(f"a new T5 ties its embeddings {when}: {found}" for when, found in seen.items()), sep="\n")
assert seen == {"before": True, "after two threads loaded at once": False}, "the behaviour has changed"
PY
