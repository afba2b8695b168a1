"""saysee: say it, see it. Speech-image retrieval with no transcript in between.

Data flows one way, and this is the order to read in:

    data -> features -> models -> losses -> training -> evaluation -> search

`saysee.SpeechImageModel` is what most programs need.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saysee.models.retrieval_model import SpeechImageModel

__version__ = "0.1.0"
__all__ = ["SpeechImageModel", "__version__"]


def __getattr__(name: str) -> Any:
    # torch and transformers take seconds, which `import saysee` and `saysee --help` need not wait for
    if name == "SpeechImageModel":
        from saysee.models.retrieval_model import SpeechImageModel

        return SpeechImageModel
    raise AttributeError(f"module 'saysee' has no attribute {name!r}")
