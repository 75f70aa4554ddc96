"""docs/growth.md and its picture, from what `make bench-growth` has kept."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import fill
from typing import Any

DOCS = Path(__file__).parent.parent.parent / "docs"
#: What `make soak` has said when it was last looked at.
SOAK = (
    "`make soak SEED=77` (10 minutes, 123,000 calls that end in every way there is, beside other load) found every "
    "call as it should be, and nothing that had grown. With `SEED=108848` (114,000 calls, at a load of 10) threads "
    "had, from 89 to 103, and with them memory, from 209 to 223 MiB: each process fills its pools of threads, for "
    "plain functions and for what blocks, up to their limit, and a thread takes 1.1 to 1.3 MiB. Python objects, "
    "descriptors and connections stayed."
)
Point = dict[str, Any]

#: By series: its title, the head of its first column, and what it shows.
SERIES = {
    "queued": (
        "Calls that wait in the queue", "calls",
        "A call costs nearly the same however many wait behind it: Redis takes from the end of a list, whatever its "
        "length. What is left is its memory, which fits into the processor's caches ever less.",
    ),
    "made": (
        "Calls that are made at once", "calls",
        "As many `delay()` at once on one event loop; the processor time is the caller's. They share round trips, 200 "
        "in each. Python's garbage collector has more to look at, the more of them are under way, so each costs a "
        "little more. `delay_many` is the way to queue many.",
    ),
    "queues": (
        "Queues that a worker serves", "queues",
        "Calls in all of them at once. Each take looks into every list, and each list has a connection that waits for "
        "it: commands grow with the queues, though slower, since one take brings many calls.",
    ),
    "concurrency": (
        "Calls at once that do nothing", "`--concurrency`",
        "In one process. One at a time needs two round trips a call; from about 10 on, calls share them. Beyond 100 "
        "some wait for their turn for longer than 20 ms and are stored as started, which is one write more.",
    ),
    "sleeping": (
        "Calls at once that sleep for 0.1 s", "`--concurrency`",
        "In one process. Each is stored as started. What a worker takes anyway, as for its lease, falls on few calls "
        "where few run.",
    ),
    "processes": (
        "Processes of a worker", "`--processes`",
        "Two cores do all of it here, the server's part too: more processes than cores gain nothing, and share the "
        "same calls in smaller batches.",
    ),
    "arguments": (
        "Size of the arguments", "bytes",
        "A message has its arguments as JSON in base64, and the result keeps them as well (`task_store_arguments`). "
        "The server reads 16 KiB at a time and counts each, so one large call counts as several round trips. Beyond "
        "a few KiB, send a key and leave the data in a store.",
    ),
    "countdowns": (
        "Calls that wait for their time", "countdowns",
        "They are in a sorted set of their own, and a take looks at its first entry alone.",
    ),
    "drained": (
        "Calls that a worker has run", "calls since its start",
        "Memory is that of both processes and their supervisor, after each 15,000 calls; what they share counts once.",
    ),
}  # fmt: skip
HEAD = "| {} | calls/s | worker µs | server µs | commands | round trips | memory MiB |\n|---|---|---|---|---|---|---|"

WIDTH, HEIGHT, ACROSS = 300, 190, 3
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 34, 30
STYLE = """
text { font: 11px system-ui, sans-serif; fill: #57606a } .title { font-weight: 600; font-size: 12px; fill: #1f2328 }
.grid { stroke: #8c959f; stroke-opacity: .35 } polyline { fill: none; stroke-width: 2 }
.worker { stroke: #0969da } .server { stroke: #bc4c00 } .memory { stroke: #1a7f37 }
circle.worker { fill: #0969da } circle.server { fill: #bc4c00 } circle.memory { fill: #1a7f37 }
@media (prefers-color-scheme: dark) {
text { fill: #9198a1 } .title { fill: #f0f6fc }
.worker { stroke: #4493f8 } .server { stroke: #f0883e } .memory { stroke: #3fb950 }
circle.worker { fill: #4493f8 } circle.server { fill: #f0883e } circle.memory { fill: #3fb950 }
}
"""


def write(found: dict[str, Any], steep: dict[str, float]) -> None:
    """Write the page and its picture."""
    (DOCS / "growth.svg").write_text(picture(found["series"]))
    parts = [part if part[0] in "#<!|" else fill(part, 120) for part in page(found, steep)]
    (DOCS / "growth.md").write_text("\n\n".join(parts) + "\n")


def page(found: dict[str, Any], steep: dict[str, float]) -> Iterator[str]:
    """The parts of the page."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    yield "# How costs grow"
    yield "<!-- Written by `make bench-growth`; its sentences are in tests/bench/growth_page.py. -->"
    yield (
        "What a call costs when there is ever more of one thing. A worker of two processes with `--concurrency 200`, "
        "where nothing else is said, drains a queue of calls that do nothing: all that is measured is what is around "
        "a call."
    )
    yield (
        f"`make bench-growth`, {found['date']}, {found['seconds']} s on {found['cores']} cores, which the server and "
        f"the caller use as well, with a load of {found['load']:.0f} at the end. {versions}. Absolute figures are this "
        "machine's, and what else it does is in them."
    )
    yield "![Processor time of a call, and memory](growth.svg)"
    yield (
        "**Exponent** says how a call's processor time, worker and server together, grows with what is in the first "
        "column: 0 where it stays the same, 1 where it doubles with it. The command fails where one is larger than in "
        "the last column."
    )
    rows = [f"| {SERIES[name][0]} | {slope:.2f} | {LIMITS[name]:g} |" for name, slope in steep.items()]
    yield "\n".join(["| | exponent | at most |\n|---|---|---|", *rows])
    yield (
        "Worker and server µs are processor time of one call. Commands are those that the server runs, inside scripts "
        "too; round trips are the reads that it makes."
    )
    for name, points in found["series"].items():
        title, column, said = SERIES[name]
        yield f"## {title}"
        yield said
        yield "\n".join([HEAD.format(column), *map(row, points)])
        if name == "drained":
            yield memory(points)


#: How steep each series may be. Where calls share what there is, cost may not grow at all, but for what a busy machine
#: makes of it.
LIMITS = {"queued": 0.15, "made": 0.2, "queues": 1.0, "concurrency": 0.15, "sleeping": 0.15, "processes": 0.25,
          "arguments": 1.0, "countdowns": 0.15, "drained": 0.15}  # fmt: skip


def row(point: Point) -> str:
    """A line of a table."""
    memory = "–" if point["memory"] is None else f"{point['memory']:.0f}"
    return (
        f"| {point['label']} | {1 / point['wall']:,.0f} | {point['processor'] * 1e6:.0f} | {point['server'] * 1e6:.0f} "
        f"| {point['commands']:.2f} | {point['trips']:.3f} | {memory} |"
    )


def memory(points: list[Point]) -> str:
    """Whether memory stays, and what the soak has shown."""
    taken = [point["memory"] for point in points]
    return f"From the second line to the last it goes from {taken[1]:.0f} to {taken[-1]:.0f} MiB. {SOAK}"


def picture(series: dict[str, list[Point]]) -> str:
    """Small multiples, one for each series."""
    high = HEIGHT * math.ceil(len(series) / ACROSS) + 24
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH * ACROSS} {high}" role="img">',
             f"<title>Processor time of a call, and memory</title><style>{STYLE}</style>"]  # fmt: skip
    for number, (name, points) in enumerate(series.items()):
        at = f"{number % ACROSS * WIDTH} {number // ACROSS * HEIGHT}"
        parts.append(f'<g transform="translate({at})">{"".join(panel(name, points))}</g>')
    for x, kind, said in ((44, "worker", "worker (or caller), µs a call"), (300, "server", "server, µs a call"),
                          (500, "memory", "memory, MiB")):  # fmt: skip
        parts.append(f'<circle class="{kind}" cx="{x}" cy="{high - 12}" r="4"/>'
                     f'<text x="{x + 10}" y="{high - 8}">{said}</text>')  # fmt: skip
    return "\n".join([*parts, "</svg>", ""])


def panel(name: str, points: list[Point]) -> Iterator[str]:
    """One of them: the amount along a logarithmic axis, what a call takes above zero."""
    lines: dict[str, Callable[[Point], float]] = {
        "worker": lambda point: float(point["processor"]) * 1e6, "server": lambda point: float(point["server"]) * 1e6,
    }  # fmt: skip
    if name == "drained":
        lines = {"memory": lambda point: float(point["memory"])}
    most = max(value(point) for value in lines.values() for point in points) * 1.1
    amounts = [math.log(max(point["amount"], 100)) if name == "countdowns" else math.log(point["amount"])
               for point in points]  # fmt: skip
    across = (WIDTH - LEFT - RIGHT) / (amounts[-1] - amounts[0])
    xs = [LEFT + (amount - amounts[0]) * across for amount in amounts]

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - value / most * (HEIGHT - TOP - BOTTOM)

    yield f'<text class="title" x="{LEFT}" y="20">{SERIES[name][0]}</text>'
    for value in (0.0, most / 1.1 / 2, most / 1.1):
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        yield f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.0f}</text>'
    room = xs[-1] - 48  # where the last one's label begins
    for x, point in zip(xs, points, strict=True):
        if x == xs[-1] or (x < room and (name != "drained" or x == xs[0])):
            anchor = "end" if x == xs[-1] else "middle"
            yield f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="{anchor}">{point["label"]}</text>'
    for kind, value_of in lines.items():
        spots = [(x, y(value_of(point))) for x, point in zip(xs, points, strict=True)]
        yield f'<polyline class="{kind}" points="{" ".join(f"{x:.1f},{at:.1f}" for x, at in spots)}"/>'
        yield from (f'<circle class="{kind}" cx="{x:.1f}" cy="{at:.1f}" r="3"/>' for x, at in spots)
