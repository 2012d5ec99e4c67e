"""The ``peft`` format: an adapter folder, and the proof that what users do with one works."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from sparsearch.errors import ExportError, SparsearchError
from sparsearch.results.export.adapters.peft_parameters import wrapped_parameters
from sparsearch.results.export.folders import first_line, write_problem
from sparsearch.results.export.peft import AdapterPlan, plan_adapter, with_one_rank
from sparsearch.results.export.peft_model import fill, make_config, save_adapter
from sparsearch.results.export.peft_readme import readme
from sparsearch.results.export.task_config import TASK_CONFIG, task_keywords, write_task
from sparsearch.results.export.trained import Trained
from sparsearch.results.export.verify import check_padding, compare, logits_of
from sparsearch.spaces.attachment.attach import detach
from sparsearch.spaces.attachment.weights_file import values_of
from sparsearch.spaces.backbone.loading import gguf_keywords, load_model
from sparsearch.spaces.backbone.loading_lock import LOADING
from sparsearch.spaces.backbone.quantised.settings import loading_keywords

__all__ = ["check_names", "quiet", "tried", "write_peft"]

_WITHOUT_PEFT = "export it with --to spec or --to checkpoint"


def write_peft(
    trained: Trained, folder: Path, one_rank: bool = False
) -> tuple[tuple[str, ...], float]:
    """Write a PEFT adapter, and prove it: load it in each way, pad a batch, merge it, save and load that.

    Args:
        trained: The structure with its weights.
        folder: Exists, and is empty.
        one_rank: Whether all LoRA are to have the same rank.

    Returns:
        Notes for the user, and the largest difference of a logit.

    Raises:
        ExportError: If PEFT cannot express the structure, or a step gives other logits.
    """
    import peft

    model = trained.attached_model()
    plan = plan_adapter(model, trained.structure, values_of(model))
    plan = with_one_rank(plan) if one_rank else plan
    expected = logits_of(model)
    check_padding(expected)
    with quiet():
        adapted = peft.get_peft_model(detach(model), make_config(plan, trained.structure))
        check_names(adapted, plan)
        fill(adapted, plan)
        save_adapter(adapted, folder)
        notes = (_size_note(trained, plan, folder), *plan.notes, *_quantised_note(trained))
        notes += write_task(model.config, trained.structure.task_type, trained.processor, folder)
        text = readme(trained, plan, notes, peft.__version__)
        (folder / "README.md").write_text(text, encoding="utf-8")
        steps = _ways(trained, plan, folder)
        difference = max(
            compare(expected, tried(step, load), step) for step, load in steps.items()
        )
    if plan.unmergeable:
        plain = trained.structure.backbone.quantisation is None
        instead = "; --to checkpoint writes the merged model" if plain else ""
        notes += (f"PEFT cannot merge it: {plan.unmergeable}{instead}",)
    settings = f"{trained.facts.settings} in {TASK_CONFIG}"
    return (f"{settings}; load it as README.md says", *notes), difference


def _size_note(trained: Trained, plan: AdapterPlan, folder: Path) -> str:
    """What PEFT stores of it, beside what the structure does."""
    tensors = load_file(folder / "adapter_model.safetensors")
    head = sum(value.nbytes for value in plan.head.values())
    adapter = sum(tensor.nbytes for tensor in tensors.values()) - head
    stored = trained.structure.stored_bytes
    return f"the adapter's tensors take {adapter:,} bytes, the head apart; the structure stores {stored:,}"


def _quantised_note(trained: Trained) -> tuple[str, ...]:
    """What bitsandbytes does by itself on some CPUs."""
    if not (trained.structure.backbone.quantisation or {}).get("load_in_4bit"):
        return ()
    return (
        "on a CPU with AVX512-BF16, bitsandbytes repacks 4-bit weights at the first evaluation: logits then change in "
        "their third digit, and no training goes on from there",
    )


def _ways(trained: Trained, plan: AdapterPlan, folder: Path) -> dict[str, Callable[[], Any]]:
    """What users do with an adapter, by name: each gives a model that computes what was trained."""
    import peft

    def by_peft() -> Any:
        with LOADING:
            model = peft.PeftModel.from_pretrained(trained.fresh_model(), folder)
        check_names(model, plan)
        return model

    def by_auto_class() -> Any:
        auto: Any = getattr(peft, trained.facts.auto_peft_model)
        with LOADING:
            how = task_keywords(folder, trained.structure.task_type) | gguf_keywords(trained.base)
            how |= loading_keywords(trained.structure.backbone.quantisation)
            return auto.from_pretrained(folder, **how)

    def by_transformers() -> Any:
        model = trained.fresh_model()
        with LOADING:
            model.load_adapter(str(folder))
        return model

    def merged() -> Any:
        with tempfile.TemporaryDirectory(prefix=".merged-", dir=folder) as whole:
            model = by_peft().merge_and_unload()
            model.save_pretrained(whole)
            return load_model(
                whole, num_labels=model.config.num_labels, auto_model=trained.facts.auto_model
            )

    ways: dict[str, Callable[[], Any]] = {
        "loaded by PeftModel": by_peft,
        f"loaded by {trained.facts.auto_peft_model}": by_auto_class,
    }
    if (
        not plan.parameters
    ):  # PEFT refuses such an adapter by its tensors, as transformers loads it
        ways["loaded by transformers' load_adapter"] = by_transformers
    return ways if plan.unmergeable else ways | {"merged, saved and loaded again": merged}


def tried(step: str, load: Callable[[], nn.Module]) -> Tensor:
    """The logits of what a step gives, or its error in our words."""
    try:
        return logits_of(load())
    except SparsearchError:
        raise
    except Exception as error:  # PEFT raises what the code under it happens to raise
        if write_problem(error):
            raise
        raise ExportError(
            f"the adapter cannot be {step}: {type(error).__name__}: {first_line(error)}",
            _WITHOUT_PEFT,
        ) from error


def check_names(model: nn.Module, plan: AdapterPlan) -> None:
    """Refuse an adapter that touches other modules than the structure does, or with other ranks."""
    from peft.utils import ModulesToSaveWrapper

    modules = {n.removeprefix("base_model.model."): m for n, m in model.named_modules()}
    saved = {name for name, m in modules.items() if isinstance(m, ModulesToSaveWrapper)}
    adapted = {
        name
        for name, m in modules.items()
        if hasattr(m, "active_adapters") and hasattr(m, "base_layer")
    } - saved
    wrapped = wrapped_parameters(modules)
    adapted = adapted - {n for n, m in modules.items() if m in {*wrapped.values()}} | {*wrapped}
    planned = {m.path for m in plan.adapted}
    for found, wanted, verb in ((adapted, planned, "adapts"), (saved, set(plan.saved), "saves")):
        if found != wanted:
            raise ExportError(
                f"PEFT {verb} other modules than the structure: {', '.join(sorted(found ^ wanted)[:4])}",
                _WITHOUT_PEFT,
            )
    layers: dict[str, Any] = {**modules, **wrapped}
    for module in plan.adapted if plan.low_rank else ():
        rank = layers[module.path].r["default"]
        if rank != module.rank:
            raise ExportError(
                f"PEFT gives {module.path} rank {rank}, the structure {module.rank}", _WITHOUT_PEFT
            )


@contextmanager
def quiet() -> Iterator[None]:
    """Without the remarks of PEFT and transformers on what the notes say."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
