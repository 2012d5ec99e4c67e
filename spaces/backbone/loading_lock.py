"""One model is built at a time.

While transformers (5.23) builds or loads a model, it replaces methods of its own classes (``tie_weights``,
``init_weights``) and puts them back afterwards. Two threads that do so at once put the replacement back: from then on
no model of the process ties its weights, without a word (``findings/transformers-threads-lose-tied-weights.sh``).
"""

from __future__ import annotations

import threading

__all__ = ["LOADING"]

LOADING = threading.RLock()
"""Held while transformers builds or loads a model."""
