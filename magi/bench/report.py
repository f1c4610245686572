"""Reports of the suite on paper: a table, the same in Markdown between markers of a file, and what moved.

It reads the JSON that ``runner`` writes and knows neither torch nor cases, so a report can be read anywhere.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

COLUMNS = ("case", "what", "ours", "baselines", "goal", "got", "verdict")
_SCALES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


@dataclass(frozen=True)
class Row:
    """One line of the table, a goal of a case (or a case without goals)."""

    case: str
    what: str
    ours: str
    baselines: str
    goal: str
    got: str
    verdict: str

    def cells(self) -> tuple[str, ...]:
        """In the order of ``COLUMNS``."""
        return (self.case, self.what, self.ours, self.baselines, self.goal, self.got, self.verdict)


def load_report(path: Path) -> dict[str, Any]:
    """A report of the suite; ValueError for anything else."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable report of 'magi bench': {error}") from None
    if not isinstance(report, dict) or report.get("format") != 1 or not isinstance(report.get("cases"), list):
        raise ValueError(f"{path}: not a report of 'magi bench' (format 1)")
    return report


def merged(parts: Mapping[str, dict[str, Any]], notes: Mapping[str, str] | None = None) -> dict[str, Any]:
    """One report of several runs on the same kind of device, ``parts`` by the name of their file.

    Of each case the last number counts: a later measurement replaces an earlier one, and a case without a number
    replaces none with one. What has a number says in ``source`` which file it is from and on what and when that was
    made; ``notes`` are added to cases by name. ValueError for reports of different devices, for smoke tests, and for a
    note on a case that none of them has.
    """
    first = next(iter(parts.values()))
    found: dict[str, dict[str, Any]] = {}
    for file, report in parts.items():
        _check_alike(file, report, next(iter(parts)), first)
        for record in report["cases"]:
            known = found.get(record["name"])
            if record["status"] == "measured":
                source = record.get("source", {"file": Path(file).name, "machine": report["machine"]})
                found[record["name"]] = {**record, "source": source}
            elif known is None or known["status"] != "measured":
                found[record["name"]] = record
    for name, note in (notes or {}).items():
        if name not in found:
            raise ValueError(f"--note {name}=...: none of these reports has that case")
        found[name] = {**found[name], "note": note}
    newest = max(parts.values(), key=lambda report: str(report["machine"]["when"]))
    return {**newest, "cases": list(found.values())}


def _check_alike(file: str, report: dict[str, Any], first_file: str, first: dict[str, Any]) -> None:
    if report["smoke"]:
        raise ValueError(f"{file}: a smoke test, which measures nothing; leave it out")
    for what, got, expected in (
        ("device", report["device"], first["device"]),
        ("machine", _chip(report), _chip(first)),
    ):
        if got != expected:
            raise ValueError(
                f"{file}: {what} is {got}, that of {first_file} is {expected}; merge reports of one machine"
            )


def _chip(report: dict[str, Any]) -> str:
    return str(report["machine"].get("gpu") or report["machine"]["processor"])


def rows(reports: Sequence[dict[str, Any]]) -> list[Row]:
    """The rows of several reports as one table: of each case the first report that has a number."""
    best: dict[str, dict[str, Any]] = {}
    for report in reports:
        for record in report["cases"]:
            known = best.get(record["name"])
            if known is None or (known["status"] != "measured" and record["kind"] == report["device"]):
                best[record["name"]] = record
    return [row for record in best.values() for row in _rows_of(record)]


def _rows_of(record: dict[str, Any]) -> Iterable[Row]:
    name, unit, measures = record["name"], record["unit"], record["measures"]
    if "note" in record:
        measures = f"{measures} ({record['note']})"
    if record["status"] != "measured":
        goals = "; ".join(_goal(goal) for goal in record["goals"])
        yield Row(name, measures, "", "", goals, "", f"{record['status']}: {record['reason']}")
        return
    contenders = record.get("contenders", {})
    said = {"seconds", *(f"x {other}" for other in contenders), *(goal["metric"] for goal in record["goals"])}
    more = _listed({metric: value for metric, value in record["metrics"].items() if metric not in said})
    ours = "; ".join(filter(None, [_time(contenders["ours"], unit) if "ours" in contenders else "", more]))
    told = [f"{other}: {_time(times, unit)}" for other, times in contenders.items() if other != "ours"]
    left_out = record.get("shapes", {}).get("left out", {})
    baselines = "; ".join([*told, *(f"{other}: left out, {reason}" for other, reason in left_out.items())])
    if not record["goals"]:
        yield Row(name, measures, ours, baselines, "", "", "reported")
    for number, goal in enumerate(record["goals"]):
        value = "" if goal["value"] is None else f"{goal['value']:.4g}"
        first = number == 0
        yield Row(
            name if first else "",
            measures if first else "",
            ours if first else "",
            baselines if first else "",
            _goal(goal),
            value,
            goal["verdict"],
        )


def _goal(goal: dict[str, Any]) -> str:
    sign = "<=" if goal["smaller"] else ">="
    return f"{goal['metric']} {sign} {goal['must']:g} (reach {goal['reach']:g})"


def _listed(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


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
    for row in rows([report]):
        table.add_row(*row.cells())
    console.print(table)


def title(report: dict[str, Any]) -> str:
    """Where and with what a report was made."""
    machine = report["machine"]
    where = machine.get("gpu") or f"{machine['processor']}, {machine['threads']} threads"
    smoke = "; smoke shapes, no speed" if report["smoke"] else ""
    return f"{where}; torch {machine['torch']}; {machine['when'][:10]}; load {machine['load'][0]}{smoke}"


def markdown(reports: Sequence[dict[str, Any]]) -> str:
    """The same as a table in Markdown, of several reports."""
    lines = [f"Measured on {'; and on '.join(title(report) for report in reports)}.", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cell.replace("|", "/") for cell in row.cells()) + " |" for row in rows(reports)]
    return "\n".join(lines)


def comparison(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """What moved: (case, metric, old, new, new over old) of every metric that either report has."""
    before = {record["name"]: record for record in old["cases"]}
    after = {record["name"]: record for record in new["cases"]}
    found = []
    for name in list(before) + [name for name in after if name not in before]:
        was = before.get(name, {}).get("metrics", {})
        now = after.get(name, {}).get("metrics", {})
        for metric in list(was) + [metric for metric in now if metric not in was]:
            a, b = was.get(metric), now.get(metric)
            change = f"{b / a:.3f}" if a and b is not None else ""
            found.append((name, metric, _figure(a), _figure(b), change))
    return found


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"
