"""Results as tables for people: Markdown for a repository, plain text for a terminal or a log file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from saysee.evaluation.bootstrap import LEVEL, RESAMPLES, Interval, bootstrap_intervals
from saysee.evaluation.metrics import METRICS, RECALLS
from saysee.evaluation.results import DIRECTIONS, GROUPINGS, STAGES, Direction, Results

DIRECTION_NAMES = {
    "speech_to_image": "speech to image",
    "image_to_speech": "image to speech",
    "mean": "mean of both",
}
_COLUMNS = ["R@1", "R@5", "R@10", "median", "MRR"]
_METHOD = (
    f"R@K in percent with its {LEVEL:.0%} interval: percentile bootstrap over pictures,\n"
    f"{RESAMPLES} resamples, the gallery fixed. With few pictures, and at 0 or 100, it is too\nnarrow."
)
_MOST_ROWS = 20  # of a table in a terminal; a corpus may have hundreds of speakers


@dataclass(frozen=True)
class _Row:
    """Its labels, and its metrics in the order of METRICS; a mean of both directions has recalls only."""

    labels: list[str]
    metrics: list[Interval | None]


@dataclass(frozen=True)
class _Table:
    title: str
    headers: list[str]
    rows: list[_Row]


def to_markdown(results: Results) -> str:
    """Return the whole report as Markdown: what was measured, the main table, the tables by language and speaker."""
    parts = ["# Retrieval results", "\n".join(f"- {_markdown_safe(line)}" for line in _facts(results))]
    for table in _tables(results):
        cells = [
            [*row.labels, *(_with_interval(name, m) for name, m in zip(METRICS, row.metrics, strict=True))]
            for row in table.rows
        ]
        parts += [f"## {table.title}", markdown_table([*table.headers, *_COLUMNS], cells)]
    return "\n\n".join([*parts, _METHOD]) + "\n"


def to_terminal(results: Results) -> str:
    """Return the report as plain text: no colours, no control characters, 80 columns for names of usual length.

    Each interval stands under its value. A long table by language or speaker ends after its largest groups.
    """
    parts = ["\n".join(_facts(results))]
    for table in _tables(results):
        rows, note = table.rows, ""
        if len(rows) > _MOST_ROWS:
            rows = sorted(rows, key=lambda row: int(row.labels[1]), reverse=True)[:_MOST_ROWS]
            note = f"\n(the largest {len(rows)} rows of {len(table.rows)}; the Markdown report has all)"
        cells = []
        for row in rows:
            named = list(zip(METRICS, row.metrics, strict=True))
            cells.append([*row.labels, *(format_metric(name, m.value) if m else "-" for name, m in named)])
            cells.append(
                [*([""] * len(row.labels)), *(_interval(m) if m and name in RECALLS else "" for name, m in named)]
            )
        parts.append(f"{table.title}\n\n{_text_table([*table.headers, *_COLUMNS], cells)}{note}")
    return "\n\n".join([*parts, _METHOD]) + "\n"


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose source is aligned too, so that it can be read in a terminal.

    Cells are made harmless: a `|` or a tag in a speaker's name stays a name.
    """
    cells = [[_markdown_safe(cell) for cell in row] for row in [headers, *rows]]
    widths = [max(3, *(cell_len(cell) for cell in column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(_padded(row, widths)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def format_metric(name: str, value: float) -> str:
    """Return a metric as it stands in a table: recalls in percent, median rank with one decimal, MRR with three."""
    if name in RECALLS:
        return f"{100 * value:.1f}"
    return f"{value:.1f}" if name == "median_rank" else f"{value:.3f}"


def printable(text: object) -> str:
    """Return `text` on one line, with control characters replaced: names come from files that others wrote."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(str(text).split()))


def _facts(results: Results) -> Iterator[str]:
    for key, value in results.about.items():
        yield f"{printable(key)}: {printable(value)}"
    speech, image = results.queries("speech_to_image"), results.queries("image_to_speech")
    if speech:
        yield f"speech to image: {len(speech.counts)} recordings ask, a gallery of {speech.gallery_size} pictures"
    if image:
        yield f"image to speech: {len(image.counts)} pictures ask, a gallery of {image.gallery_size} recordings"
    for direction, recall in results.coarse_recall_at_k.items():
        yield (
            f"coarse recall@{_k(results, direction)}, {DIRECTION_NAMES[direction]}: {100 * recall:.1f} %, "
            "the most that fine R@1 can reach"
        )


def _k(results: Results, direction: Direction) -> object:
    queries, k = results.queries(direction), results.about.get("rerank")
    return min(k, queries.gallery_size) if queries and isinstance(k, int) else "k"


def _tables(results: Results) -> Iterator[_Table]:
    intervals = results.intervals()
    rows = []
    for stage in STAGES:
        for direction in (*DIRECTIONS, "mean"):
            found = [intervals.get(f"{stage}/{direction}/{name}") for name in METRICS]
            if any(found):
                rows.append(_Row([stage, DIRECTION_NAMES[direction]], found))
    yield _Table("Recall", ["stage", "direction"], rows)

    for grouping in GROUPINGS:
        groups = results.groups.get(grouping, {})
        if len(groups) > 1:
            rows = [row for name in sorted(groups) for row in _group_rows(results, name, groups[name])]
            yield _Table(f"Speech to image, by {grouping}", [grouping, "n", "stage"], rows)


def _group_rows(results: Results, name: str, members: Sequence[int]) -> Iterator[_Row]:
    for stage in STAGES:
        if ranking := results.ranking(stage, "speech_to_image"):
            clusters = [ranking.clusters[member] for member in members]
            intervals = bootstrap_intervals(ranking.counts.select(members), clusters)
            yield _Row([printable(name), str(len(members)), stage], [intervals[metric] for metric in METRICS])


def _with_interval(name: str, metric: Interval | None) -> str:
    if metric is None:
        return "-"
    return format_metric(name, metric.value) + (f" ({_interval(metric)})" if name in RECALLS else "")


def _interval(recall: Interval) -> str:
    return f"{100 * recall.low:.1f}-{100 * recall.high:.1f}"


def _text_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(cell_len(cell) for cell in column) for column in zip(headers, *rows, strict=True)]
    lines = ["  ".join(_padded(row, widths)).rstrip() for row in [headers, ["-" * width for width in widths], *rows]]
    return "\n".join(lines)


def _padded(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Pad to columns of a terminal, where a Chinese character takes two."""
    return [cell + " " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True)]


def _markdown_safe(cell: str) -> str:
    return printable(cell).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
