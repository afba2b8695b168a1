"""Small corpora in the file layouts in which the large ones are published, with their irregularities on request.

Recordings are tones and bursts of noise of 0.3 to 1.5 s at 16 kHz, pictures are JPEGs of 32 x 24: no two are alike, and
the same seed gives the same bytes.
"""

import io
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from media import raw_wav
from saysee.files import hash64

SPEAKERS = 4
CAPTION = "a picture described once more"


def recording(number: int, seed: int = 0) -> bytes:
    """A WAV file: by turns a tone and a burst of noise, its length, pitch and noise given by number and seed."""
    random = np.random.default_rng([seed, number])
    samples = round(16_000 * random.uniform(0.3, 1.5))
    noise = random.normal(0, 0.05, samples)
    tone = 0.3 * np.sin(2 * np.pi * random.uniform(150, 3_000) * np.arange(samples) / 16_000)
    sound = np.clip(noise if number % 3 == 2 else tone + 0.1 * noise, -1, 1)
    return raw_wav((32_000 * sound).astype(np.int16))


def picture(number: int, seed: int = 0) -> bytes:
    """A JPEG file: blocks of colours given by number and seed."""
    blocks = np.random.default_rng([seed, number, 1]).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blocks.repeat(8, axis=0).repeat(8, axis=1)).save(buffer, "JPEG")
    return buffer.getvalue()


def imprecise(wav: bytes) -> bytes:
    """The same WAV file as some of Flickr8k Audio are: sizes that are some bytes too large, and an odd LIST chunk."""
    odd = b"LIST" + struct.pack("<I", 5) + b"INFO\0\0"  # 5 bytes and the one that makes them even
    data = wav.index(b"data")
    size = struct.unpack("<I", wav[data + 4 : data + 8])[0]
    return (
        (wav[:4] + struct.pack("<I", len(wav) + 400) + wav[8:data])
        + (odd + b"data" + struct.pack("<I", size + size // 50))
        + wav[data + 8 :]
    )


def write_flickr8k(
    folder: Path,
    images: int = 50,
    captions: int = 5,
    *,
    seed: int = 0,
    image_folder: str = "Flicker8k_Dataset",
    imprecise_headers: bool = False,
    long_clip: bool = False,
    without_audio: int = 0,
    in_no_split: int = 0,
) -> Path:
    """Write Flickr8k Audio Captions as its archives unpack: `flickr_audio`, `Flickr8k_text` and the photographs.

    Args:
        folder: to write to; it is made.
        images: photographs in the splits: three quarters train, the rest by halves dev and test, as published.
        captions: recordings of each.
        seed: gives other recordings and pictures.
        image_folder: may be nested: `Flickr8k_Dataset/Flicker8k_Dataset`.
        imprecise_headers: whether every third recording is `imprecise`.
        long_clip: whether the first recording lasts 323 s.
        without_audio: how many further photographs are in train and have no recordings.
        in_no_split: how many further photographs, with recordings, are in no split.

    Returns:
        The folder.
    """
    wavs, text, photographs = folder / "flickr_audio" / "wavs", folder / "Flickr8k_text", folder / image_folder
    for path in (wavs, text, photographs):
        path.mkdir(parents=True)
    total = images + without_audio + in_no_split
    names = [f"{1_000_000_000 + 997 * n}_{hash64(f'{seed} {n}') >> 24:010x}" for n in range(total)]
    tokens, wav2capt, wav2spk = [], [], []
    for number, name in enumerate(names):
        (photographs / f"{name}.jpg").write_bytes(picture(number, seed))
        tokens += [f"{name}.jpg#{n}\t{CAPTION} {n} ." for n in range(captions)]
        if images <= number < images + without_audio:
            continue
        for n in range(captions):
            wav = recording(captions * number + n, seed)
            if long_clip and number == n == 0:
                wav = raw_wav(np.resize(np.frombuffer(wav[44:], "<i2"), 323 * 16_000))
            if imprecise_headers and n % 3 == 1:
                wav = imprecise(wav)
            (wavs / f"{name}_{n}.wav").write_bytes(wav)
            wav2capt.append(f"{name}_{n}.wav {name}.jpg #{n}")
            wav2spk.append(f"{name}_{n}.wav {(number + n) % SPEAKERS}")
    train = images * 3 // 4
    dev = train + (images - train) // 2
    parts = {"train": [*range(train), *range(images, images + without_audio)]}
    parts |= {"dev": [*range(train, dev)], "test": [*range(dev, images)]}
    lists = {split: [f"{names[n]}.jpg" for n in numbers] for split, numbers in parts.items()}
    for path, lines in (
        (text / "Flickr8k.token.txt", tokens),
        (folder / "flickr_audio" / "wav2capt.txt", wav2capt),
        (folder / "flickr_audio" / "wav2spk.txt", wav2spk),
        *((text / f"Flickr_8k.{split}Images.txt", lines) for split, lines in lists.items()),
    ):
        path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return folder


def write_spoken_coco(
    folder: Path,
    *,
    karpathy: Literal["karpathy", "unrolled_karpathy", "ksplit"] | None = None,
    raw: bool = True,
    images: int = 50,
    captions: int = 5,
    seed: int = 0,
    home: str = ".",
    image_home: str = ".",
    extra_keys: bool = False,
) -> Path:
    """Write SpokenCOCO: the JSON files, `wavs/{train,val}/<n>/`, `train2014` and `val2014`.

    Args:
        folder: to write to; it is made.
        karpathy: in which form Karpathy's files are there too, if any.
        raw: whether the published train and val are there.
        images: photographs, three fifths of them train2014. Of val2014's Karpathy's dev and test have the last two
            fifths each, and his train the first fifth ("restval").
        captions: recordings of each.
        seed: gives other recordings and pictures.
        home: folder of the JSON files and `wavs`: `SpokenCOCO` as the archive unpacks.
        image_home: folder of the photographs: `mscoco_img` in SpeechCLIP's layout.
        extra_keys: whether captions have a `parse_tree` and entries a `reassign`.

    Returns:
        The folder.
    """
    home_path = folder / home
    entries: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    number = 0
    for n in range(images):
        split = "train" if n < images * 3 // 5 else "val"
        image = f"{split}2014/COCO_{split}2014_{391_895 + 13 * n:012d}.jpg"
        _write(folder / image_home / image, picture(n, seed))
        spoken = []
        for _ in range(captions):
            speaker = f"m071506418gb9vo0w5xq{number % SPEAKERS}"
            uttid = f"{speaker}-3LUY3GC63Z0R9PYEETJGN5HO4UEP7B_{391_895 + 13 * n}_{629_297 + number}"
            wav = f"wavs/{split}/{number % 3}/{uttid}.wav"
            _write(home_path / wav, recording(number, seed))
            caption = {"text": CAPTION.upper(), "speaker": speaker, "uttid": uttid, "wav": wav}
            spoken.append(caption | ({"parse_tree": "( a ( picture ) )"} if extra_keys else {}))
            number += 1
        entries[split].append({"image": image, "captions": spoken} | ({"reassign": n} if extra_keys else {}))
    if raw:
        for split, data in entries.items():
            _write_json(home_path / f"SpokenCOCO_{split}.json", {"data": data})
    if karpathy:
        fifth = -(-len(entries["val"]) // 5)
        parts = {"train": entries["train"] + entries["val"][:fifth]}
        parts |= {"val": entries["val"][fifth : 3 * fifth], "test": entries["val"][3 * fifth :]}
        for split, data in parts.items():
            unrolled = [{"image": e["image"], "caption": caption} for e in data for caption in e["captions"]]
            name = f"ksplit_{split}" if karpathy == "ksplit" else f"{split}_{karpathy}"
            content = {"data": unrolled if karpathy == "unrolled_karpathy" else data}
            _write_json(home_path / f"SpokenCOCO_{name}.json", content)
    return folder


def write_places(
    folder: Path,
    *,
    splits: Sequence[str] = ("train", "val"),
    images: int = 40,
    seed: int = 0,
    image_home: str = "images",
    base_path: str = "/data/sls/scratch",
) -> Path:
    """Write Places Audio: `metadata/<split>.json`, `wavs/<n>/` and the photographs, with one recording each.

    Args:
        folder: to write to; it is made.
        splits: names of the JSON files; the first has half of the images, the others share the rest.
        images: photographs.
        seed: gives other recordings and pictures.
        image_home: folder of the photographs.
        base_path: where `image_base_path` and `audio_base_path` of the JSON files lie, on a machine of others.

    Returns:
        The folder.
    """
    data: dict[str, list[dict[str, str]]] = {split: [] for split in splits}
    for n in range(images):
        split = splits[0] if n < images // 2 else splits[1 + n % (len(splits) - 1)]
        entry = {
            "uttid": f"GSUN_{hash64(f'{seed} {n}'):016X}",
            "speaker": f"speaker_{n % SPEAKERS}",
            "asr_text": CAPTION,
            "wav": f"wavs/{n % 3}/utterance_{400_000 + n}.wav",
            "image": f"{'abc'[n % 3]}/airport_terminal/gsun_{hash64(f'{seed} {n} image'):016x}.jpg",
        }
        _write(folder / entry["wav"], recording(n, seed))
        _write(folder / image_home / entry["image"], picture(n, seed))
        data[split].append(entry)
    for split, entries in data.items():
        bases = {"image_base_path": f"{base_path}/images/", "audio_base_path": f"{base_path}/PlacesAudio_400k_distro/"}
        _write_json(folder / "metadata" / f"{split}.json", bases | {"data": entries})
    return folder


def write_hugging_face(
    folder: Path,
    layout: Literal["pairs", "rows"] = "pairs",
    *,
    splits: Sequence[str] = ("train",),
    images: int = 20,
    captions: int = 2,
    seed: int = 0,
    columns: dict[str, Any] | None = None,
) -> Path:
    """Write a Hugging Face data set as `push_to_hub` does: README.md and parquet files, the media within.

    Args:
        folder: to write to; it is made.
        layout: `pairs` has the configs `audio`, `images` and `qrels` of deep9539/flickr-audio-image, each with one
            split, `rows` one config with an audio, an image, a text, a speaker and a language column.
        splits: of `rows`; images are shared out among them.
        images: pictures.
        captions: recordings of each.
        seed: gives other recordings and pictures.
        columns: further columns of `rows`: name to feature; they hold copies of the image or audio, or None.

    Returns:
        The folder.
    """
    from datasets import Audio, Features, Value
    from datasets import Image as ImageFeature

    names = [f"{1_000_000_000 + 997 * n}_{hash64(f'{seed} {n}') >> 24:010x}" for n in range(images)]
    pictures: list[dict[str, Any]] = [
        {"bytes": picture(n, seed), "path": f"{name}.jpg"} for n, name in enumerate(names)
    ]
    recordings: list[dict[str, Any]] = [
        {"bytes": recording(captions * n + c, seed), "path": f"{name}_{c}.wav"}
        for n, name in enumerate(names)
        for c in range(captions)
    ]
    ids = [sound["path"].removesuffix(".wav") for sound in recordings]
    string = Value("string")
    if layout == "pairs":
        texts = [f"{CAPTION} {n} ." for n in range(images)]
        image_of = [names[n // captions] for n in range(len(ids))]
        tables: dict[tuple[str, str], tuple[dict[str, list[Any]], Any]] = {
            ("audio", "train"): ({"id": ids, "audio": recordings}, Features(id=string, audio=Audio())),
            ("images", "train"): (
                {"id": names, "image": pictures, "text": texts},
                Features(id=string, image=ImageFeature(), text=string),
            ),
            ("qrels", "train"): (
                {"image_id": image_of, "audio_id": ids},
                Features(image_id=string, audio_id=string),
            ),
        }
    else:
        extra = columns or {}
        features = Features(audio=Audio(), image=ImageFeature(), text=string, speaker=string, language=string, **extra)
        tables = {}
        for part, split in enumerate(splits):
            numbers = [n for n in range(len(ids)) if n // captions % len(splits) == part]
            table: dict[str, list[Any]] = {
                "audio": [recordings[n] for n in numbers],
                "image": [pictures[n // captions] for n in numbers],
                "text": [f"{CAPTION} {n}" for n in numbers],
                "speaker": [f"voice {n % SPEAKERS}" for n in numbers],
                "language": ["cy" for _ in numbers],
            }
            for name, feature in extra.items():
                copied = {Audio: "audio", ImageFeature: "image"}.get(type(feature))
                table[name] = table[copied] if copied else [None for _ in numbers]
            tables["default", split] = (table, features)
    write_parquet(folder, tables)
    return folder


def write_parquet(folder: Path, tables: dict[tuple[str, str], tuple[dict[str, list[Any]], Any]]) -> None:
    """Write tables, (config, split) -> columns and their features, as parquet files and the README of their configs."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import yaml

    configs: dict[str, list[dict[str, str]]] = {}
    infos: dict[str, dict[str, Any]] = {}
    for (config, split), (columns, features) in tables.items():
        home = "data" if config == "default" else config
        (folder / home).mkdir(parents=True, exist_ok=True)
        # by storage type, as `datasets` would ask torchcodec to encode the recordings
        table = pa.Table.from_pydict(columns, schema=features.arrow_schema)
        pq.write_table(table, folder / home / f"{split}-00000-of-00001.parquet")
        configs.setdefault(config, []).append({"split": split, "path": f"{home}/{split}-*"})
        info = infos.setdefault(config, {"config_name": config, "features": features._to_yaml_list(), "splits": []})
        info["splits"].append({"name": split, "num_bytes": table.nbytes, "num_examples": table.num_rows})
    header = {
        "dataset_info": list(infos.values()),
        "configs": [{"config_name": config, "data_files": files} for config, files in configs.items()],
    }
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n", "utf-8")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _write_json(path: Path, content: object) -> None:
    _write(path, json.dumps(content).encode())
