"""Frozen encoders behind one small protocol (`base`), one published family a file.

A family's module is imported when it is asked for: transformers takes seconds that `saysee --help` need not wait for.
"""

from saysee.config import ImageBackboneConfig, SpeechBackboneConfig
from saysee.models.backbones.base import FrozenBackbone, ImageBackbone, SpeechBackbone

__all__ = ["FrozenBackbone", "ImageBackbone", "SpeechBackbone", "load_image_backbone", "load_speech_backbone"]


def load_speech_backbone(config: SpeechBackboneConfig) -> SpeechBackbone:
    """Load a frozen speech encoder, on the CPU and in the precision of `config`.

    Args:
        config: its family and checkpoint, which layers are kept or mixed, pooling, and where a recording is cut.

    Raises:
        SayseeError: the checkpoint cannot be had or does not fit its family; the message names the first wrong tensor.
    """
    if config.family == "hubert":
        from saysee.models.backbones import hubert

        return hubert.load(config)
    from saysee.models.backbones import whisper

    return whisper.load(config)


def load_image_backbone(config: ImageBackboneConfig) -> ImageBackbone:
    """Load a frozen image encoder, on the CPU and in the precision of `config`.

    Args:
        config: its family and checkpoint, and which tokens are kept.

    Raises:
        SayseeError: the checkpoint cannot be had or does not fit its family; the message names the first wrong tensor.
    """
    if config.family == "blip2":
        from saysee.models.backbones import blip2

        return blip2.load(config)
    if config.family == "clip":
        from saysee.models.backbones import clip

        return clip.load(config)
    from saysee.models.backbones import efficientnet

    return efficientnet.load(config)
