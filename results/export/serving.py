"""Serving files beside a checkpoint: ONNX, and a ``torch.export`` program; each runs before it counts."""

from __future__ import annotations

import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sparsearch.config.formats import ServingFormat
from sparsearch.errors import ExportError
from sparsearch.results.export.folders import first_line, write_problem
from sparsearch.results.export.verify import vocabulary_of
from sparsearch.spaces.backbone.inputs.samples import reads_text, sample_images
from sparsearch.spaces.backbone.outputs import output_logits
from sparsearch.spaces.backbone.tokens import most_tokens
from sparsearch.spaces.compaction.checkpoint import load_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["SERVING", "ServingFile", "check_serving", "write_serving"]

SERVING: Mapping[str, str] = {
    ServingFormat.onnx: "model.onnx",
    ServingFormat.torch: "model.pt2",
}
"""Format -> its file."""
TOLERANCE = 1e-4
"""Largest allowed difference of a logit, relative to the largest logit if that is above 1."""
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_INSIDE = 1 << 30
"""Bytes of weights that an ONNX file, which ends at 2 GiB, may hold itself."""
_SIZES = ((1, 4), (3, 7), (2, 13))
"""(rows, tokens) of the batches that are compared."""

Inputs = dict[str, Tensor]
Run = Callable[[Inputs], Tensor]


@dataclass(frozen=True)
class ServingFile:
    """What was written.

    Attributes:
        name: Of the file; the weights of a large ONNX model lie beside it in ``model.onnx.data``.
        inputs: Names of what it takes, each (batch, tokens), or ``pixel_values`` as its processor makes them; it gives
            logits (batch, labels).
        max_difference: Of the logits, to those of the checkpoint.
    """

    name: str
    inputs: tuple[str, ...]
    max_difference: float


def check_serving(formats: Sequence[str]) -> None:
    """Refuse what could not be written, before any work.

    Raises:
        ExportError: If a format is unknown, or its packages are not installed.
    """
    if unknown := [name for name in formats if name not in SERVING]:
        raise ExportError(f"unknown serving format {unknown[0]!r}; known: {', '.join(SERVING)}")
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if "onnx" in formats and missing:
        raise ExportError(
            f"ONNX needs {', '.join(missing)}, not installed here",
            "pip install 'sparsearch[onnx]'",
        )


def write_serving(folder: str | Path, to: str) -> ServingFile:
    """Add a serving file to a checkpoint's folder; batch and length of its inputs are free, the size of images is not.

    Args:
        folder: A checkpoint.
        to: ``onnx`` or ``torch``.

    Raises:
        ExportError: If the family cannot be exported, the packages are missing, or the file gives
            other logits than the checkpoint. The checkpoint is as it was.
    """
    check_serving([to])
    folder = Path(folder)
    model = load_checkpoint(folder)
    write = _write_onnx if to == "onnx" else _write_torch
    with tempfile.TemporaryDirectory(prefix=".serving-", dir=folder) as partial:
        try:
            run = write(model, Path(partial) / SERVING[to])
            difference = _compare(model, run)
        except ExportError:
            raise
        except Exception as error:  # tracing raises what the traced code or the tracer raises
            if problem := write_problem(error):
                raise ExportError(f"cannot write {SERVING[to]}: {problem}") from error
            raise ExportError(
                f"a {model.config.model_type} model cannot be written as {SERVING[to]}: {_reason(error)}",
                "the checkpoint itself is complete; load it with load_checkpoint",
            ) from error
        for file in Path(partial).iterdir():
            file.replace(folder / file.name)
    return ServingFile(SERVING[to], tuple(_sample(model, 1, 4)), difference)


def _reason(error: Exception) -> str:
    """The first line of an error, without torch's advice for those who debug torch."""
    return first_line(error).partition(" For more information, run with")[0]


class _Logits(nn.Module):
    """A model that gives its logits alone."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Logits (batch, labels)."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return output_logits(
            self.model(input_ids=input_ids, attention_mask=attention_mask, **types)
        )


class _ImageLogits(_Logits):
    """The same of a model of images; the tracer wants inputs by their names."""

    def forward(self, pixel_values: Tensor) -> Tensor:  # type: ignore[override]
        """Logits (batch, labels)."""
        return output_logits(self.model(pixel_values=pixel_values))


def _sample(model: PreTrainedModel, rows: int, tokens: int) -> Inputs:
    """A batch whose rows, but for the first, end in padding; segments where the model tells them apart; or images."""
    if not reads_text(model):
        return sample_images(model, rows, seed=rows)
    config = model.config
    generator = torch.Generator().manual_seed(rows)
    ids = torch.randint(5, vocabulary_of(model), (rows, tokens), generator=generator)
    ends = tokens - torch.arange(rows) % (tokens - 1)
    places = torch.arange(tokens)
    mask = (places < ends[:, None]).long()
    end = getattr(config, "eos_token_id", None)
    if end is not None and config.is_encoder_decoder:
        ids[places == ends[:, None] - 1] = end
    ids = torch.where(mask.bool(), ids, getattr(config, "pad_token_id", None) or 0)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if (getattr(config, "type_vocab_size", 0) or 0) > 1:
        inputs["token_type_ids"] = mask * (places >= 2)
    return inputs


@torch.no_grad()
def _compare(model: PreTrainedModel, run: Run) -> float:
    """Run a written file on several batches."""
    largest = 0.0
    for rows, tokens in _SIZES:
        inputs = _sample(model, rows, tokens)
        expected = output_logits(model(**inputs))
        difference = float((run(inputs) - expected).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise ExportError(f"its logits differ from the checkpoint's by {difference:.2e}")
        largest = max(largest, difference)
    return largest


@torch.no_grad()
def _program(model: PreTrainedModel) -> torch.export.ExportedProgram:
    """The traced model, its batch and length free.

    Without a cache, which a sliding window makes a bound of the length, and which logits alone do not need.
    """
    model.config.get_text_config().use_cache = False
    inputs = _sample(model, 2, 9)
    most = most_tokens(model.config) if reads_text(model) else None
    longest = {"max": most} if most else {}
    free = {0: torch.export.Dim("batch")}
    if reads_text(model):
        free[1] = torch.export.Dim("tokens", **longest)
    shapes = {name: free for name in inputs}
    traced = _Logits if reads_text(model) else _ImageLogits
    with _quiet():
        program = torch.export.export(traced(model), (), inputs, dynamic_shapes=shapes)
    for node in program.graph.nodes:  # paths of this machine, which either file would carry along
        node.meta.pop("stack_trace", None)
    return program


def _write_torch(model: PreTrainedModel, file: Path) -> Run:
    written = io.BytesIO()  # torch's own writer ends the process where a disk is full
    torch.export.save(_program(model), written)
    file.write_bytes(written.getbuffer())
    module = torch.export.load(file).module()
    return lambda inputs: module(**inputs)


def _write_onnx(model: PreTrainedModel, file: Path) -> Run:
    import onnx
    import onnxruntime

    names = list(_sample(model, 1, 4))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    with _quiet():
        torch.onnx.export(
            _program(model),
            f=file,
            input_names=names,
            output_names=["logits"],
            external_data=weights > _INSIDE,
            dynamo=True,
            verbose=False,
        )
    written = onnx.load(file, load_external_data=False)
    del written.graph.value_info[
        :
    ]  # shapes inside, which ONNX Runtime's quantisation finds to contradict its own
    onnx.save(written, file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> Tensor:
        (logits,) = session.run(None, {name: inputs[name].numpy() for name in names})
        return torch.from_numpy(logits)

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remarks on packages that no model here needs, and its traces of what an error says too."""
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "torch"]
    logs = [logging.getLogger(name) for name in ("torch", "torch.onnx", *names)]
    levels = {log: log.level for log in logs}
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in levels.items():
            log.setLevel(level)
