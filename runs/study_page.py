"""What docs/studies.md says of all results of studies; ``python runs/tables.py studies`` writes it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studies.results import CLAIMS, interval_of, read_report, verdict_of


def listing(results: Path) -> list[str]:
    """What docs/studies.md says of every study: a row each, then every result with its statements and its picture."""
    found = {study: [read_report(path) for path in sorted(results.glob(f"{study}-*.json"))] for study in CLAIMS}
    rows = ["| study | claim of the paper | here |", "|---|---|---|"]
    for study, claim in CLAIMS.items():
        verdicts = [f"{report['scale']}: **{report['verdict']}**, {_supported(report)}" for report in found[study]]
        rows.append(f"| `{study}` | {claim} | {'<br>'.join(verdicts) or 'not run'} |")
    return rows + [line for reports in found.values() for report in reports for line in _section(report)]


def _supported(report: Mapping[str, Any]) -> str:
    statements = report["statements"]
    return f"{sum(part['verdict'] == 'supported' for part in statements)} of {len(statements)} statements supported"


def _section(report: Mapping[str, Any]) -> list[str]:
    """A result: how to repeat it, each statement with its effect and verdict, what to know, the picture."""
    name = f"{report['study']}-{report['scale']}"
    statements = [
        f"| {part['text']} | {part['quantity']} | {interval_of(part['effect'])} | {verdict_of(part)} |"
        for part in report["statements"]
    ]
    return [
        "",
        f"### {report['study']}, {report['scale']}: {report['verdict']}",
        "",
        f"`{report['settings']['command']}`" + "".join(f"; {note}" for note in report["notes"]) + ".",
        "",
        "| statement | quantity | effect and its interval | here |",
        "|---|---|---|---|",
        *statements,
        "",
        f"![{name}](../results/studies/{name}.png)",
    ]
