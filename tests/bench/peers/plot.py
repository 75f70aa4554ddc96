"""docs/benchmarks.svg: bars with their figures beside them, readable on a light and on a dark page."""

from collections.abc import Iterator, Mapping
from html import escape

from bench.peers.measures import MEASURES, Figure

#: One row for each library, at its best.
SHOWN = (
    "core.tasks", "Celery prefork", "Celery threads × 2", "taskiq stream", "dramatiq", "huey processes", "saq",
    "streaq", "arq", "rq SimpleWorker",
)  # fmt: skip
PANELS = {
    "noop": "No-op calls, a second",
    "io": "Calls that sleep for 0.1 s, a second",
    "together": "Queued by 100 publishers, a second",
    "median": "Call to result, ms: less is better",
}
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600; font-size: 13px }
.bar { fill: #8c959f } .ours { fill: #1f6feb }
.own { font-weight: 600 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .bar { fill: #6e7681 } .ours { fill: #58a6ff }
}
"""
NAMES, BARS, VALUES, LINE, GAP = 160, 200, 60, 19, 34


def svg(found: Mapping[str, Mapping[str, Figure]]) -> str:
    """The plot: two panels beside each other, two below."""
    width, height = NAMES + BARS + VALUES, (len(SHOWN) + 1) * LINE + GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * width} {2 * height}" role="img">',
        "<title>Calls a second and latency of each library</title>", f"<style>{STYLE}</style>",
    ]  # fmt: skip
    for number, name in enumerate(PANELS):
        lines.append(f'<g transform="translate({number % 2 * width} {number // 2 * height})">')
        lines += _panel(name, found)
        lines.append("</g>")
    return "\n".join([*lines, "</svg>"]) + "\n"


def _panel(name: str, found: Mapping[str, Mapping[str, Figure]]) -> Iterator[str]:
    measure = MEASURES[name]
    values = {row: found[row][name].value for row in SHOWN if name in found.get(row, {})}
    most = max(values.values(), default=1.0)
    limit = found.get("limit", {}).get(name)
    beyond = f" (the limit: {measure.text(limit.value)})" if limit else ""
    yield f'<text class="title" x="8" y="18">{escape(PANELS[name] + beyond)}</text>'
    for number, (row, value) in enumerate(sorted(values.items(), key=lambda item: item[1], reverse=measure.more)):
        top, length = 28 + number * LINE, max(1.0, value / most * BARS)
        kind = "ours" if row == "core.tasks" else "bar"
        own = ' class="own"' if kind == "ours" else ""
        yield f'<text{own} x="{NAMES - 8}" y="{top + 13}" text-anchor="end">{escape(row)}</text>'
        yield f'<rect class="{kind}" x="{NAMES}" y="{top + 3}" width="{length:.1f}" height="{LINE - 6}"/>'
        yield f'<text{own} x="{NAMES + length + 6:.1f}" y="{top + 13}">{measure.text(value)}</text>'
