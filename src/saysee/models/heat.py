"""Where the model looks in a picture at each moment of a recording: the multimodal encoder's cross-attention as a map.

It shows the weights with which frames of the recording take from cells of the picture, and nothing more. It is no
explanation of a score: a cell's token has seen its surroundings too (a network's receptive field, a transformer's
attention), and what is taken from a cell can count for much or for little, for or against. A model that has learnt
little looks everywhere nearly alike.

Shapes: T frames, P tokens, H width.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saysee.errors import SayseeError
from saysee.models.retrieval_model import SpeechImageModel
from saysee.models.speech_encoder import SpeechEncoding


@dataclass(frozen=True, eq=False)
class Heat:
    """Cross-attention of one recording to one picture.

    Attributes:
        weights: (T, rows, columns), float32, for the T real frames; the grid covers the whole picture, row 0 above and
            column 0 to the left. A frame's weights sum to at most 1: the rest is on the token that stands for all.
        step: seconds a frame; frame t is of the time from t * step to (t + 1) * step of what was encoded.
    """

    weights: NDArray[np.float32]
    step: float


def supports_attention(model: SpeechImageModel) -> bool:
    """Say whether `attention_map` works with this model: it has a fine stage, and its image tokens lie on a grid."""
    return model.multimodal_encoder is not None and model.image_backbone.grid is not None


@torch.inference_mode()
def attention_map(model: SpeechImageModel, speech: SpeechEncoding, image_hidden: Tensor) -> Heat:
    """Show where the model looks in a picture at each moment of a recording.

    See `MultimodalEncoder.cross_attention` for what is averaged; a model with one multimodal layer looks at the same
    places all the time.

    Args:
        model: in eval mode.
        speech: one recording; frames may be padded.
        image_hidden: projected tokens of one picture (P, H), of any floating type and on any device.

    Raises:
        SayseeError: the model has no multimodal encoder, its image tokens lie on no grid over the picture, or something
            else than one recording and one picture is given.
    """
    encoder, grid, tokens = model.multimodal_encoder, model.image_backbone.grid, model.image_backbone.num_tokens
    if encoder is None:
        raise SayseeError(
            "this model was trained with loss.matching off, so it has no cross-attention to show; use a model that was "
            "trained with it on"
        )
    if grid is None:
        raise SayseeError(
            "this model's image tokens do not lie on a grid over the whole picture, so there is no map of its "
            "cross-attention; use a model on EfficientNet, or on BLIP-2 with image_backbone.tokens `patches`"
        )
    if len(speech.hidden) != 1 or image_hidden.shape != (tokens, model.config.model.width):
        raise SayseeError(
            f"attention_map got {len(speech.hidden)} recordings and image tokens of shape {tuple(image_hidden.shape)}; "
            f"give one recording and one picture's ({tokens}, {model.config.model.width})"
        )
    images = encoder.prepare_images(image_hidden[None].to(model.device, speech.hidden.dtype))
    (frames,) = encoder.cross_attention(encoder.prepare_speech(speech.hidden, speech.mask), images)
    frames = frames[speech.mask[0, 1:]]
    rows, columns = grid
    cells = frames[:, tokens - rows * columns :].reshape(len(frames), rows, columns)
    return Heat(cells.float().cpu().numpy(), 1 / model.speech_backbone.frames_per_second)
