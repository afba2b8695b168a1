"""How the benchmarks divide picture-words, and what they leave out of it.

`es-gcompris` and `es-art4apps` are one set of recordings under two names: 562 of the 563 words that both have decode to
the same samples. One of them is left out. (A first version had `es-gcompris` as its dev speaker and `es-art4apps` in
training: dev R@1 was 83 % and said nothing of an unseen voice.)
"""

from dataclasses import replace
from pathlib import Path

from saysee.data.manifest import Manifest
from saysee.data.picture_folder import prepare

DEV_SPEAKERS = ["ca-gcompris", "pt_BR-gcompris"]
TEST_SPEAKER = "fr-gcompris"
LEFT_OUT = "es-gcompris"


def by_voice(folder: Path) -> Manifest:
    """Hold out voices. Dev speaks Catalan and Portuguese, which training lacks; test French, of which it has a voice.

    No other voice here shares a language with a second one, so dev is a harder question than test.
    """
    return _without_copies(prepare(folder, split_by="speaker", dev=DEV_SPEAKERS, test=[TEST_SPEAKER]).manifest)


def by_drawing(folder: Path) -> Manifest:
    """Hold out a tenth of the drawings for dev and a tenth for test."""
    return _without_copies(prepare(folder, split_by="image", dev=0.1, test=0.1, seed=0).manifest)


def _without_copies(manifest: Manifest) -> Manifest:
    return replace(manifest, captions=tuple(c for c in manifest.captions if c.speaker != LEFT_OUT))
