"""Numba functions whose machine code is kept on disk where there is a place for it."""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

from numba import njit

logger = logging.getLogger("sctok.compiled")

ANY_ORDER = frozenset({"reassoc", "contract", "nsz", "arcp"})  # of additions; NaN and infinity stay what they are


def compiled(*, any_order: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles a function, which then lets go of the interpreter while it runs.

    any_order: whether sums may be added up in another order, so that they become vector code. The machine code is kept
    in NUMBA_CACHE_DIR, beside the source or in the user's cache; where none of them can be written to, every process
    compiles for itself, with one warning.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": set(ANY_ORDER) if any_order else False}

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
            _warn()
            return njit(**options)(function)

    return decorate


@cache
def _warn() -> None:
    logger.warning("no folder for compiled code can be written to: every start compiles anew; set NUMBA_CACHE_DIR")
