"""Reports of the suite on paper: a table on a terminal, and the same in Markdown.

It reads the JSON that ``runner`` writes and knows neither torch nor cases, so a report can be read anywhere.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

FORMAT = 2
COLUMNS = ("case", "what", "ours", "baselines", "goals")
_SCALES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def load_report(path: Path) -> dict[str, Any]:
    """A report of the suite; ValueError for anything else."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable report of 'magi bench': {error}") from None
    if not isinstance(report, dict) or report.get("format") != FORMAT or not isinstance(report.get("cases"), list):
        raise ValueError(f"{path}: not a report of 'magi bench' (format {FORMAT}); measure again with this version")
    return report


def rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row of ``COLUMNS`` for every case."""
    return [_row(record) for record in report["cases"]]


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    name, what, unit = record["name"], record["description"], record["unit"]
    if "note" in record:
        what = f"{what} ({record['note']})"
    goals = "; ".join(_goal(goal) for goal in record["goals"])
    if record["status"] != "measured":
        reason = f"{record['status']}: {record['reason']}"
        return (name, what, "", "", f"{goals}; {reason}" if goals else reason)
    candidates = record.get("candidates", {})
    shown = {"seconds", *(f"x {other}" for other in candidates), *(goal["metric"] for goal in record["goals"])}
    more = ", ".join(f"{metric} {value:.4g}" for metric, value in record["metrics"].items() if metric not in shown)
    ours = [_time(candidates["ours"], unit)] if "ours" in candidates else []
    others = [f"{other}: {_time(times, unit)}" for other, times in candidates.items() if other != "ours"]
    left_out = record.get("shapes", {}).get("left out", {})
    others += [f"{other}: left out, {reason}" for other, reason in left_out.items()]
    return (name, what, "; ".join(filter(None, [*ours, more])), "; ".join(others), goals)


def _goal(goal: dict[str, Any]) -> str:
    """The metric, its value, what it is held to, and the verdict."""
    sign = "<=" if goal["smaller"] else ">="
    held_to = f"{goal['metric']} {sign} {goal['threshold']:g} (target {goal['target']:g})"
    if goal["value"] is None:
        return held_to
    return f"{held_to}: {goal['value']:.4g}, {goal['verdict']}"


def _time(times: dict[str, Any], unit: str) -> str:
    """The median, and how far the rounds spread around it."""
    median = times["median_seconds"]
    spread = (times["highest_seconds"] - times["lowest_seconds"]) / median / 2
    for scale, name in _SCALES:
        if median >= scale:
            return f"{median / scale:.3g} {name}/{unit} ±{spread:.0%}"
    return f"{median:.3g} s/{unit}"


def print_table(report: dict[str, Any], console: Console) -> None:
    """The table of one report on a terminal."""
    table = Table(title=title(report), show_lines=False)
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for row in rows(report):
        table.add_row(*row)
    console.print(table)


def title(report: dict[str, Any]) -> str:
    """Where, when and with what a report was made."""
    machine = report["machine"]
    where = machine.get("gpu") or f"{machine['processor']}, {machine['threads']} threads"
    smoke = "; smoke shapes, no speed" if report["smoke"] else ""
    return f"{where}; torch {machine['torch']}; {machine['when'][:10]}; load {machine['load'][0]}{smoke}"


def markdown(reports: Sequence[dict[str, Any]], names: Sequence[str] = ()) -> str:
    """The tables of several reports in Markdown, without what they did not measure; of ``names`` that is listed."""
    lines: list[str] = []
    measured: set[str] = set()
    for report in reports:
        lines += [f"{title(report)}:", "", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
        found = {record["name"]: row for record, row in zip(report["cases"], rows(report), strict=True)
                 if record["status"] == "measured" or record["kind"] == report["device"]}  # fmt: skip
        lines += ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in found.values()]
        lines.append("")
        measured |= found.keys()
    if missing := [f"`{name}`" for name in names if name not in measured]:
        lines += [f"Not measured yet: {', '.join(missing)}.", ""]
    return "\n".join(lines[:-1])
