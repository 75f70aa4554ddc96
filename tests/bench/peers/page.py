"""docs/benchmarks.md: what the peers were measured at, from the figures that are kept beside this file."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.peers import plot
from bench.peers.measures import MEASURES, QUIET, Figure, figure
from bench.peers.rows import PEERS, ROWS
from bench.peers.workloads import WORKLOADS

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
PAGE = HERE.parents[2] / "docs" / "benchmarks.md"
OURS, LINES, CONTROL, LIMIT = "core.tasks", "core.tasks with log lines", "Celery prefork", "limit"

THROUGHPUT = ("one", "together", "many", "noop", "io", "cpu", "backlog")
WAITING = ("delayed", "median", "p99", "paused", "memory", "startup")
COSTS = ("commands", "trips", "worker", "server")
PUBLISHING = ("publish_commands", "publish_trips", "publish_client", "together_trips")


def write(results: dict[str, Any]) -> None:
    """Keep the figures, and write the page and its plot from them."""
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in results["rows"].items())
    RESULTS.write_text(f'{{"about": {json.dumps(results["about"])},\n"rows": {{\n{rows}\n}}}}\n')
    PAGE.write_text(text(results))
    PAGE.with_suffix(".svg").write_text(plot.svg(figures(results)))


def figures(results: Mapping[str, Any]) -> dict[str, dict[str, Figure]]:
    """The figures of each row."""
    return {
        name: {measure: of for measure, samples in found["samples"].items() if (of := figure(samples))}
        for name, found in results["rows"].items()
    }


def text(results: Mapping[str, Any]) -> str:
    """The page."""
    found, about = figures(results), results["about"]
    limit = (HERE / "adapters" / "limit.py").read_text().splitlines()
    values = {
        "about": _about(results), "throughput": table(found, THROUGHPUT), "waiting": table(found, WAITING),
        "marks": _marks(results, found), "ratios": ratios(found, CONTROL), "limits": ratios(found, LIMIT),
        "costs": costs(found, about["cores"]), "cores": str(about["cores"]), "behind": "\n".join(behind(found)),
        "lines": _log_lines(found), "promises": _promises(), "limit_lines": str(len(limit)),
        "server": about["server"], "rounds": str(about["rounds"]), "quiet": f"{QUIET:g}",
        "settings": _settings(results), "minutes": str(about["minutes"]),
        **{name: f"{size:,}" for name, size in about["sizes"].items()},
    }  # fmt: skip
    made = (HERE / "benchmarks.md").read_text()
    for name, value in values.items():
        made = made.replace(f"{{{name}}}", value)
    return made


def _about(results: Mapping[str, Any]) -> str:
    about, rows = results["about"], results["rows"].values()
    lost, again = (sum(row[name] for row in rows) for name in ("lost", "again"))
    went = f"{lost:,} were lost and {again:,} were run twice" if lost or again else "none was lost or run twice"
    return (
        f"Measured on {about['date']} with {about['server']} and Python {about['python']} on {about['cores']} cores "
        f"({about['machine']}), rounds: {about['rounds']}, in {about['minutes']} minutes. "
        f"{sum(row['calls'] for row in rows):,} calls were run and counted: {went}."
    )


def table(found: Mapping[str, Mapping[str, Figure]], measures: Iterable[str]) -> str:
    """Rows, and their figures for some measures."""
    chosen = [MEASURES[name] for name in measures]
    heads = [f"{each.title}, {each.unit}" if each.unit != "calls/s" else each.title for each in chosen]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for name, row in found.items():
        cells = [
            each.text(of.value) + ("°" if of.disturbed else "") if (of := row.get(each.name)) else "" for each in chosen
        ]
        lines.append(_row(name, cells))
    return "\n".join(lines)


def _row(name: str, cells: Iterable[str]) -> str:
    shown = f"**{name}**" if name == OURS else f"*{name}*" if name == LIMIT else name
    return f"| {shown} | " + " | ".join(cells) + " |"


def _marks(results: Mapping[str, Any], found: Mapping[str, Mapping[str, Figure]]) -> str:
    """What a reader has to know of single figures: how far samples lie apart, and why some are not there."""
    lines = []
    spreads = sorted(
        of.spread for row in found.values() for name, of in row.items() if name != "p99" and of.samples > 1
    )
    if spreads:
        lines.append(
            f"Half of what lies between the smallest and the largest sample is {_share(spreads[len(spreads) // 2])} of "
            f"the median in the middle of all figures, and {_share(spreads[int(len(spreads) * 0.9)])} in the worst "
            "tenth (p99 apart). **Differences below 20 % mean nothing.**"
        )
    if any(of.disturbed for row in found.values() for of in row.values()):
        lines.append(f"° Other programs took more than {QUIET:g} of a core during a sample that this rests on.")
    titles = {name: MEASURES[names[0]].title for name, names in WORKLOADS.items()}
    for name, row in results["rows"].items():
        for what, said in row["failed"].items():
            lines.append(": ".join([name, *([titles[what]] if what in titles else []), f"{said.rstrip('.: ')}."]))
        if row["lost"] or row["again"]:
            lines.append(f"{name}: of {row['calls']:,} calls {row['lost']:,} were lost, {row['again']:,} run twice.")
    return "\n\n".join(lines)


def _share(share: float) -> str:
    return f"{share * 100:.0f} %"


def ratios(found: Mapping[str, Mapping[str, Figure]], to: str) -> str:
    """The figures as multiples of those of this row."""
    control = found.get(to, {})
    chosen = [MEASURES[name] for name in (*THROUGHPUT, *WAITING) if name in control]
    lines = ["| | " + " | ".join(each.title for each in chosen) + " |", "|---|" + "---:|" * len(chosen)]
    for name, row in found.items():
        lines.append(
            _row(
                name,
                [
                    _number(row[each.name].value / control[each.name].value) if each.name in row else ""
                    for each in chosen
                ],
            )
        )
    return "\n".join(lines)


def _number(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}" if ratio >= 2 else f"{ratio:.2f}"


def costs(found: Mapping[str, Mapping[str, Figure]], cores: int) -> str:
    """What one call costs, and what the cores would allow."""
    heads = ["commands", "round trips", "worker, ms", "server, ms", "possible, calls/s"]
    heads += ["queue: commands", "round trips", "client, ms", "round trips, 100 publishers"]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for name, row in found.items():
        cells = [MEASURES[each].text(row[each].value) if each in row else "" for each in COSTS]
        spent = sum(row[each].value for each in ("worker", "server") if each in row)
        cells.append(f"{cores * 1000 / spent:,.0f}" if spent else "")
        cells += [MEASURES[each].text(row[each].value) if each in row else "" for each in PUBLISHING]
        lines.append(_row(name, cells))
    return "\n".join(lines)


def behind(found: Mapping[str, Mapping[str, Figure]]) -> Iterator[str]:
    """A line for each measure in which another library is better."""
    ours = found.get(OURS, {})
    none = True
    for name in (*THROUGHPUT, *WAITING):
        each = MEASURES[name]
        others = {row: of[name].value for row, of in found.items() if name in of and row not in (OURS, LINES, LIMIT)}
        if name not in ours or not others:
            continue
        mine = ours[name].value
        better = {row: value for row, value in others.items() if (value > mine if each.more else value < mine)}
        if better:
            none = False
            best = sorted(better.items(), key=lambda item: item[1], reverse=each.more)
            shown = ", ".join(f"{row} {each.text(value)}" for row, value in best[:3])
            more = f" and {len(best) - 3} more" if len(best) > 3 else ""
            apart = max(best[0][1], mine) / min(best[0][1], mine)
            within = "; less than 20 % apart" if apart < 1.2 else ""
            yield f"- **{each.title}**, {each.unit}: {shown}{more}; `core.tasks` {each.text(mine)}{within}."
    if none:
        yield "In none of these."


def _log_lines(found: Mapping[str, Mapping[str, Figure]]) -> str:
    """What the log lines cost, which are on as it comes."""
    pair = [found.get(name, {}).get("noop") for name in (OURS, LINES)]
    if not (pair[0] and pair[1]):
        return ""
    return (
        f"With a log line for each call, which is on as it comes, it is {pair[1].value:,.0f} no-op calls a second, "
        f"without {pair[0].value:,.0f}; the other libraries print none here."
    )


def _promises() -> str:
    lines = [
        "| | a call whose worker is killed | how one hears of the other | what it does not do |",
        "|---|---|---|---|",
    ]
    lines += [f"| {peer.title} | {peer.crash} | {peer.waits} | {peer.lacks} |" for peer in PEERS.values()]
    return "\n".join(lines)


def _settings(results: Mapping[str, Any]) -> str:
    lines = ["| | versions | settings |", "|---|---|---|"]
    for row in ROWS:
        if row.name in results["rows"]:
            versions = results["rows"][row.name]["versions"].items()
            lines.append(_row(row.name, [", ".join(f"{name} {number}" for name, number in versions), row.settings]))
    return "\n".join(lines)
