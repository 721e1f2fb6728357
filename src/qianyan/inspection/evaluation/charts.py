"""Charts as inline SVG: nothing to load, sharp at any size, readable without colour.

Every chart has its text as `aria-label`, its numbers stand in the table beside it, and colours are
the page's own (`currentColor` and CSS classes), so that it follows light and dark.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from qianyan.inspection.evaluation.calibration import Reliability

WIDTH, ROW, NAME_WIDTH, VALUE_WIDTH, BAR = 420, 30, 88, 64, 12
PLOT, EDGE, LABELS = 320, 44, 40
SMALLEST_DOT, LARGEST_DOT = 3.0, 11.0


@dataclass(frozen=True)
class Bar:
    """One figure from 0 to 1, as it is written, with its interval; `is_bad`: less is better."""

    name: str
    value: float
    text: str
    interval: tuple[float, float] | None
    is_bad: bool = False


def bar_chart(bars: Sequence[Bar], title: str) -> str:
    """Draw figures as bars from 0 to 1, with their intervals as lines."""
    height = len(bars) * ROW + 28
    length = WIDTH - NAME_WIDTH - VALUE_WIDTH
    parts = [
        f'<line class="grid" x1="{x:.0f}" y1="4" x2="{x:.0f}" y2="{height - 24}"/>'
        f'<text class="tick" x="{x:.0f}" y="{height - 8}" text-anchor="middle">{tenth * 10}%</text>'
        for tenth in (0, 2, 4, 6, 8, 10)
        for x in [NAME_WIDTH + length * tenth / 10]
    ]
    for index, bar in enumerate(bars):
        middle = index * ROW + ROW / 2 + 4
        kind = "bar bad" if bar.is_bad else "bar"
        parts.append(
            f'<text x="{NAME_WIDTH - 10}" y="{middle + 5:.0f}" text-anchor="end">'
            f"{escape(bar.name)}</text>"
            f'<rect class="{kind}" x="{NAME_WIDTH}" y="{middle - BAR / 2:.0f}" height="{BAR}" '
            f'width="{max(bar.value * length, 1):.1f}" rx="2"/>'
        )
        right = bar.value
        if bar.interval is not None:
            low, right = bar.interval
            parts.append(_whisker(NAME_WIDTH + low * length, NAME_WIDTH + right * length, middle))
        parts.append(
            f'<text class="value" x="{NAME_WIDTH + max(right, bar.value) * length + 8:.1f}" '
            f'y="{middle + 5:.0f}">{escape(bar.text)}</text>'
        )
    return _svg(WIDTH, height, title, parts)


def _whisker(left: float, right: float, middle: float) -> str:
    ends = "".join(
        f'<line x1="{x:.1f}" y1="{middle - 4:.1f}" x2="{x:.1f}" y2="{middle + 4:.1f}"/>'
        for x in (left, right)
    )
    line = f'<line x1="{left:.1f}" y1="{middle:.1f}" x2="{right:.1f}" y2="{middle:.1f}"/>'
    return f'<g class="whisker">{line}{ends}</g>'


def reliability_chart(curve: Reliability, title: str, axes: tuple[str, str]) -> str:
    """Draw shares that are right over scores; dots grow with their boxes, the diagonal is ideal."""
    side = PLOT + EDGE
    parts = [
        f'<rect class="frame" x="{EDGE}" y="8" width="{PLOT}" height="{PLOT}"/>',
        f'<line class="ideal" x1="{EDGE}" y1="{PLOT + 8}" x2="{side}" y2="8"/>',
    ]
    for tenth in (0, 2, 4, 6, 8, 10):
        x, y = _at(tenth / 10, tenth / 10)
        parts.append(
            f'<text class="tick" x="{x:.0f}" y="{PLOT + 24}" text-anchor="middle">{tenth / 10:g}'
            f'</text><text class="tick" x="{EDGE - 6}" y="{y + 4:.0f}" text-anchor="end">'
            f"{tenth * 10}%</text>"
        )
    most = max((one.right.total for one in curve.bins), default=1)
    line = []
    for one in curve.bins:
        share = one.right.value or 0.0
        x, y = _at(one.mean_score, share)
        line.append(f"{x:.1f},{y:.1f}")
        low, high = one.right.interval or (share, share)
        radius = SMALLEST_DOT + (LARGEST_DOT - SMALLEST_DOT) * (one.right.total / most) ** 0.5
        parts.append(
            f'<line class="whisker" x1="{x:.1f}" y1="{_at(0, low)[1]:.1f}" x2="{x:.1f}" '
            f'y2="{_at(0, high)[1]:.1f}"/><circle class="dot" cx="{x:.1f}" cy="{y:.1f}" '
            f'r="{radius:.1f}"><title>{one.mean_score:.2f} · {share:.0%} · {one.right.total}'
            "</title></circle>"
        )
    parts.insert(2, f'<polyline class="curve" points="{" ".join(line)}"/>')
    parts.append(
        f'<text class="tick" x="{EDGE + PLOT / 2:.0f}" y="{PLOT + LABELS + 2}" '
        f'text-anchor="middle">{escape(axes[0])}</text>'
        f'<text class="tick" text-anchor="middle" '
        f'transform="translate(12 {8 + PLOT / 2:.0f}) rotate(-90)">{escape(axes[1])}</text>'
    )
    return _svg(side + 16, PLOT + LABELS + 10, title, parts)


def _at(score: float, share: float) -> tuple[float, float]:
    return EDGE + score * PLOT, 8 + (1 - share) * PLOT


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}" '
        f'style="max-width:{width}px">{"".join(parts)}</svg>'
    )
