"""A module's parameters, replaced while its forward runs: whatever that forward is, also another library's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

__all__ = ["Substitution"]

_LOCK = threading.Lock()


class Substitution:
    """Has a module compute with other tensors in the place of its parameters, from hooks around its forward.

    The module's ``forward`` stays as it is, patched or not. While it runs, the tensors are plain attributes,
    which Python finds before a module's parameters. The parameters stay where they are, so that the state
    dict, an optimiser, or an interrupted forward sees nothing of this. Threads may share the module.

    Args:
        module: The module.
        compute: The input -> tensors by the names of the parameters; none at all where nothing is replaced.
    """

    def __init__(
        self, module: nn.Module, compute: Callable[[Tensor], Mapping[str, Tensor]]
    ) -> None:
        self.module, self.compute = module, compute
        self.names: set[str] = set()
        self.threads: set[int] = set()
        self.handles = (
            module.register_forward_pre_hook(self._enter),
            module.register_forward_hook(self._leave, always_call=True),
        )

    @property
    def active(self) -> bool:
        """Whether the forward that runs computes with other tensors."""
        return bool(self.names)

    def _enter(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        tensors = self.compute(args[0])
        if torch.compiler.is_compiling():  # a compiler knows no locks, and traces in one thread
            self._put(0, tensors)
            return
        with _LOCK:
            self._put(threading.get_ident(), tensors)

    def _leave(self, module: nn.Module, args: object, output: object) -> None:
        """Also after an error, our own in ``compute`` included."""
        if torch.compiler.is_compiling():
            self._take(0)
            return
        with _LOCK:
            self._take(threading.get_ident())

    def _put(self, thread: int, tensors: Mapping[str, Tensor]) -> None:
        self.threads.add(thread)
        self.names.update(tensors)
        vars(self.module).update(tensors)

    def _take(self, thread: int) -> None:
        self.threads.discard(thread)
        if not self.threads:
            self._clear()

    def _clear(self) -> None:
        for name in self.names:
            vars(self.module).pop(name, None)
        self.names.clear()

    def remove(self) -> None:
        """The module as it was."""
        for handle in self.handles:
            handle.remove()
        self._clear()
