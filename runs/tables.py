"""Writes the generated tables of README and docs from the JSON files in results/, one function each.

    python runs/tables.py [NAME ...]          NAME as in TABLES; none: all

A table stands between the lines ``<!-- results:NAME:begin -->`` and ``end``. No number in a page is typed by hand.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from magi.bench.report import load_report, markdown, title
from magi.bench.suite import CASES
from magi.evaluation.plots import METRIC_TITLES
from magi.evaluation.protocol.result import EvaluationResult, JudgedTarget, read_result
from magi.evaluation.report import bounds_text, metric_titles, score_rows, target_text
from magi.evaluation.text.report import guidance_table, swap_table, text_table, turn_table
from magi.evaluation.text.result import TextResult, TextTarget, read_text_result
from magi.files import write_markdown_block

ROOT = Path(__file__).parents[1]
TEXT = "results/text.json"
NOT_MEASURED = "Not measured yet."
FEW_STEPS = {"class_accuracy": ("5-16", "17-104"), "position_error_px": ("5-16",), "intensity_ratio": ("17-104",)}
"""Metrics and frames of the table of few steps."""


def targets(root: Path = ROOT) -> None:
    """What every shipped model was measured to do, and should, in the README."""
    results, text_path = [read_result(root / f"results/{name}.json") for name in ("digits", "world")], root / TEXT
    text = read_text_result(text_path) if text_path.is_file() else None  # until runs/text.sh has been run
    write_markdown_block(root / "README.md", "targets", targets_table(results, text))


def digits(root: Path = ROOT) -> None:
    """The ground-truth metrics of the shipped model of digits, in the page on evaluation."""
    page = root / "docs/evaluation.md"
    write_markdown_block(page, "digits", ground_truth_table(read_result(root / "results/digits.json")))


def digits3d(root: Path = ROOT) -> None:
    """The Frechet video distance of the shipped model, in the page on evaluation."""
    page = root / "docs/evaluation.md"
    write_markdown_block(page, "digits3d", score_table(read_result(root / "results/digits3d.json")))


def bench(root: Path = ROOT) -> None:
    """The speed cases of every machine that was measured, in the page on performance."""
    reports = [load_report(path) for path in sorted((root / "results").glob("bench_*.json"))]
    write_markdown_block(root / "docs/performance.md", "bench", markdown(reports, [case.name for case in CASES]))


def few_steps(root: Path = ROOT) -> None:
    """Denoising steps and passes of the shipped model of digits, in the page on performance."""
    path = root / "results/few_steps.json"
    report = json.loads(path.read_text("utf-8")) if path.exists() else None
    write_markdown_block(root / "docs/performance.md", "few_steps", few_steps_table(report))
    write_markdown_block(root / "docs/performance.md", "first_frames", first_frames_table(report))


def state(root: Path = ROOT) -> None:
    """Gated linear attention against softmax, by frames in view, in the page on performance."""
    reports = [load_report(path) for path in sorted((root / "results").glob("bench_*.json"))]
    write_markdown_block(root / "docs/performance.md", "state", state_table(reports))


def speed(root: Path = ROOT) -> None:
    """Three of these that need no explanation, in the README."""
    cpu, gpu = (load_report(root / f"results/bench_{name}.json") for name in ("cpu", "h200"))
    write_markdown_block(root / "README.md", "speed", speed_table(cpu, gpu))


def studies(root: Path = ROOT) -> None:
    """Every result of a study, in the page on studies."""
    from runs.study_page import listing

    write_markdown_block(root / "docs/studies.md", "studies", "\n".join(listing(root / "results/studies")))


def world(root: Path = ROOT) -> None:
    """The shipped world model against the exact simulator, in the page on worlds."""
    write_markdown_block(root / "docs/worlds.md", "world", world_table(read_result(root / "results/world.json")))


def game(root: Path = ROOT) -> None:
    """A recorded game that a model was trained on (runs/game.sh), in the page on worlds."""
    write_markdown_block(root / "docs/worlds.md", "game", world_table(read_result(root / "results/game.json")))


def text(root: Path = ROOT) -> None:
    """How the shipped model of captioned digits obeys prompts, in the page on text."""
    result, page = read_text_result(root / TEXT), root / "docs/text.md"
    (scores,) = result.scores.values()
    write_markdown_block(page, "text", text_table(result))
    write_markdown_block(page, "text-swaps", swap_table(scores))
    write_markdown_block(page, "text-turns", turn_table(scores) if scores.turns else NOT_MEASURED)
    write_markdown_block(page, "text-guidance", guidance_table(scores) if scores.guidance else NOT_MEASURED)


def play(root: Path = ROOT) -> None:
    """From a key to its pixels in a real browser, in the page on play."""
    write_markdown_block(root / "docs/play.md", "play", play_table(_key_report(root)))


def latency(root: Path = ROOT) -> None:
    """The same in a sentence, in the README."""
    write_markdown_block(root / "README.md", "latency", latency_line(_key_report(root)))


def _key_report(root: Path) -> dict[str, Any] | None:
    """What ``runs/play_latency.py`` has written; None before."""
    path = root / "results/play.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def latency_line(report: dict[str, Any] | None) -> str:
    """From a key to its pixels, with the machine to itself and with a core of it busy."""
    if report is None:
        return "`python runs/play_latency.py` measures in a browser how long a key takes to its pixels."
    free, busy = ([f"{case['latency_ms'][share]:.0f}" for share in ("p50", "p95")] for case in report["cases"])
    return (
        f"From a key to its pixels in a browser, at {report['fps']:g} frames a second on {report['machine']['cores']} "
        f"CPU cores ({report['machine']['processor']}): {free[0]} ms, 95 % within {free[1]}; with one of the cores "
        f"busy {busy[0]}, 95 % within {busy[1]}."
    )


def play_table(report: dict[str, Any] | None) -> str:
    """What half and 95 % of the keys took, by part and with something else at work; below, what making a frame took."""
    if report is None:
        return NOT_MEASURED
    cases, machine, parts = report["cases"], report["machine"], report["frame_parts_ms"]
    busy = [f"{share}, cores busy: {case['busy_cores']}" for case in cases for share in ("half", "95 %")]
    lines = ["| within ms | " + " | ".join(busy) + " |", "|---" + "|---:" * len(busy) + "|"]
    for part, found in (
        *((name, [case["parts_ms"][name] for case in cases]) for name in cases[0]["parts_ms"]),
        ("**key to pixels**", [case["latency_ms"] for case in cases]),
    ):
        figures = [f"{one[share]:.0f}" for one in found for share in ("p50", "p95")]
        lines.append(f"| {part} | " + " | ".join(figures) + " |")
    made = ", ".join(f"{part} {took:.1f} ms" for part, took in parts.items())
    verdicts = ", ".join(
        f"{case['latency_ms']['p95']:.0f} of {case['wanted_p95_ms']:g} ms wanted"
        + ("" if case["latency_ms"]["p95"] <= case["wanted_p95_ms"] else " (missed)")
        for case in cases
    )
    shown = " and ".join(f"{case['frames_a_second']:.1f}" for case in cases)
    return "\n".join(
        [
            *lines,
            "",
            f"`{report['model']}` at {report['fps']:g} frames a second ({shown} shown), {cases[0]['keys']} keys each, "
            f"{machine['cores']} cores ({machine['processor']}); 95 % within {verdicts}. *wait* holds the way of the "
            f"key to the server, *network* what a frame took longer than the fastest. A frame alone, without a "
            f"browser (threads: {machine['threads']}): {made}.",
        ]
    )


def few_steps_table(report: dict[str, Any] | None) -> str:
    """A row for each setting of ``runs/few_steps.py``; below, how they were measured."""
    if report is None:
        return NOT_MEASURED
    columns = [(frames, metric) for metric, parts in FEW_STEPS.items() for frames in parts]
    titles = "".join(f"{METRIC_TITLES[metric]}, {frames} | " for frames, metric in columns)
    lines = [
        f"| | steps | passes | {titles}ms |",
        "|---|---:|---:|" + "---:|" * (len(columns) + 1),
    ]
    for row in report["rows"]:
        sampling, ms = row["sampling"], row["ms"]
        cost = f"{sampling['steps']} | {sampling['iterations'] + 1}" if sampling else " | "
        found = [row["figures"][frames][metric] for frames, metric in columns]
        cells = [f"{one['value']:.2f} ({one['low']:.2f} to {one['high']:.2f})" for one in found]
        took = f"{ms['p50']:.1f} ({ms['p95']:.1f})" if ms else ""
        lines.append(f"| {row['name']} | {cost} | " + "".join(f"{cell} | " for cell in cells) + f"{took} |")
    machine = report["machine"]
    timed = (
        f"*ms* is half of the frames (95 % of them), one video, decoding included, {machine['threads']} threads "
        f"({machine['processor']}), load {machine['load'][0]:g} as the timing began."
    )
    how = (
        f"{report['clips']} held-out clips continued from 4 frames to 104, class not given, intervals of 95 %. *Steps* "
        f"are of a token, *passes* of the transformer a frame, one of which adds it to the history. "
        + (timed if any(row["ms"] for row in report["rows"]) else "Times wait for a machine without other work.")
    )
    return "\n".join([*lines, "", how])


def first_frames_table(report: dict[str, Any] | None) -> str:
    """First frames from nothing by iterations."""
    if report is None:
        return NOT_MEASURED
    found = report["first_frames"]
    head = "| iterations | " + " | ".join(found["in_one_piece"]) + " |"
    share = "| first frames in one piece | " + " | ".join(f"{one:.2f}" for one in found["in_one_piece"].values()) + " |"
    return "\n".join([head, "|---" + "|---:" * len(found["in_one_piece"]) + "|", share])


def play_load(root: Path = ROOT) -> None:
    """Many players at once, in the page on play."""
    report = json.loads((root / "results/play_load.json").read_text("utf-8"))
    write_markdown_block(root / "docs/play.md", "play_load", load_line(report))


def load_line(report: dict[str, Any]) -> str:
    """How even their shares were, and whether memory grew."""
    machine, frames, memory = report["machine"], report["frames"], report["memory_bytes"]
    return (
        f"{report['players']} players for {report['took_s'] / 60:.0f} minutes on {machine['cores']} cores "
        f"({machine['processor']}, load {machine['load'][0]:.0f} when it began), asked for {report['fps']:g} frames a "
        f"second: {min(frames):,} to {max(frames):,} frames each, so the fewest are "
        f"{100 * report['fewest_over_most']:.0f} % of the most; {memory[-1] / 1e6:.0f} MB of memory at the end, "
        f"{report['memory_grew_bytes'] / 1e6:.1f} MB more than after a tenth of the time."
    )


def world_long(root: Path = ROOT) -> None:
    """The same over 1,000 frames, in the page on worlds."""
    result = read_result(root / "results/world_long.json")
    write_markdown_block(root / "docs/worlds.md", "world_long", world_table(result))


def survival(root: Path = ROOT) -> None:
    """How often each promise was tried and not kept, in the page on reliability."""
    reports = [json.loads(path.read_text("utf-8")) for path in sorted((root / "results/survival").glob("*.json"))]
    write_markdown_block(root / "docs/reliability.md", "survival", survival_table(reports))


def state_table(reports: list[dict[str, Any]]) -> str:
    """A row for each number of frames in view, of every machine that was measured; the state's figures are one."""
    lines = []
    for report in reports:
        for record in report["cases"]:
            if record["name"] in ("cpu.state", "time.state") and record["status"] == "measured":
                lines += [*_state_rows(title(report), record), ""]
    return "\n".join(lines[:-1]) if lines else NOT_MEASURED


def _state_rows(machine: str, record: dict[str, Any]) -> list[str]:
    shapes, times, layers = record["shapes"], record["candidates"], record["metrics"]

    def cells(name: str) -> str:
        frame, layer = times[name]["median_seconds"], layers[f"layer us, {name}"]
        return f"{shapes['bytes'][name] / 1e6:,.1f} MB | {frame * 1e3:,.3g} ms | {layer:,.0f} µs"

    names = {f"softmax, {known:,} frames in view": f"cache of {known} frames" for known in shapes["frames in view"]}
    model = f"{shapes['blocks']} blocks of width {shapes['width']}, {shapes['positions']} positions, {shapes['dtype']}"
    return [
        f"{machine}; {model}, {shapes['passes a frame']} passes a frame, without the head:",
        "",
        "| | memory | a frame | one layer of a pass |",
        "|---|---:|---:|---:|",
        f"| gated_linear, any number | {cells('ours')} |",
        *(f"| {label} | {cells(name)} |" for label, name in names.items()),
    ]


def survival_table(reports: list[dict[str, Any]]) -> str:
    """A row for each promise; one that was tried less often than it is meant to be says so."""
    lines = ["| promise | tries | not kept | each must |", "|---|---:|---:|---|"]
    for report in reports:
        short = "" if report["n"] >= report["wanted"] else f" (of {report['wanted']} meant)"
        lines.append(f"| `{report['promise']}` | {report['n']}{short} | {report['failures']} | {report['goal']} |")
    failed = []
    for report in reports:
        for what, times in Counter(report["failed"]).items():
            failed.append(f"- `{report['promise']}`: {what}" + (f" ({times} times)" if times > 1 else ""))
    return "\n".join([*lines, "", *(["Not kept:", "", *failed] if failed else ["All were kept."])])


def world_table(result: EvaluationResult) -> str:
    """A row for each series, over all generated frames; below, how they were measured."""
    scores, protocol = result.ground_truth, result.protocol
    assert scores is not None, "a table of a world needs a result of the protocol 'world' or 'game'"
    frames = f"{protocol['context_frames'] + 1}-{protocol['frames']}"
    titles = list(metric_titles(scores).values())
    titles += ["obeyed at the first frame", "median survival (frames)"] if scores.reactions else []
    lines = ["| " + " | ".join([f"frames {frames}", *titles]) + " |", "|---" + "|---:" * len(titles) + "|"]
    for name, series in scores.series.items():
        figures = [f"{found.value.value:.3f}" for found in series.ranges[frames].values()]
        if scores.reactions:
            at_once = scores.reactions[name][0] / max(1, sum(scores.reactions[name]))
            figures += [f"{at_once:.3f}", f"{scores.median_survival[name]:g}"]
        lines.append("| " + " | ".join([name, *figures]) + " |")
    how = f"{protocol['count']} held-out clips, {protocol['context_frames']} context frames, the clips' own actions."
    if scores.inverse_dynamics_videos:
        how += (
            f" The network that reads the actions was trained on {scores.inverse_dynamics_videos} other videos, as "
            "recorded and as reconstructed."
        )
    return "\n".join([*lines, "", f"{how}{_missed(result)}"])


def targets_table(results: list[EvaluationResult], text: TextResult | None = None) -> str:
    """A row for each target of each model at full speed, beside what the autoencoder alone leaves of real videos."""
    lines = ["| model | figure | autoencoder alone | model | target |", "|---|---|---:|---:|---|"]
    for result in results:
        scores = result.ground_truth
        assert scores is not None, "a target needs a result of a protocol with ground truth"
        for name, judged in scores.targets.items():
            if name.endswith("-fast"):  # the same models in fewer steps are in the table of their page
                continue
            for target in judged:
                floor = scores.series["vae"].ranges[target.frames][target.metric].value.value
                start, _, end = target.frames.partition("-")
                what = f"{METRIC_TITLES[target.metric]}, frame{f' {end}' if start == end else f's {start} to {end}'}"
                lines.append(_target_row(name, what, floor, target))
    count = {result.protocol["count"] for result in results}
    assert len(count) == 1, "one sentence says how many clips all were measured on"
    how = [f"Each on {count.pop()} held-out clips, of which a model sees the first 4 frames."]
    if text is not None:
        how = [how[0].replace("Each", "Without text each"), f"Of text on {text.card['prompts']} prompts, from nothing."]
        for name, scores in text.scores.items():
            for one in scores.targets:
                lines.append(_target_row(name, one.what, one.floor, one))
    return "\n".join([*lines, "", " ".join(how)])


def _target_row(name: str, what: str, floor: float, judged: JudgedTarget | TextTarget) -> str:
    bounds = bounds_text(judged.low, judged.high) + ("" if judged.met else " (missed)")
    return f"| `{name}` | {what} | {floor:.3g} | {judged.value:.3g} | {bounds} |"


def ground_truth_table(result: EvaluationResult) -> str:
    """A row for each series, for the near and the far frames; below, how they were measured."""
    scores, protocol = result.ground_truth, result.protocol
    assert scores is not None, "a table of ground truth needs a result of the protocol 'digits'"
    ranges = list(next(iter(scores.series.values())).ranges)[:2]
    columns = [(frames, metric) for frames in ranges for metric in metric_titles(scores)]
    lines = [
        "| frames " + "".join(f"| {frames}: {METRIC_TITLES[metric]} " for frames, metric in columns) + "|",
        "|---" + "|---:" * len(columns) + "|",
    ]
    for name, series in scores.series.items():
        figures = "".join(f"| {series.ranges[frames][metric].value.value:.2f} " for frames, metric in columns)
        lines.append(f"| {name} {figures}|")
    given = "not given" if protocol["labels"] == "none" else "given"
    how = (
        f"{protocol['count']} held-out clips, {protocol['context_frames']} context frames, class {given}. The "
        f"classifier behind *class accuracy* is right on {scores.classifier_accuracy:.2%} of {scores.classifier_clips} "
        f"clean held-out digits."
    )
    return "\n".join([*lines, "", f"{how}{_missed(result)}"])


def _missed(result: EvaluationResult) -> str:
    """The targets that are missed, in words; nothing where no target is for these frames."""
    scores = result.ground_truth
    if scores is None or not any(scores.targets.values()):
        return ""
    missed = {
        name: ", ".join(target_text(target) for target in judged if not target.met)
        for name, judged in scores.targets.items()
    }
    said = "; ".join(f"{name} ({targets})" for name, targets in missed.items() if targets)
    return f" Targets missed: {said}." if said else " All targets are met."


def speed_table(cpu: dict[str, Any], gpu: dict[str, Any]) -> str:
    """A frame of a small model on a CPU, the same late in a long video, and a frame of the paper's model on a GPU."""
    cases = {record["name"]: record for report in (cpu, gpu) for record in report["cases"]}
    small, late, paper = (cases[name] for name in ("cpu.e2e", "cpu.long", "sample.b1"))
    cores = f"{cpu['machine']['threads']} CPU cores ({cpu['machine']['processor']})"
    older = ", measured with an older version" if "note" in paper else ""

    def size(record: dict[str, Any]) -> str:
        return f"{record['shapes']['parameters'] / 1e6:,.0f} M parameters"

    def times(record: dict[str, Any]) -> str:
        return f"{record['metrics']['x eager']:.1f} times as fast as the plain sampler"

    frame = small["metrics"]["seconds"] / small["shapes"]["frames"]
    return "\n".join(
        [
            "| one latent frame, under guidance | time | compared |",
            "|---|---:|---|",
            f"| a model of the shipped one's size ({size(small)}), {cores} | {frame * 1e3:.0f} ms | {times(small)} |",
            f"| the same after 100 frames, in a sliding window | {late['metrics']['seconds'] * 1e3:.0f} ms | "
            f"{late['metrics']['late over early']:.2f} times as long as after 10 frames |",
            f"| the paper's model ({size(paper)}), one {gpu['machine']['gpu']}{older} | "
            f"{paper['metrics']['seconds']:.2f} s | {times(paper)} |",
            "",
            "The plain sampler is MAR's way of sampling, with the same weights, in the same run.",
        ]
    )


def score_table(result: EvaluationResult) -> str:
    """The scores by a Frechet distance; below, how they were measured."""
    protocol, versions = result.protocol, result.card["versions"]
    lines = [f"| | {result.score_name} |", "|---|---:|", *(f"| {what} | {text} |" for what, text in score_rows(result))]
    how = (
        f"Protocol {protocol['name']}: {protocol['count']} clips a side, {protocol['frames']} frames, "
        f"{protocol['context_frames']} of them given; 95% intervals; lower is better, and the floor is as low as a "
        f"model can be expected to come. Card {result.card_sha256[:16]}, torch {versions['torch']}."
    )
    return "\n".join([*lines, "", how])


_TABLES = (
    bench, digits, digits3d, few_steps, game, latency, play, play_load, speed, state, studies, survival, targets, text,
    world, world_long,
)  # fmt: skip
TABLES: dict[str, Callable[..., None]] = {table.__name__: table for table in _TABLES}


def main(names: list[str]) -> None:
    """Write the tables called ``names``, or all."""
    for name in names or TABLES:
        if name not in TABLES:
            raise SystemExit(f"tables: no table '{name}'; there are: {', '.join(TABLES)}")
        TABLES[name]()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # the studies are not installed
    main(sys.argv[1:])
