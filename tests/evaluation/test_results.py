"""The record: names, round trip through the file, and every way in which a file may be wrong."""

import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation_samples import ranked, results, seen, spoken
from saysee.config import TrainingConfig
from saysee.errors import SayseeError
from saysee.evaluation.metrics import RankCounts
from saysee.evaluation.results import Results, StageResult, read_results, write_results

FULL = results(
    spoken([1, 2, 30, 4]),
    seen([1, 7]),
    spoken([1, 1, 30, 2], "fine"),
    seen([1, 3], "fine"),
    groups={"language": {"en": (0, 1, 3), "fr": (2,)}, "speaker": {"Zoë \udc80": (0, 1, 2, 3)}},
    recall_at_k={"speech_to_image": 0.75, "image_to_speech": 1.0},
    model="runs/tiny",
    rerank=32,
)


def test_metrics_have_the_names_by_which_checkpoints_are_chosen() -> None:
    metrics = FULL.metrics()
    assert list(metrics) == [
        *(f"coarse/speech_to_image/{name}" for name in ("R@1", "R@5", "R@10", "median_rank", "MRR")),
        *(f"coarse/image_to_speech/{name}" for name in ("R@1", "R@5", "R@10", "median_rank", "MRR")),
        *(f"coarse/mean/{name}" for name in ("R@1", "R@5", "R@10")),
        *(f"fine/speech_to_image/{name}" for name in ("R@1", "R@5", "R@10", "median_rank", "MRR")),
        *(f"fine/image_to_speech/{name}" for name in ("R@1", "R@5", "R@10", "median_rank", "MRR")),
        *(f"fine/mean/{name}" for name in ("R@1", "R@5", "R@10")),
    ]
    assert metrics["coarse/speech_to_image/R@1"] == 0.25
    assert metrics["coarse/image_to_speech/R@5"] == 0.5
    assert metrics["coarse/mean/R@5"] == (0.75 + 0.5) / 2
    assert metrics["fine/speech_to_image/median_rank"] == 1.5
    assert metrics["fine/mean/R@1"] == (0.5 + 0.5) / 2
    assert TrainingConfig().primary_metric in metrics


def test_one_direction_has_no_mean() -> None:
    assert not [name for name in results(spoken([1, 2])).metrics() if "mean/" in name]


def test_a_metric_by_name_and_a_name_that_is_not_there() -> None:
    assert FULL.metric("fine/image_to_speech/R@1") == 0.5
    with pytest.raises(SayseeError, match=r"no metric 'coarse/mean/R@2'.*coarse/mean/R@1, .*fine/mean/R@10$"):
        FULL.metric("coarse/mean/R@2")


def test_the_interval_of_a_mean_pairs_the_directions() -> None:
    # An image whose caption is found is itself not found: the two directions cancel in every draw of images, so their
    # mean is certain although neither is. Drawn independently, the mean would be uncertain too.
    success = np.arange(40) % 2 == 0
    opposed = results(
        spoken(np.where(success, 1, 50).tolist(), captions=1), seen(np.where(success, 50, 1).tolist(), gallery=200)
    )
    intervals = opposed.intervals()
    assert intervals["coarse/speech_to_image/R@1"].low < 0.4
    mean = intervals["coarse/mean/R@1"]
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.5, 0.5, 0.5))


def _columns(counts: RankCounts) -> list[list[int]]:
    return [getattr(counts, name).tolist() for name in ("above", "tied", "relevant_tied")]


def as_plain(record: Results) -> dict[str, Any]:
    return {
        "about": record.about,
        "recall": record.coarse_recall_at_k,
        "groups": record.groups,
        "stages": [
            (r.stage, r.direction, r.query_ids, r.clusters, r.gallery_size, _columns(r.counts)) for r in record.stages
        ],
    }


def test_what_is_written_is_read(tmp_path: Path) -> None:
    tied = StageResult(
        "coarse",
        "image_to_speech",
        RankCounts(np.array([0, 3]), np.array([9, 1]), np.array([2, 1])),
        ("image000", "image001"),
        ("image000", "image001"),
        12,
    )
    for record in (FULL, results(spoken([5, 6, 7]), seed=0), results(tied)):
        write_results(tmp_path / "results.json", record)
        assert as_plain(read_results(tmp_path / "results.json")) == as_plain(record)


def test_the_file_says_its_version_and_its_metrics_with_intervals(tmp_path: Path) -> None:
    write_results(tmp_path / "results.json", FULL)
    text = (tmp_path / "results.json").read_text()
    record = json.loads(text)
    assert record["saysee_results"] == 1
    assert {name: metric["value"] for name, metric in record["metrics"].items()} == FULL.metrics()
    metric = record["metrics"]["coarse/speech_to_image/R@1"]
    assert metric["low"] <= metric["value"] <= metric["high"]
    assert max(map(len, text.splitlines()[:-6])) < 120, "the part for people comes first, in short lines"


def test_equal_results_make_equal_bytes(tmp_path: Path) -> None:
    write_results(tmp_path / "a.json", FULL)
    write_results(tmp_path / "b.json", read_results(tmp_path / "a.json"))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_compressed_it_is_the_same_record(tmp_path: Path) -> None:
    plain, small = tmp_path / "results.json", tmp_path / "results.json.xz"
    write_results(plain, FULL)
    write_results(small, FULL)
    assert lzma.decompress(small.read_bytes()) == plain.read_bytes()
    assert as_plain(read_results(small)) == as_plain(FULL)
    content = small.read_bytes()
    for damaged in (content[:-9], b"", plain.read_bytes()):
        small.write_bytes(damaged)
        with pytest.raises(SayseeError, match=r"results\.json\.xz is no whole xz file"):
            read_results(small)


def edited(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    write_results(path, FULL)
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r.update(saysee_results=2), "has format 2 and this saysee reads 1"),
        (lambda r: r.pop("saysee_results"), "is not a record of saysee"),
        (lambda r: r.update(saysee_results="1"), "is not a record of saysee"),
        (lambda r: r.pop("groups"), r"damaged \('groups' is missing\)"),
        (lambda r: r["queries"].pop("image_to_speech"), r"damaged \('image_to_speech' is missing\)"),
        (lambda r: r["counts"][0]["above"].pop(), "damaged .*one shape"),
        (lambda r: r["counts"][0]["above"].__setitem__(0, 0.5), "damaged .*whole number"),
        (lambda r: r["counts"][0]["above"].__setitem__(0, 10**30), "damaged"),
        (lambda r: r["counts"][0]["above"].__setitem__(0, 5000), "damaged .*gallery of 100"),
        (lambda r: r["counts"][0]["relevant_tied"].__setitem__(0, 0), "damaged .*relevant_tied"),
        (lambda r: r["counts"].append(r["counts"][0]), "damaged .*each ranking once"),
        (lambda r: r.update(counts=[]), "damaged .*at least one"),
        (lambda r: r["counts"][0].update(stage="medium"), "damaged .*medium"),
        (lambda r: r["queries"]["speech_to_image"]["query_ids"].__setitem__(0, "caption001"), "damaged .*twice"),
        (lambda r: r["queries"]["speech_to_image"]["query_ids"].__setitem__(0, 7), "damaged .*not a string"),
        (lambda r: r["queries"]["speech_to_image"]["clusters"].__setitem__(3, "other"), "damaged .*different images"),
        (lambda r: r["queries"]["speech_to_image"].update(gallery_size="100"), "damaged .*whole number"),
        (lambda r: r["groups"]["language"].update(de=[4]), "damaged .*'de' .*not there"),
        (lambda r: r["groups"]["language"].update(de=[]), "damaged .*'de' is empty"),
        (lambda r: r["groups"].update(age={"9": [1]}), "damaged .*groups are by"),
        (lambda r: r.update(groups=[]), "damaged"),
        (lambda r: r.update(coarse_recall_at_k={"sideways": 1}), "damaged .*recall at k by"),
        (lambda r: r.update(about=3), "damaged"),
    ],
)
def test_a_record_that_is_not_ours_or_not_whole(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    edited(tmp_path / "results.json", edit)
    with pytest.raises(SayseeError, match=message) as caught:
        read_results(tmp_path / "results.json")
    assert "\n" not in str(caught.value)
    assert "results.json" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\xff", b"[" * 100_000, b"R@1 = 100"])
def test_a_file_that_is_not_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(SayseeError, match="is not JSON"):
        read_results(tmp_path / "results.json")


@pytest.mark.parametrize("content", [b"[1]", b"null", b'{"R@1": 1}', b'{"saysee_results": true}'])
def test_json_of_something_else(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(SayseeError, match="is not a record of saysee"):
        read_results(tmp_path / "results.json")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SayseeError, match="No such file"):
        read_results(tmp_path / "nowhere.json")
    with pytest.raises(SayseeError, match="directory"):
        read_results(tmp_path)


def test_a_failed_write_leaves_the_old_record(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results(path, FULL)
    with pytest.raises(ValueError, match="Out of range float"):
        write_results(path, results(spoken([1]), loss=float("nan")))
    assert as_plain(read_results(path)) == as_plain(FULL)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("ids", "clusters", "message"),
    [
        (("a",), ("x", "x"), "counts of 2 queries, 1 query ids and 2 clusters"),
        (("a", "b"), ("x",), "2 query ids and 1 clusters"),
        (("a", "a"), ("x", "x"), "stands twice"),
    ],
)
def test_a_ranking_refuses_what_does_not_fit(ids: tuple[str, ...], clusters: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StageResult("coarse", "speech_to_image", ranked([1, 2]), ids, clusters, 10)


def test_stages_of_a_direction_have_the_same_queries() -> None:
    with pytest.raises(ValueError, match="differ in their queries or gallery"):
        results(spoken([1, 2]), spoken([1, 2, 3], "fine"))
    with pytest.raises(ValueError, match="differ in their queries or gallery"):
        results(spoken([1, 2]), spoken([1, 2], "fine", gallery=101))
