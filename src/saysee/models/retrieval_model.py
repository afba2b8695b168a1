"""SpeechImageModel: recordings and pictures in, embeddings and matching scores out; saved to and read from a folder."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from saysee.config import Config, ImageBackboneConfig, SpeechBackboneConfig
from saysee.errors import SayseeError
from saysee.features.audio import as_waveform, load_waveform
from saysee.features.image import as_rgb, load_image
from saysee.models.backbones import ImageBackbone, SpeechBackbone, load_image_backbone, load_speech_backbone
from saysee.models.image_encoder import ImageEncoder, ImageEncoding
from saysee.models.model_folder import (
    WEIGHTS_FILE,
    find_model,
    hash_tensors,
    read_model_folder,
    write_model_folder,
)
from saysee.models.multimodal_encoder import MultimodalEncoder
from saysee.models.speech_encoder import SpeechEncoder, SpeechEncoding

Recording = Path | str | NDArray[Any] | Mapping[str, Any]
Picture = Path | str | Image.Image


class SpeechImageModel(nn.Module):
    """Hears a spoken caption and ranks pictures, with no transcript in between.

    Example:
        >>> model = SpeechImageModel.from_pretrained("saysee-small")
        >>> speech = model.encode_speech(["question.wav"])
        >>> images = model.encode_image(["cat.jpg", "dog.jpg"])
        >>> model.similarity(speech, images)  # coarse: (1, 2), cosine
        >>> model.match(speech, model.encode_image(["cat.jpg"]))  # fine: (1,), log-odds

    Args:
        config: the run's configuration.
        speech_backbone: frozen.
        image_backbone: frozen.
    """

    def __init__(self, config: Config, speech_backbone: SpeechBackbone, image_backbone: ImageBackbone) -> None:
        super().__init__()
        self.config = config
        self.speech_backbone = speech_backbone
        self.image_backbone = image_backbone
        sizes = config.model
        self.speech_encoder = SpeechEncoder(sizes, speech_backbone.dim, speech_backbone.num_layers)
        self.image_encoder = ImageEncoder(
            sizes, image_backbone.dim, image_backbone.pooled_first, matching=config.loss.matching
        )
        self.multimodal_encoder = MultimodalEncoder(sizes) if config.loss.matching else None
        self.temperature = nn.Parameter(torch.tensor(sizes.initial_temperature), requires_grad=sizes.learn_temperature)

    @classmethod
    def from_config(cls, config: Config) -> "SpeechImageModel":
        """Build an untrained model: published backbones, random trainable parts (from torch's random state)."""
        return cls(
            config, load_speech_backbone(config.model.speech_backbone), load_image_backbone(config.model.image_backbone)
        )

    # ---- what a user asks of a model

    @torch.inference_mode()
    def encode_speech(self, recordings: Recording | Sequence[Recording], batch_size: int = 16) -> SpeechEncoding:
        """Encode recordings: paths, arrays at 16 kHz, or `{"array", "sampling_rate"}`; one or a sequence.

        Returns:
            embedding (B, E), hidden (B, 1 + T, H) and mask (B, 1 + T), padded to the longest recording; in eval mode,
            whatever the model's own mode is.

        Raises:
            AudioError: a recording that does not decode, is silent, or is out of the limits.
        """
        parts = []
        with _evaluating(self):
            for batch in _batches(recordings, batch_size):
                prepared = [self.speech_backbone.prepare(_waveform(recording)) for recording in batch]
                hidden_states, mask = self.speech_backbone(prepared)
                parts.append(self.speech_encoder(hidden_states.float(), mask))
        return concatenate_speech(parts)

    @torch.inference_mode()
    def encode_image(self, pictures: Picture | Sequence[Picture], batch_size: int = 32) -> ImageEncoding:
        """Encode pictures: paths or PIL images; one or a sequence.

        Returns:
            embedding (B, E) and hidden (B, P, H), in eval mode.

        Raises:
            ImageError: a picture that does not decode or is out of the limits.
        """
        parts = []
        for batch in _batches(pictures, batch_size):
            pixels = [self.image_backbone.prepare(_image(picture)) for picture in batch]
            parts.append(self.encode_pixels(torch.stack(pixels)))
        return ImageEncoding(*(torch.cat(field) for field in zip(*parts, strict=True)))

    @torch.inference_mode()
    def encode_pixels(self, pixels: Tensor) -> ImageEncoding:
        """Encode pictures (B, 3, H, W) that `image_backbone.prepare` has made ready, in eval mode."""
        with _evaluating(self):
            return cast(ImageEncoding, self.image_encoder(self.image_backbone(pixels).float()))

    @torch.inference_mode()
    def match(self, speech: SpeechEncoding, images: ImageEncoding) -> Tensor:
        """Return `match_logit` (B,) of B recordings with B pictures, row by row: the log-odds of matched.

        Raises:
            SayseeError: the numbers of rows differ, or the model was trained without matching.
        """
        encoder = self.require_multimodal_encoder()
        if len(speech.embedding) != len(images.embedding):
            raise SayseeError(
                f"match got {len(speech.embedding)} recordings and {len(images.embedding)} pictures; it pairs them row "
                "by row, so give as many of each (index the encodings to repeat one)"
            )
        with _evaluating(self):
            return cast(
                Tensor,
                encoder(encoder.prepare_speech(speech.hidden, speech.mask), encoder.prepare_images(images.hidden)),
            )

    def similarity(self, speech: SpeechEncoding, images: ImageEncoding) -> Tensor:
        """Return cosine similarities (recordings, pictures), float32."""
        return speech.embedding @ images.embedding.T

    # ---- what training, evaluation and search need besides

    @property
    def device(self) -> torch.device:
        """Where the trainable parts are."""
        return self.temperature.device

    def require_multimodal_encoder(self) -> MultimodalEncoder:
        """Return the multimodal encoder, or say that this model has none."""
        if self.multimodal_encoder is None:
            raise SayseeError(
                "this model was trained with loss.matching off, so it has no fine stage; rank by similarity (coarse)"
            )
        return self.multimodal_encoder

    def use_activation_checkpointing(self, on: bool) -> None:
        """Keep less for the backward pass of training, and compute the Transformer layers a second time there.

        Losses and gradients stay the same. The momentum encoder, which takes no gradient, has nothing to keep.
        """
        self.speech_encoder.activation_checkpointing = on
        if self.multimodal_encoder is not None:
            self.multimodal_encoder.activation_checkpointing = on

    def trainable_state(self) -> dict[str, Tensor]:
        """Return the tensors of everything but the backbones, by name."""
        return {name: tensor for name, tensor in self.state_dict().items() if not _is_backbone(name)}

    def load_trainable_state(self, state: Mapping[str, Tensor], source: str) -> None:
        """Put tensors in the place of the trainable parts; every name and shape must fit.

        Raises:
            SayseeError: naming the first tensors that are missing, unexpected or of another shape.
        """
        own = self.trainable_state()
        faults = [f"{name} is missing" for name in own if name not in state]
        faults += [f"{name} is unexpected" for name in state if name not in own]
        faults += [
            f"{name} has shape {list(state[name].shape)}, expected {list(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ]
        if faults:
            more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
            raise SayseeError(f"{source} does not fit this configuration: {'; '.join(faults[:3])}{more}")
        self.load_state_dict(dict(state), strict=False)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) over trainable tensors, backbones and model configuration: what an index remembers."""
        digest = hashlib.sha256(hash_tensors(self.trainable_state()).encode())
        digest.update(self.speech_backbone.fingerprint.encode())
        digest.update(self.image_backbone.fingerprint.encode())
        digest.update(json.dumps(_in_use(self.config), sort_keys=True).encode())
        return digest.hexdigest()

    # ---- folders

    def save_pretrained(self, folder: Path | str, dtype: torch.dtype = torch.float32) -> None:
        """Write the model folder; see `saysee.models.model_folder`.

        Args:
            folder: is made if it is not there.
            dtype: of the trainable tensors in the file. The model that is read back from float16 or bfloat16 is this
                one rounded, with a fingerprint of its own.
        """
        described = {
            "speech_backbone_fingerprint": self.speech_backbone.fingerprint,
            "image_backbone_fingerprint": self.image_backbone.fingerprint,
            "speech_backbone_revision": self.speech_backbone.revision,
            "image_backbone_revision": self.image_backbone.revision,
            **self.config.to_dict(),
        }
        state = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in self.trainable_state().items()}
        write_model_folder(Path(folder), described, state)

    @classmethod
    def from_pretrained(cls, folder: Path | str, device: str | torch.device = "cpu") -> "SpeechImageModel":
        """Read a model folder, in eval mode.

        Args:
            folder: what `save_pretrained` or `saysee train` wrote, or the name of a model in the package:
                `saysee-small`.
            device: where the model goes.

        Raises:
            SayseeError: no such folder, a file missing or altered, a newer format, a backbone that is not the one the
                model was trained on.
        """
        folder = find_model(folder)
        saved = read_model_folder(folder)
        sizes, described = saved.config.model, saved.described
        # where the configuration leaves the revision open, the commit that was the newest when the model was trained
        speech = replace(sizes.speech_backbone, revision=_revision(sizes.speech_backbone, described, "speech"))
        image = replace(sizes.image_backbone, revision=_revision(sizes.image_backbone, described, "image"))
        model = cls(saved.config, load_speech_backbone(speech), load_image_backbone(image))
        for side, backbone in (("speech", model.speech_backbone), ("image", model.image_backbone)):
            expected = described.get(f"{side}_backbone_fingerprint")
            if backbone.fingerprint != expected:
                raise SayseeError(
                    f"{folder}: the {side} backbone found has fingerprint {backbone.fingerprint[:12]}, the model was "
                    f"trained on {str(expected)[:12]}; give it the checkpoint that it was trained on"
                )
        model.load_trainable_state(saved.state, str(folder / WEIGHTS_FILE))
        return model.to(device).eval()


def concatenate_speech(parts: Sequence[SpeechEncoding]) -> SpeechEncoding:
    """Join encodings whose frames were padded to different lengths."""
    longest = max(part.mask.shape[1] for part in parts)

    def pad(tensor: Tensor) -> Tensor:
        missing = longest - tensor.shape[1]
        return torch.cat([tensor, tensor.new_zeros(tensor.shape[0], missing, *tensor.shape[2:])], dim=1)

    return SpeechEncoding(
        torch.cat([part.embedding for part in parts]),
        torch.cat([pad(part.hidden) for part in parts]),
        torch.cat([pad(part.mask) for part in parts]),
    )


def _is_backbone(name: str) -> bool:
    return name.startswith(("speech_backbone.", "image_backbone."))


def _in_use(config: Config) -> dict[str, Any]:
    """Return the model's section without what was added since 0.1.0 and is off, so that older indexes still fit."""
    model: dict[str, Any] = config.to_dict()["model"]
    added = {"fixed_mix": None, "precision": "fp32", "image_projection": "learned"}
    for part in (model, model["speech_backbone"], model["image_backbone"]):
        for name, off in added.items():
            if name in part and part[name] == off:
                del part[name]
    return model


def _revision(
    config: SpeechBackboneConfig | ImageBackboneConfig, described: Mapping[str, Any], side: str
) -> str | None:
    recorded: str | None = described.get(f"{side}_backbone_revision")
    return recorded if config.revision is None else config.revision


def _batches(given: Any, size: int) -> Iterator[Sequence[Any]]:
    """Cut what a user gave, one or a sequence, into batches; no more than one is decoded at a time."""
    items = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    if len(items) == 0:
        raise SayseeError("there is nothing to encode; give at least one recording or picture")
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _image(picture: Picture) -> Image.Image:
    return as_rgb(picture) if isinstance(picture, Image.Image) else load_image(Path(picture))


def _waveform(recording: Recording) -> NDArray[np.float32]:
    if isinstance(recording, str | Path):
        return load_waveform(Path(recording))
    if isinstance(recording, Mapping):
        return as_waveform(np.asarray(recording["array"]), int(recording["sampling_rate"]))
    return as_waveform(recording, 16_000)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside the block, the mode there was after it."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
