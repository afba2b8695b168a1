"""Small random checkpoints of the published classes, in the published layouts: what is small is the size alone."""

from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    CLIPConfig,
    CLIPModel,
    HubertConfig,
    HubertModel,
    OPTConfig,
    Wav2Vec2FeatureExtractor,
)


def randomise(module: nn.Module) -> None:
    """Weights as large as trained ones, so that every layer matters; transformers starts some at zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(1.0 / parameter[0].numel() ** 0.5 * values)
            else:  # ones of a norm, zeros of a bias
                parameter.add_(0.3 * values)


def write_hubert(folder: Path, style: Literal["base", "large"]) -> HubertModel:
    """Save a HuBERT with four hidden states of width 32: base has a group norm in front, large normalises first."""
    large = style == "large"
    config = HubertConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        vocab_size=5,
        feat_extract_norm="layer" if large else "group",
        do_stable_layer_norm=large,
        conv_bias=large,
    )
    model = HubertModel(config).eval()
    randomise(model)
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return model


def write_blip2(
    folder: Path, layout: Literal["retrieval", "generation"] = "retrieval"
) -> Blip2ForImageTextRetrieval | Blip2ForConditionalGeneration:
    """Save a BLIP-2 with 17 patches of width 32 and 5 queries of width 24.

    `retrieval` is the layout of `blip2-itm-vit-g`, here in shards; `generation`, with a language model, that of
    `blip2-opt-2.7b`.
    """
    retrieval = layout == "retrieval"
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=56
        ).to_dict(),
        qformer_config=Blip2QFormerConfig(
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=3,
            num_attention_heads=4,
            vocab_size=20,
            max_position_embeddings=8,
            use_qformer_text_input=retrieval,
        ).to_dict(),
        text_config=OPTConfig(
            vocab_size=20,
            hidden_size=16,
            word_embed_proj_dim=16,
            num_hidden_layers=1,
            ffn_dim=16,
            num_attention_heads=2,
            max_position_embeddings=8,
        ).to_dict(),
        num_query_tokens=5,
    )
    model = (Blip2ForImageTextRetrieval if retrieval else Blip2ForConditionalGeneration)(config).eval()
    randomise(model)
    model.save_pretrained(folder, max_shard_size="60KB" if retrieval else "1GB")
    return model


def write_clip(folder: Path) -> CLIPModel:
    """Save a CLIP with 17 patches of width 32 and embeddings of 20 numbers, with the old buffers of position ids."""
    config = CLIPConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 56,
            "patch_size": 14,
        },
        text_config={
            "vocab_size": 30,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 8,
            "bos_token_id": 28,
            "eos_token_id": 29,
        },
        projection_dim=20,
    )
    model = CLIPModel(config).eval()
    randomise(model)
    model.save_pretrained(folder)
    # OpenAI's checkpoints hold them; transformers no longer writes them
    tensors = load_file(folder / "model.safetensors")
    tensors["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    tensors["text_model.embeddings.position_ids"] = torch.arange(8)[None]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return model
