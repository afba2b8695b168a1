"""The two figures of docs/results.md as SVG, from the records alone."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from flickr8k_synthetic.measure import CURVE
from flickr8k_synthetic.table import Record, groups
from saysee.evaluation.report import DIRECTION_NAMES
from saysee.evaluation.results import DIRECTIONS, STAGES

_LEFT, _TOP, _SIDE = 44, 28, 280
_LINE = 18
# told apart by people who see few colours [Okabe and Ito 2008]
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def curves(records: Sequence[Record]) -> str:
    """Return recall against k, both directions side by side; the first seed of the rows with all five captions."""
    shown = [
        (f"{name}, {stage}", run["curve"][f"{stage}/{direction}"], number)
        for number, direction in enumerate(DIRECTIONS)
        for name, _, runs in groups(records)
        for run in runs[:1]
        if run["key"]["captions"] == 5
        for stage in STAGES
        if f"{stage}/{direction}" in run["curve"]
    ]
    labels = list(dict.fromkeys(label for label, _, _ in shown))
    assert len(labels) <= len(_COLOURS)
    colours = dict(zip(labels, _COLOURS, strict=False))
    parts = []
    for number, direction in enumerate(DIRECTIONS):
        left = _LEFT + number * (_SIDE + _LEFT)
        parts.append(_text(left, _TOP - 8, f"{DIRECTION_NAMES[direction]}, recall at k in %"))
        for percent in range(0, 101, 20):
            y = _TOP + _SIDE * (1 - percent / 100)
            parts.append(f'<path d="M{left} {y:.1f}h{_SIDE}" stroke="#ddd"/>')
            parts.append(_text(left - 6, y + 4, str(percent), "end"))
        for place, k in enumerate(CURVE):
            parts.append(_text(_place(left, place), _TOP + _SIDE + 16, str(k), "middle"))
    for label, recalls, number in shown:
        left = _LEFT + number * (_SIDE + _LEFT)
        points = " ".join(
            f"{_place(left, place):.1f},{_TOP + _SIDE * (1 - recall):.1f}" for place, recall in enumerate(recalls)
        )
        parts.append(f'<polyline points="{points}" stroke="{colours[label]}" stroke-width="2"/>')
    for row, (label, colour) in enumerate(colours.items()):
        y = _TOP + _SIDE + 42 + _LINE * row
        parts.append(f'<path d="M{_LEFT} {y}h24" stroke="{colour}" stroke-width="2"/>')
        parts.append(_text(_LEFT + 32, y + 4, label))
    return _svg(2 * (_SIDE + _LEFT) + 20, _TOP + _SIDE + 40 + _LINE * len(labels), parts)


def rows(records: Sequence[Record]) -> str:
    """Return every row's R@1 and R@10, the mean of both directions, each seed a dot on its interval."""
    shown = [
        (f"{name}, {data}, {stage}", stage, runs)
        for name, data, runs in groups(records)
        for stage in STAGES
        if f"{stage}/mean/R@1" in runs[0]["recall"]
    ]
    names = 7 * max((len(label) for label, _, _ in shown), default=0)
    bottom = _TOP + _LINE * len(shown)
    parts = [_text(names, _TOP + _LINE * row + 13, label, "end") for row, (label, _, _) in enumerate(shown)]
    for number, recall in enumerate(("R@1", "R@10")):
        left = names + 16 + number * (_SIDE + 40)
        ends = [run["recall"][f"{stage}/mean/{recall}"][2] for _, stage, runs in shown for run in runs]
        step = 1 if recall == "R@1" else 5
        last = step * math.ceil(100 * max(ends, default=0.1) / step)
        parts.append(_text(left, _TOP - 8, f"{recall} in %, mean of both directions"))
        for percent in range(0, last + 1, step):
            x = left + _SIDE * percent / last
            parts.append(f'<path d="M{x:.1f} {_TOP}V{bottom}" stroke="#ddd"/>')
            parts.append(_text(x, bottom + 16, str(percent), "middle"))
        for row, (_, stage, runs) in enumerate(shown):
            colour = _COLOURS[STAGES.index(stage)]
            for place, run in enumerate(runs):
                value, low, high = (left + _SIDE * 100 * v / last for v in run["recall"][f"{stage}/mean/{recall}"])
                y = _TOP + _LINE * (row + (place + 1) / (len(runs) + 1))
                parts.append(f'<path d="M{low:.1f} {y:.1f}H{high:.1f}" stroke="{colour}"/>')
                parts.append(f'<circle cx="{value:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>')
    return _svg(names + 16 + 2 * (_SIDE + 40), bottom + 28, parts)


FIGURES: Mapping[Path, Callable[[Sequence[Record]], str]] = {
    Path("docs/flickr8k_synthetic_curves.svg"): curves,
    Path("docs/flickr8k_synthetic_rows.svg"): rows,
}
"""Where each figure is written."""


def _place(left: float, place: int) -> float:
    """Return where the place-th k stands: nearly a logarithmic scale, since each k is about twice the last."""
    return left + _SIDE * place / (len(CURVE) - 1)


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="black">{escape(text)}</text>'


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12" fill="none">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    return "\n".join([*lines, *parts, "</svg>"]) + "\n"
