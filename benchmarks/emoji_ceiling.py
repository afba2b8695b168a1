"""How well a picture of a thing finds another maker's picture of the same thing, with the frozen image encoder alone.

    python scripts/make_emoji_corpus.py CORPUS --pictures
    python benchmarks/emoji_ceiling.py CORPUS

No speech and nothing trained: the pooled token of the bundled EfficientNet-Lite0, the cosine, and of each maker's
pictures the nearest of another maker's. Beside a speech model's figures for a maker that it has not seen, this says
which half limits. `centred` takes from each maker's tokens their mean, which is that maker's style; a speech model may
learn to look past a style too.
"""

import argparse
from itertools import permutations
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from record import keep
from saysee.config import ImageBackboneConfig
from saysee.data.emoji import TEST_VENDOR, VENDORS, picture_name, read_concepts
from saysee.features.image import load_image
from saysee.models.backbones import load_image_backbone

RANKS = (1, 5, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    options = parser.parse_args()
    concepts = read_concepts()
    tokens = {
        vendor: pooled_tokens([options.corpus / picture_name(concept, vendor) for concept in concepts])
        for vendor in VENDORS
    }
    centred = {vendor: of - of.mean(0) for vendor, of in tokens.items()}
    seen = [vendor for vendor in VENDORS if vendor != TEST_VENDOR]
    figures = {
        "pictures_of_each_vendor": len(concepts),
        "test_vendor": TEST_VENDOR,
        "as_they_are": recall_between(tokens),
        "centred": recall_between(centred),
        # what training sees: a concept is where its two pictures are, on average
        f"centred, mean of {' and '.join(seen)} to {TEST_VENDOR}": recall(
            sum(F.normalize(centred[vendor], dim=-1) for vendor in seen),  # type: ignore[arg-type]
            centred[TEST_VENDOR],
        ),
    }
    keep("emoji_ceiling", data="emoji of three makers (scripts/make_emoji_corpus.py)", seed=0, figures=figures)


@torch.inference_mode()
def pooled_tokens(paths: list[Path]) -> Tensor:
    """Return the pooled tokens (n, D) of pictures."""
    backbone = load_image_backbone(ImageBackboneConfig())
    tokens = [backbone(backbone.prepare(load_image(path)).unsqueeze(0))[0, 0].float() for path in paths]
    return torch.stack(tokens)


def recall_between(tokens: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Return the recall from every maker's pictures to every other's."""
    return {f"{asked} to {given}": recall(tokens[asked], tokens[given]) for asked, given in permutations(tokens, 2)}


def recall(asked: Tensor, given: Tensor) -> dict[str, float]:
    """Return R@k for questions and answers (n, D) that belong together row by row."""
    similarity = F.normalize(asked, dim=-1) @ F.normalize(given, dim=-1).T
    rank = (similarity > similarity.diagonal()[:, None]).sum(1)
    return {f"R@{k}": round(float((rank < k).float().mean()), 4) for k in RANKS}


if __name__ == "__main__":
    main()
