"""What a model has seen: so that a zero-shot evaluation on another corpus is one.

Corpora take from each other (Flickr8k's photographs are among Flickr30k's, SpokenCOCO's are COCO's), and a picture or
recording that was in training, or that decided which checkpoint is kept, makes a test figure worth nothing. The model
folder therefore remembers the content of every file of its train and dev splits, eight bytes each.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file, save_file

from saysee.data.extraction import FileContents
from saysee.data.manifest import ManifestError, SpokenCaption
from saysee.errors import SayseeError
from saysee.files import atomic_path

SEEN_FILE = "seen.safetensors"


def write_seen(folder: Path, captions: Iterable[SpokenCaption], speech: FileContents, images: FileContents) -> None:
    """Remember the files of a model's train and dev splits in its folder."""
    recordings, pictures = set[bytes](), set[bytes]()
    for caption in captions:
        recordings.add(speech.content(caption.audio)[:8])
        pictures.add(images.content(caption.image)[:8])
    tensors = {
        name: torch.frombuffer(bytearray(b"".join(sorted(contents))), dtype=torch.int64)
        for name, contents in (("recordings", recordings), ("pictures", pictures))
    }
    with atomic_path(folder / SEEN_FILE) as temporary:
        save_file(tensors, temporary)


def require_unseen(folder: Path, captions: Iterable[SpokenCaption], speech: FileContents, images: FileContents) -> None:
    """Refuse captions whose recording or picture a model has seen.

    Args:
        folder: of the model.
        captions: to be evaluated on.
        speech: contents of the recordings.
        images: contents of the pictures.

    Raises:
        ManifestError: all files that were in the model's train or dev split.
        SayseeError: the folder does not say what the model has seen.
    """
    path = folder / SEEN_FILE
    try:
        tensors = load_file(path)
        recordings, pictures = (set(tensors[name].tolist()) for name in ("recordings", "pictures"))
    except (OSError, safetensors.SafetensorError, KeyError):
        raise SayseeError(
            f"{path} is missing or damaged, so nobody can say whether this is zero-shot; give the folder that "
            "`saysee train` made, when it has come to its end, or use `saysee evaluate`"
        ) from None
    faults: dict[str, None] = {}
    for caption in captions:
        if _number(speech.content(caption.audio)) in recordings:
            faults[f"{caption.id!r}: its recording {caption.audio.name!r} was in the model's train or dev split"] = None
        if _number(images.content(caption.image)) in pictures:
            faults[f"the picture {caption.image_id!r} was in the model's train or dev split"] = None
    if faults:
        raise ManifestError("this is not zero-shot; leave these out, or use `saysee evaluate`", list(faults))


def _number(content: bytes) -> int:
    return int(np.frombuffer(content[:8], np.int64)[0])
