"""Tables: right numbers in the right cells, whatever the names are."""

import re

import pytest

from evaluation_samples import results, seen, spoken
from saysee.evaluation.report import format_metric, markdown_table, printable, to_markdown, to_terminal
from saysee.evaluation.results import Results

RANKS = [1, 1, 1, 30, 2, 7] * 10


def sample(groups: dict[str, dict[str, tuple[int, ...]]] | None = None, **about: object) -> Results:
    return results(
        spoken(RANKS),
        seen(RANKS[::2]),
        spoken([max(1, rank - 1) for rank in RANKS], "fine"),
        seen(RANKS[::2], "fine"),
        groups=groups,
        recall_at_k={"speech_to_image": 0.8333, "image_to_speech": 1.0},
        **about,
    )


def markdown_rows(text: str, title: str) -> list[dict[str, str]]:
    """Parse the table under a heading."""
    lines = text.split(f"## {title}\n")[1].split("\n##", 1)[0].splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if line.startswith("|")]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def test_every_ranking_has_a_row_with_its_numbers() -> None:
    record = sample()
    rows = markdown_rows(to_markdown(record), "Recall")
    assert [(row["stage"], row["direction"]) for row in rows] == [
        (stage, direction)
        for stage in ("coarse", "fine")
        for direction in ("speech to image", "image to speech", "mean of both")
    ]
    assert rows[0]["R@1"].startswith("50.0 (")
    assert rows[0]["R@5"].startswith("66.7 (")
    assert rows[0]["median"] == "1.5"
    assert rows[0]["MRR"] == f"{record.metric('coarse/speech_to_image/MRR'):.3f}"
    assert rows[3]["R@1"].startswith("66.7 (")
    assert (rows[2]["median"], rows[2]["MRR"]) == ("-", "-")
    interval = record.intervals()["fine/mean/R@10"]
    assert rows[5]["R@10"] == f"{100 * interval.value:.1f} ({100 * interval.low:.1f}-{100 * interval.high:.1f})"


@pytest.mark.parametrize("render", [to_markdown, to_terminal])
def test_galleries_and_the_bound_of_the_fine_stage_are_said(render: type[str]) -> None:
    text = render(sample(model="runs/tiny", rerank=150, split="test"))
    assert "model: runs/tiny" in text
    assert "speech to image: 60 recordings ask, a gallery of 100 pictures" in text
    assert "image to speech: 30 pictures ask, a gallery of 200 recordings" in text
    assert "coarse recall@100, speech to image: 83.3 %" in text, "150 is clamped to the gallery"
    assert "coarse recall@150, image to speech: 100.0 %" in text


def test_a_coarse_result_says_nothing_of_a_fine_stage() -> None:
    text = to_markdown(results(spoken(RANKS), model="x"))
    assert "fine" not in text
    assert "mean" not in text


def test_groups_have_their_size_and_their_own_numbers() -> None:
    found = tuple(i for i, rank in enumerate(RANKS) if rank == 1)
    missed = tuple(i for i, rank in enumerate(RANKS) if rank == 30)[:3]
    text = to_markdown(sample({"language": {"fr": missed, "en": found}, "speaker": {"only": tuple(range(60))}}))
    rows = markdown_rows(text, "Speech to image, by language")
    assert [(row["language"], row["n"], row["stage"]) for row in rows] == [
        ("en", "30", "coarse"),
        ("en", "30", "fine"),
        ("fr", "3", "coarse"),
        ("fr", "3", "fine"),
    ]
    assert rows[0]["R@1"] == "100.0 (100.0-100.0)"
    assert (rows[2]["R@10"], rows[2]["median"], rows[3]["median"]) == ("0.0 (0.0-0.0)", "30.0", "29.0")
    assert "by speaker" not in text, "one speaker alone is the main table again"


def test_the_interval_of_a_group_draws_its_images() -> None:
    # captions 0 and 1 are of one image: with that image alone, all draws are the same
    rows = markdown_rows(
        to_markdown(sample({"speaker": {"a": (2, 3), "b": (2, 4)}})), "Speech to image, by speaker"
    )  # ranks 1 and 30; 1 and 2
    assert rows[0]["R@1"] == "50.0 (50.0-50.0)"
    assert rows[2]["R@1"] == "50.0 (0.0-100.0)"


def test_names_from_a_manifest_cannot_break_the_page_or_the_terminal() -> None:
    record = sample(
        {"speaker": {"a|b<script>\n# x": (0, 1), "\x1b[31mred": (2, 3), "李雷": (4,)}}, data="two\nlines\x07<script>"
    )
    markdown, terminal = to_markdown(record), to_terminal(record)
    assert "<script>" not in markdown
    assert "a\\|b&lt;script> # x" in markdown
    assert {row["speaker"] for row in markdown_rows(markdown, "Speech to image, by speaker")} == {
        "a\\|b&lt;script> # x",
        "\N{REPLACEMENT CHARACTER}[31mred",
        "李雷",
    }
    for text in (markdown, terminal):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
        assert "data: two lines\N{REPLACEMENT CHARACTER}" in text


def test_terminal_text_is_narrow_and_its_columns_stand_in_line() -> None:
    text = to_terminal(sample({"language": {"en": (0, 1), "fr": (2, 3)}}))
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 80
    lines = text.split("Recall\n\n")[1].split("\n\n")[0].splitlines()
    header, value, interval = lines[0], lines[2], lines[3]
    start = header.index("R@5")
    assert value[start:].startswith("66.7 ")
    assert re.match(r"\d+\.\d-\d+\.\d", interval[start:])
    assert interval[: header.index("R@1")].isspace()


def test_wide_characters_take_two_columns() -> None:
    lines = markdown_table(["name", "n"], [["李雷", "1"], ["abcd", "2"]]).splitlines()
    assert lines == ["| name | n   |", "|------|-----|", "| 李雷 | 1   |", "| abcd | 2   |"]


def test_hundreds_of_speakers_do_not_flood_a_terminal() -> None:
    speakers = {f"speaker{i:02}": tuple(range(i, i + (5 if i == 17 else 2))) for i in range(40)}
    record = sample({"speaker": speakers})
    shown = to_terminal(record).split("by speaker\n\n")[1]
    assert shown.count("\nspeaker") == 20
    assert shown.index("speaker17") < shown.index("speaker00"), "the largest first"
    assert "the largest 20 rows of 80" in shown
    assert len(markdown_rows(to_markdown(record), "Speech to image, by speaker")) == 80


def test_a_metric_has_the_digits_it_deserves() -> None:
    assert format_metric("R@5", 0.12345) == "12.3"
    assert format_metric("median_rank", 2) == "2.0"
    assert format_metric("MRR", 0.12345) == "0.123"
    assert printable(["a", 1]) == "['a', 1]"
