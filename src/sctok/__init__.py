"""sctok: audio to discrete tokens after the SemantiCodec paper."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .codec.codec import Codec
    from .kmeans_tools.estimators import KMeans, MiniBatchKMeans

__all__ = ["Codec", "KMeans", "MiniBatchKMeans", "__version__"]
__version__ = "0.1.0"

_HOMES = {
    "Codec": "codec.codec",
    "KMeans": "kmeans_tools.estimators",
    "MiniBatchKMeans": "kmeans_tools.estimators",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: importing sctok itself stays cheap."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
