"""Numba functions: whether they are compiled, for which CPU features, and with machine code cached on disk."""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

from numba import config, njit
from numba.core.registry import cpu_target

logger = logging.getLogger("sctok.jit")

_ANY_ORDER = frozenset({"reassoc", "contract", "nsz", "arcp"})  # fast-math flags that keep NaN and infinity


def jit_works() -> bool:
    """Return whether Numba compiles in this process. NUMBA_DISABLE_JIT=1 turns it off."""
    return not getattr(config, "DISABLE_JIT", 0)


@cache
def compiled_features() -> frozenset[str]:
    """Return the CPU features that Numba compiles for, by their LLVM names; empty without a compiler.

    NUMBA_CPU_NAME and NUMBA_CPU_FEATURES can select a CPU with fewer features than this one.
    """
    if not jit_works():
        return frozenset()
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return frozenset(name[1:] for name in features.split(",") if name.startswith("+"))


def compiled(*, any_order: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles a function, which then runs without the global interpreter lock.

    The machine code is cached in NUMBA_CACHE_DIR, next to the source, or in the user's cache folder. If none of them is
    writable, every process compiles again and logs one warning.

    Args:
        any_order: Whether the terms of sums may be added in any order, so that the compiler can vectorize them.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": set(_ANY_ORDER) if any_order else False}

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
    logger.warning("no cache folder for compiled code is writable, so every start compiles again; set NUMBA_CACHE_DIR")
