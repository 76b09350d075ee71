"""The CPU that Numba compiles for, which is the one whose instructions our own kernels may use."""

from functools import cache

from numba import config
from numba.core.registry import cpu_target


def jit_works() -> bool:
    """Return whether Numba compiles in this process; NUMBA_DISABLE_JIT=1 turns it off."""
    return not getattr(config, "DISABLE_JIT", 0)


@cache
def compiled_features() -> frozenset[str]:
    """Return LLVM's names of the CPU features that Numba compiles for; none without a compiler.

    NUMBA_CPU_NAME and NUMBA_CPU_FEATURES can make it a lesser CPU than the machine's.
    """
    if not jit_works():
        return frozenset()
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return frozenset(name[1:] for name in features.split(",") if name.startswith("+"))
