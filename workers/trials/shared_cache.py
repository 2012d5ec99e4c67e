"""The shelf: what the workers of one machine load once, as files that each maps into its memory.

A mapped tensor costs no memory of its own until it is written to, and nobody writes to a frozen backbone.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path

import safetensors
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsearch.search.tasks.task import SPLITS, Split, Task
from sparsearch.search.training.device import castable, remember_cast
from sparsearch.spaces.backbone.parameters import base_of
from sparsearch.spaces.backbone.quantised.weights import is_quantised

__all__ = ["SharedCache", "open_shared_cache"]


@contextmanager
def open_shared_cache(folder: Path) -> Iterator[SharedCache]:
    """A shelf in a folder of this machine, which goes when nobody uses it any more."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        used = stack.enter_context((folder / "used.lock").open("w"))
        fcntl.flock(
            used, fcntl.LOCK_SH
        )  # filelock has none that many hold and that ends with the process
        yield SharedCache(folder)
        try:
            fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return  # another worker is still there
        shutil.rmtree(folder, ignore_errors=True)


class SharedCache:
    """Made by whoever comes first; the others wait, and map the file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def task(self, make: Callable[[], Task]) -> Task:
        """A tokenised task, without its tokenizer."""
        path = self._once("task.safetensors", lambda path: _save_task(make(), path))
        return _load_task(path)

    def share(self, model: nn.Module, *, bf16: bool) -> None:
        """Let a model's backbone on the CPU be views of mapped files.

        Weights that transformers has mapped from the checkpoint itself stay as they are.

        Args:
            model: As it was loaded, nothing attached.
            bf16: Whether training will hold frozen matrices in bf16: then these are shared too.
        """
        base = base_of(model)
        mapped = _mapped_ranges()
        own = {
            name: p.data
            for name, p in base.named_parameters()
            if not is_quantised(p)  # its module holds it by another name too
            and not any(start <= p.data_ptr() < end for start, end in mapped)
        }
        views = self._tensors("backbone", own)
        for name, parameter in base.named_parameters():
            if name in views:
                parameter.data = views[name]
        if bf16:
            frozen = dict(castable(base))
            casts = self._tensors("backbone-bf16", frozen, torch.bfloat16)
            for name, tensor in frozen.items():
                remember_cast(tensor, casts[name])

    def _tensors(
        self, name: str, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None
    ) -> dict[str, Tensor]:
        if not tensors:
            return {}
        path = self._once(
            f"{name}.safetensors",
            lambda path: save_file(
                {n: t.detach().to(dtype).contiguous() for n, t in tensors.items()}, path
            ),
        )
        return load_file(path)

    def _once(self, name: str, write: Callable[[Path], None]) -> Path:
        path = self.folder / name
        with FileLock(self.folder / f"{name}.lock"):
            if not path.exists():
                part = path.with_suffix(".part")
                write(part)
                part.rename(path)
        return path


def _mapped_ranges() -> list[tuple[int, int]]:
    """Where this process has safetensors files in its memory; nowhere if the system does not tell."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    ranges = [line.split()[0].split("-") for line in lines if line.endswith(".safetensors")]
    return [(int(start, 16), int(end, 16)) for start, end in ranges]


def _save_task(task: Task, path: Path) -> None:
    tensors: dict[str, Tensor] = {}
    for name in SPLITS:
        split: Split = getattr(task, name)
        tensors |= {f"{name}.inputs.{key}": value for key, value in split.inputs.items()}
        tensors |= {f"{name}.lengths": split.lengths, f"{name}.labels": split.labels}
    others = (*SPLITS, "tokenizer")
    facts = {f.name: getattr(task, f.name) for f in fields(Task) if f.name not in others}
    described = {
        "facts": facts,
        "order": list(tensors),
        "token_labels": task.train.token_labels,
        "token_inputs": task.train.token_inputs,
        "references": {name: getattr(task, name).references for name in SPLITS},
    }
    save_file(tensors, path, {"task": json.dumps(described)})


def _load_task(path: Path) -> Task:
    with safetensors.safe_open(path, "pt") as file:
        described = json.loads(file.metadata()["task"])
        tensors = {name: file.get_tensor(name) for name in described["order"]}
    facts, splits = described["facts"], {}
    for name in SPLITS:
        prefix = f"{name}.inputs."
        inputs = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        splits[name] = Split(
            inputs,
            tensors[f"{name}.lengths"],
            tensors[f"{name}.labels"],
            described["token_labels"],
            described["references"][name],
            token_inputs=described["token_inputs"],
        )
    lists = {name: tuple(facts[name]) for name in ("classes", "warnings")}
    return Task(**{**facts, **splits, **lists})
