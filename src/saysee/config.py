"""Everything that decides a run, as frozen dataclasses: read from YAML, checked when made, saved whole with the model.

Values marked [ALBEF], [BLIP] or [SpeechCLIP] come from those works (arXiv 2107.07651, 2201.12086, 2210.00705); all
others are ours. The paper (arXiv 2408.13119) gives none of them in the parts that can be had.
"""

import argparse
import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from saysee.errors import SayseeError

Fusion = Literal["match", "match+similarity", "match+scaled-similarity"]
Precision = Literal["fp32", "bf16", "fp16"]
Codec = Literal["opus", "mp3", "mu-law"]


@dataclass(frozen=True)
class SpeechBackboneConfig:
    """The frozen speech encoder and what is kept of its output.

    Attributes:
        family: whose architecture the checkpoint has.
        checkpoint: `bundled` (the encoder in the package; `bundled:NAME` names one), a folder, or a name on the
            Hugging Face hub.
        revision: the hub revision, pinned for a result that is to be reproduced.
        layers: which hidden states are kept: `all`, or a list of indices (0 is the input of the first layer).
        pool: how many neighbouring frames are averaged into one; 1 keeps the backbone's own rate.
        max_seconds: a longer recording is cut here. Whisper's positional table ends at 30 s.
        fixed_mix: one weight for each kept layer: each is layer-normed and their weighted mean is kept as a single
            one, which is many times smaller on disk than all layers. None keeps them apart, for the learnable mix.
        precision: what the encoder computes in, and what its weights are loaded as.
    """

    family: Literal["whisper", "hubert"] = "whisper"
    checkpoint: str = "bundled"
    revision: str | None = None
    layers: Literal["all"] | tuple[int, ...] = "all"
    pool: int = 1
    max_seconds: float = 30.0
    fixed_mix: tuple[float, ...] | None = None
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        _at_least(self, 1, "pool")
        _require(self.max_seconds > 0, self, "max_seconds", "more than 0")
        if self.family == "whisper":
            _require(self.max_seconds <= 30, self, "max_seconds", "at most 30 for Whisper")
        _require(
            self.layers == "all" or len(self.layers) > 0, self, "layers", "`all` or a list with at least one layer"
        )
        if self.fixed_mix is not None:
            _require(
                min(self.fixed_mix, default=-1) >= 0 and sum(self.fixed_mix) > 0,
                self,
                "fixed_mix",
                "weights of 0 or more, one for each kept layer and not all 0",
            )


@dataclass(frozen=True)
class ImageBackboneConfig:
    """The frozen image encoder.

    Attributes:
        family: whose architecture the checkpoint has.
        checkpoint: `bundled`, a folder, or a name on the Hugging Face hub.
        revision: the hub revision, pinned for a result that is to be reproduced.
        tokens: `patches` of the image encoder; BLIP-2 also has the Q-Former's `queries`; CLIP also has the one `pooled`
            token, its own image embedding.
        precision: what the encoder computes in, and what its weights are loaded as.
    """

    family: Literal["efficientnet", "blip2", "clip"] = "efficientnet"
    checkpoint: str = "bundled"
    revision: str | None = None
    tokens: Literal["patches", "queries", "pooled"] = "patches"
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        allowed = {"efficientnet": ["patches"], "blip2": ["patches", "queries"], "clip": ["patches", "pooled"]}
        _require(
            self.tokens in allowed[self.family],
            self,
            "tokens",
            f"{' or '.join(allowed[self.family])} for {self.family}",
        )


@dataclass(frozen=True)
class ModelConfig:
    """The trainable parts, between the two frozen backbones and the scores.

    Attributes:
        speech_backbone: the frozen speech encoder.
        image_backbone: the frozen image encoder.
        width: H, the width of `speech_hidden` and of the multimodal encoder.
        embedding_dim: E, the length of the two embeddings; 256 [ALBEF].
        heads: attention heads of each Transformer layer.
        speech_layers: Transformer layers of the speech encoder; 1 [SpeechCLIP].
        multimodal_layers: layers of the multimodal encoder; 6 [ALBEF]. Ignored without matching.
        feedforward_ratio: width of the feed-forward part over `width`; 4 [SpeechCLIP, ALBEF].
        dropout: of the outputs of attention and feed-forward, in steps of 1/256; 0.1 [ALBEF, which drops attention
            weights too].
        normalize_speech_layers: layer-norm each backbone layer before the weighted sum [SpeechCLIP large].
        image_projection: `learned` maps the pooled image token to the embedding [ALBEF]; `none` takes the token itself,
            whose width must then be `embedding_dim` [SpeechCLIP, with CLIP's own image embedding].
        initial_temperature: what similarities are divided by at the start; 0.07 [SpeechCLIP, ALBEF].
        learn_temperature: whether it is learnt; it is clamped to `temperature_range` [BLIP].
        temperature_range: lowest and highest temperature; 0.001 to 0.5 [BLIP].
    """

    speech_backbone: SpeechBackboneConfig = field(default_factory=SpeechBackboneConfig)
    image_backbone: ImageBackboneConfig = field(default_factory=ImageBackboneConfig)
    width: int = 256
    embedding_dim: int = 256
    heads: int = 4
    speech_layers: int = 1
    multimodal_layers: int = 2
    feedforward_ratio: int = 4
    dropout: float = 0.1
    normalize_speech_layers: bool = False
    image_projection: Literal["learned", "none"] = "learned"
    initial_temperature: float = 0.07
    learn_temperature: bool = True
    temperature_range: tuple[float, float] = (0.001, 0.5)

    def __post_init__(self) -> None:
        _at_least(self, 1, "width", "embedding_dim", "heads", "speech_layers", "multimodal_layers", "feedforward_ratio")
        _require(self.width % self.heads == 0, self, "width", f"a multiple of heads ({self.heads})")
        _require(0 <= self.dropout <= 0.9, self, "dropout", "from 0 to 0.9")
        low, high = self.temperature_range
        _require(0 < low <= high, self, "temperature_range", "two positive numbers, the lower first")
        _require(low <= self.initial_temperature <= high, self, "initial_temperature", f"from {low} to {high}")


@dataclass(frozen=True)
class LossConfig:
    """The two tasks and the switch of every part, so that an ablation is a configuration and not a program.

    Attributes:
        queue_size: M, momentum embeddings kept as further negatives; 0 contrasts within the batch alone. ALBEF has
            65,536, which in a small corpus holds every caption several times.
        momentum: m of the momentum encoder, theta_m <- m theta_m + (1 - m) theta; 0.995 [ALBEF].
        distillation_alpha: weight of the momentum model's own softmax in the targets; 0.4 [ALBEF], 0 switches it off.
        distillation_ramp_steps: optimisation steps over which alpha rises from 0; one epoch in ALBEF.
        same_image: captions of the image itself (or its concept), in batch and queue, count as `positives` [ALBEF] or
            are `excluded` from the denominator [SpeechCLIP].
        matching: whether the SIM task is trained.
        matching_from_step: the step from which on it is; SIC alone is trained before, so that hard negatives are
            drawn by similarities that mean something, and most steps cost a fraction. 0 in the paper, whose loss is
            the sum of both; later is ours.
        matching_loss: `binary`, matched or not matched, of each pair and two drawn negatives [ALBEF]; or `list`: every
            recording of the batch is scored with every picture, and what belongs together is to come first in either
            direction (ours). It has no negatives to draw, and is meant for a multimodal encoder of one layer, where
            all pairs cost no more than the drawn ones do.
        negatives: SIM's negatives are drawn `hard`, with the probability of SIC's softmax [ALBEF], or at `random`.
        image_negatives_from: the negative images are drawn from the `batch` [ALBEF], or from batch and `queue`: the
            queue then names an image and its tokens are read again by id (the paper's figure says that the queue
            serves the hard negatives, and not how).
        negatives_from_all_ranks: in distributed training, whether SIM's negatives are drawn from the whole batch (the
            other processes' tokens are gathered, with gradient) or from each process's own part of it.
    """

    queue_size: int = 1024
    momentum: float = 0.995
    distillation_alpha: float = 0.4
    distillation_ramp_steps: int = 100
    same_image: Literal["positives", "excluded"] = "positives"
    matching: bool = True
    matching_from_step: int = 0
    matching_loss: Literal["binary", "list"] = "binary"
    negatives: Literal["hard", "random"] = "hard"
    image_negatives_from: Literal["batch", "queue"] = "batch"
    negatives_from_all_ranks: bool = False

    def __post_init__(self) -> None:
        _at_least(self, 0, "queue_size", "distillation_ramp_steps", "matching_from_step")
        _require(self.queue_size <= 10_000_000, self, "queue_size", "at most 10,000,000")
        _require(0 <= self.momentum < 1, self, "momentum", "from 0 to below 1")
        _require(0 <= self.distillation_alpha <= 1, self, "distillation_alpha", "from 0 to 1")
        _require(
            self.image_negatives_from == "batch" or self.queue_size > 0,
            self,
            "image_negatives_from",
            "`batch` when queue_size is 0",
        )
        _require(
            self.image_negatives_from == "batch" or self.matching_loss == "binary",
            self,
            "image_negatives_from",
            "`batch` when matching_loss is list, which scores the batch",
        )

    @property
    def uses_momentum(self) -> bool:
        """Whether a momentum encoder is needed: for the queue's embeddings or for distillation."""
        return self.queue_size > 0 or self.distillation_alpha > 0


@dataclass(frozen=True)
class TrainingConfig:
    """Optimisation, its schedule, and when the model is measured and saved.

    Attributes:
        steps: optimisation steps.
        batch_size: pairs in a batch, over all processes together; this is what SIC contrasts and SIM mines.
        accumulate: batches whose gradients are added before a step. It does not enlarge the contrast: each batch has
            its own softmax; the queue is filled after the step, with all of them.
        learning_rate: peak of AdamW's.
        weight_decay: of matrices; vectors (biases, norms, temperature, layer weights) have none.
        betas: AdamW's.
        warmup_steps: linear rise from 0 to the peak.
        schedule: `cosine` or `linear` decay from the peak to `final_learning_rate` at the last step.
        final_learning_rate: where the decay ends.
        clip_norm: largest norm of the whole gradient.
        precision: `auto` takes bfloat16 autocast where the processor or GPU multiplies it natively, else float32.
        seed: of initial weights, data order, dropout and drawn negatives.
        evaluate_every: steps between evaluations on dev; the best by `primary_metric` is the model that is kept.
        checkpoint_every: steps between checkpoints from which a killed run goes on.
        primary_metric: the name by which dev chooses, as in results.json.
        bucket_batches: of how many batches the captions are sorted by length together, so that a batch holds captions
            of like length and little padding; 1 shuffles freely.
        one_caption_per_image: whether a batch has at most one caption of an image, or of a concept.
        crop_seconds: a longer recording is cut to a random stretch of this length in training, of its frames [after
            SpeechCLIP, which cuts the waveform to 6.4 s]; None leaves it whole.
        live_features: whether the frozen encoders run in every step, on files that are decoded anew, and nothing is
            kept on disk; else their outputs are extracted once and read back.
        activation_checkpointing: whether the Transformer layers compute their activations a second time in the
            backward pass and do not keep them: less memory, about a third more computing.
    """

    steps: int = 1000
    batch_size: int = 64
    accumulate: int = 1
    learning_rate: float = 3e-4
    weight_decay: float = 0.02
    betas: tuple[float, float] = (0.9, 0.98)
    warmup_steps: int = 100
    schedule: Literal["cosine", "linear"] = "cosine"
    final_learning_rate: float = 0.0
    clip_norm: float = 4.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seed: int = 0
    evaluate_every: int = 100
    checkpoint_every: int = 100
    primary_metric: str = "coarse/mean/R@1"
    bucket_batches: int = 1
    one_caption_per_image: bool = False
    crop_seconds: float | None = None
    live_features: bool = False
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        _at_least(self, 1, "steps", "batch_size", "accumulate", "evaluate_every", "checkpoint_every", "bucket_batches")
        _at_least(self, 0, "warmup_steps", "weight_decay", "final_learning_rate", "seed")
        _require(self.seed < 2**63, self, "seed", "below 2^63")
        _require(self.learning_rate > 0, self, "learning_rate", "more than 0")
        _require(self.clip_norm > 0, self, "clip_norm", "more than 0")
        _require(
            not self.live_features or self.bucket_batches == 1,
            self,
            "bucket_batches",
            "1 with live_features, where lengths are not known beforehand",
        )
        _require(self.crop_seconds is None or self.crop_seconds > 0, self, "crop_seconds", "more than 0, or null")
        _require(all(0 <= beta < 1 for beta in self.betas), self, "betas", "two numbers from 0 to below 1")


@dataclass(frozen=True)
class AugmentationConfig:
    """What training does to recordings; dev and test are never altered. All is off by default, and all values are ours.

    With stored features, `variants` altered copies of each training recording are encoded and stored beside its own,
    and an epoch reads one of them or the recording itself, all equally likely. With live features every reading is
    altered anew. Each kind that is on befalls a recording with `probability`, drawn evenly from its range.

    Attributes:
        variants: how many altered copies are stored; 0 with live features.
        probability: of each kind.
        speed: lowest and highest factor on the speed, and with it the pitch.
        rt60_seconds: of a room, shortest and longest time in which its sound decays by 60 dB.
        snr_db: lowest and highest ratio of speech to noise, in decibels; the noise is white to brown.
        gain_db: lowest and highest change of loudness, in decibels.
        codecs: by one of which a recording is coded and decoded.
    """

    variants: int = 0
    probability: float = 0.5
    speed: tuple[float, float] | None = None
    rt60_seconds: tuple[float, float] | None = None
    snr_db: tuple[float, float] | None = None
    gain_db: tuple[float, float] | None = None
    codecs: tuple[Codec, ...] = ()

    def __post_init__(self) -> None:
        _at_least(self, 0, "variants")
        _require(0 < self.probability <= 1, self, "probability", "above 0, up to 1")
        ranges = {"speed": (0.5, 2.0), "rt60_seconds": (0.05, 5.0), "snr_db": (-20.0, 60.0), "gain_db": (-60.0, 40.0)}
        for name, (least, most) in ranges.items():
            if (value := getattr(self, name)) is not None:
                allowed = f"two numbers from {least:g} to {most:g}, the lower first, or null"
                _require(least <= value[0] <= value[1] <= most, self, name, allowed)
        _require(len(set(self.codecs)) == len(self.codecs), self, "codecs", "each codec once")
        _require(self.variants == 0 or len(self.kinds) > 0, self, "variants", "0 where no kind is on")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that are on."""
        return tuple(name for name in ("speed", "rt60_seconds", "snr_db", "gain_db", "codecs") if getattr(self, name))


@dataclass(frozen=True)
class SearchConfig:
    """The fine stage, the same in evaluation and in search.

    Attributes:
        rerank: k, how many of the coarse best the multimodal encoder scores; 128 [ALBEF on Flickr30k]. Clamped to
            the gallery.
        fusion: what the best k are ranked by: `match` (the matching log-odds alone, after ALBEF), `match+similarity`
            (after BLIP), or `match+scaled-similarity` (similarity divided by the temperature, so that both are
            log-odds; ours).
    """

    rerank: int = 32
    fusion: Fusion = "match+scaled-similarity"

    def __post_init__(self) -> None:
        _at_least(self, 1, "rerank")


@dataclass(frozen=True)
class Config:
    """A whole run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        _require(
            not self.loss.matching or self.loss.matching_from_step < self.training.steps,
            self.loss,
            "matching_from_step",
            f"below training.steps ({self.training.steps})",
        )
        if self.training.live_features:
            _require(self.augmentation.variants == 0, self.augmentation, "variants", "0 with live_features")
        elif self.augmentation.kinds:
            _require(self.augmentation.variants > 0, self.augmentation, "variants", "1 or more with stored features")

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, lists and scalars, as they stand in JSON."""
        return typing.cast("dict[str, Any]", _plain(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], overrides: Sequence[str] = ()) -> "Config":
        """Build a configuration from nested values, then command-line style overrides (`--training.steps 10`).

        Raises:
            SayseeError: an unknown key, a value of the wrong type or out of range.
        """
        import jsonargparse  # a third of a second that `saysee --help` need not wait for

        _require_sections(values, cls)
        parser = jsonargparse.ArgumentParser(exit_on_error=False, usage=argparse.SUPPRESS)
        parser.add_class_arguments(cls)
        try:
            parsed = parser.parse_args(list(overrides), namespace=parser.parse_object(dict(values)))
        except argparse.ArgumentError as error:
            raise SayseeError("configuration: " + " ".join(str(error).split())) from None
        return cls(**parser.instantiate(parsed).as_dict())


def bundled_configs() -> list[str]:
    """Return the names of the recipes that come with the package."""
    folder = resources.files("saysee") / "configs"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe: the name of a bundled one, or the path of a YAML file.

    Args:
        name: `tiny`, say, or `my/recipe.yaml`.
        overrides: command-line style changes, `["--training.steps", "10"]`.

    Raises:
        SayseeError: no such recipe, not YAML, or a key or value that is not allowed.
    """
    import yaml

    if name in bundled_configs():
        text = (resources.files("saysee") / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SayseeError(
                f"cannot read the configuration {name!r} ({error}); give a YAML file or one of the bundled recipes: "
                + ", ".join(bundled_configs())
            ) from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SayseeError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise SayseeError(f"{name} holds {type(values).__name__}; a configuration is a mapping such as `training:`")
    return _with_whole_paths(Config.from_dict(values, overrides))


def differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Say in which values two nested mappings differ: `loss.queue_size (1024 there, 0 here)`."""
    found: list[str] = []
    for name in {**here, **there}:
        old, new = there.get(name), here.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name} ({old} there, {new} here)")
    return found


def _with_whole_paths(config: Config) -> Config:
    """Write the path of a checkpoint's folder out, so that the saved model finds it from any folder."""

    def whole(name: str) -> str:
        return str(Path(name).resolve()) if Path(name).is_dir() else name

    model = config.model
    speech = dataclasses.replace(model.speech_backbone, checkpoint=whole(model.speech_backbone.checkpoint))
    image = dataclasses.replace(model.image_backbone, checkpoint=whole(model.image_backbone.checkpoint))
    return dataclasses.replace(config, model=dataclasses.replace(model, speech_backbone=speech, image_backbone=image))


def _require_sections(values: Mapping[str, Any], section: Any, prefix: str = "") -> None:
    """Refuse a value where a section belongs, which jsonargparse would pass over."""
    for part in dataclasses.fields(section):
        if part.name in values and dataclasses.is_dataclass(part.type):
            below = values[part.name]
            if not isinstance(below, Mapping):
                raise SayseeError(
                    f"configuration: {prefix}{part.name} is {below!r}; it is a section, with keys such as "
                    f"`{dataclasses.fields(part.type)[0].name}:` below it"
                )
            _require_sections(below, part.type, f"{prefix}{part.name}.")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value


def _require(holds: bool, where: object, name: str, allowed: str) -> None:
    if not holds:
        raise SayseeError(
            f"{type(where).__name__}.{name} is {getattr(where, name)!r}; allowed: {allowed}. Change it in the config."
        )


def _at_least(where: object, least: float, *names: str) -> None:
    for name in names:
        _require(getattr(where, name) >= least, where, name, f"{least} or more")
