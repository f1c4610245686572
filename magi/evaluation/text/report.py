"""What a person looks at after an evaluation of prompts: figures as rows of text, a sheet of clips, and one page.

Knows results (magi.evaluation.text.result) and clips on disk, and measures nothing.
"""

import json
from collections.abc import Callable, Mapping

from PIL import Image

from magi.data.digit_captions import VALUES
from magi.data.sample_grid import contact_sheet, prompt_label
from magi.data.video_writer import write_png
from magi.evaluation.metrics.bootstrap import Estimate
from magi.evaluation.report import bounds_text, model_rows, png_base64, render_page
from magi.evaluation.text.result import ALL, Accuracy, Obeyed, TextResult, TextScores, TextTarget
from magi.evaluation.text.samples import SETS, TextEvaluation, read_clips
from magi.files import write_text

PAGE, SHEET = "report.html", "prompts.png"
SHEET_PROMPTS, SHEET_COLUMNS = 12, 8
FIGURES = (*VALUES, ALL)
TURN_HEAD = ("changed", "history", "clips", "new value", "old value", "digit kept")


def write_text_report(evaluation: TextEvaluation, result: TextResult) -> list[str]:
    """Write the page and a sheet of clips for each model into the folder of the evaluation; the files' names."""
    files, pictures = [], {}
    for name in evaluation.models:
        file = SHEET if len(evaluation.models) == 1 else f"{name}-{SHEET}"
        pictures[f"Twelve prompts, {name}"] = sheet = prompt_sheet(evaluation, name)
        write_png(evaluation.out / file, sheet)
        files.append(file)
    write_text(evaluation.out / PAGE, text_page(result, pictures))
    return [*files, PAGE]


def prompt_sheet(evaluation: TextEvaluation, name: str) -> Image.Image:
    """The first clips of a model, half of seen and half of held-out combinations, each beside its prompt."""
    rows, labels = [], []
    for one in evaluation.sets():
        if one.name in SETS and one.prompts is not None:
            first = 0 if one.name == "seen" else SHEET_PROMPTS // 2  # other digits than those above
            last = first + SHEET_PROMPTS // 2
            rows += list(read_clips(evaluation, name, one)[first:last])
            labels += [prompt_label(prompt) for prompt in one.prompts[first:last]]
    return contact_sheet(rows, columns=SHEET_COLUMNS, labels=labels)


def text_page(result: TextResult, pictures: Mapping[str, Image.Image]) -> str:
    """The page: figures, pictures (title -> picture), how it was measured."""
    return render_page(
        "text_report.html",
        result=result,
        card=result.card,
        accuracy_head=["", *FIGURES, "class kept"],
        accuracy_rows=accuracy_rows(result, _with_interval),
        target_text=target_text,
        swap_head=["changed", "pairs", "followed", *VALUES],
        swap_rows=_swap_rows,
        clip_head=["", *SETS],
        clip_rows=clip_rows(result),
        turn_head=TURN_HEAD,
        turn_rows=lambda scores: _turn_rows(scores, _with_interval),
        guidance_head=["guidance", *FIGURES, "class kept"],
        guidance_rows=_guidance_rows,
        empty_head=list(VALUES),
        empty_row=lambda scores: _figures(scores.empty_prompt, _with_interval),
        pictures={title: png_base64(picture) for title, picture in pictures.items()},
        model_rows=model_rows(result.models),
        card_text=json.dumps(result.card, indent=1),
    )


def accuracy_rows(result: TextResult, written: Callable[[Estimate], str]) -> list[list[str]]:
    """Chance, then every set of the real clips, of the autoencoders' and of the models': a figure an attribute."""
    rows = [["chance", *(f"{result.chance[of]:.3f}" for of in FIGURES), ""]]
    for name, sets in (*result.floors.items(), *((name, scores.obeyed) for name, scores in result.scores.items())):
        rows += [[f"{name}, {title}", *_obeyed_row(one, written)] for title, one in sets.items()]
    return rows


def clip_rows(result: TextResult) -> list[list[str]]:
    """CLIP scores with their intervals, a column a set."""
    return [
        [title, *(f"{one.value:.2f} ({one.low:.2f} to {one.high:.2f})" for one in sets.values())]
        for title, sets in result.clip_scores.items()
    ]


def terminal_rows(result: TextResult) -> list[str]:
    """The accuracies as lines, and how many targets each model meets."""
    lines = [f"{'':<28}" + "".join(f"{of:>12}" for of in (*FIGURES, "class kept"))]
    for row in accuracy_rows(result, _plain):
        lines.append(f"{row[0]:<28}" + "".join(f"{figure:>12}" for figure in row[1:]))
    lines += [f"CLIP score, {row[0]}: {', '.join(row[1:])}" for row in clip_rows(result)]
    for name, scores in result.scores.items():
        missed = [f"{target_text(target)} ({target.value:.3f})" for target in scores.targets if not target.met]
        met = len(scores.targets) - len(missed)
        lines.append(
            f"{name}: {met} of {len(scores.targets)} targets met" + (f"; missed: {'; '.join(missed)}" if missed else "")
        )
    return lines


def target_text(target: TextTarget) -> str:
    """A target in words."""
    return f"{target.what} {bounds_text(target.low, target.high)}"


def text_table(result: TextResult) -> str:
    """The accuracies as a Markdown table; below, how they were measured and which targets are missed."""
    lines = [
        "| | " + " | ".join((*FIGURES, "class kept")) + " |",
        "|---" + "|---:" * (len(FIGURES) + 1) + "|",
        *("| " + " | ".join(row) + " |" for row in accuracy_rows(result, _plain)),
    ]
    half = result.card["prompts"] // 2
    said = [
        f"{half} prompts of seen and {half} of held-out combinations, each naming all six attributes; "
        f"{result.card['frames']} frames from nothing."
    ]
    for name, scores in result.scores.items():
        missed = [target_text(target) for target in scores.targets if not target.met]
        said.append(f"{name}: " + (f"targets missed: {'; '.join(missed)}." if missed else "all targets are met."))
    return "\n".join([*lines, "", " ".join(said)])


def swap_table(scores: TextScores) -> str:
    """One attribute changed, as a Markdown table."""
    head = ["changed", "followed", *(f"{of} differs" for of in VALUES)]
    rows = [
        [name, _plain(one.followed), *(_plain(one.changed[of]) for of in VALUES)] for name, one in scores.swaps.items()
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def turn_table(scores: TextScores) -> str:
    """A prompt that changes in mid-video, as a Markdown table."""
    lines = ["| " + " | ".join(TURN_HEAD) + " |", "|---|---" + "|---:" * (len(TURN_HEAD) - 2) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in _turn_rows(scores, _plain))])


def guidance_table(scores: TextScores) -> str:
    """Guidance, as a Markdown table."""
    lines = ["| guidance | " + " | ".join((*FIGURES, "class kept")) + " |", "|---:" * (len(FIGURES) + 2) + "|"]
    rows = ([scale, *_obeyed_row(one, _plain)] for scale, one in scores.guidance.items())
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _turn_rows(scores: TextScores, written: Callable[[Estimate], str]) -> list[list[str]]:
    return [
        [name, way, str(one.clips), written(one.followed), written(one.stayed), written(one.digit_kept)]
        for name, ways in scores.turns.items()
        for way, one in ways.items()
    ]


def _swap_rows(scores: TextScores) -> list[list[str]]:
    return [
        [name, str(one.pairs), _with_interval(one.followed), *(_with_interval(one.changed[of]) for of in VALUES)]
        for name, one in scores.swaps.items()
    ]


def _guidance_rows(scores: TextScores) -> list[list[str]]:
    return [[scale, *_obeyed_row(one, _with_interval)] for scale, one in scores.guidance.items()]


def _obeyed_row(one: Obeyed, written: Callable[[Estimate], str]) -> list[str]:
    return [*_figures(one.accuracy, written), written(one.class_kept)]


def _figures(accuracy: Accuracy, written: Callable[[Estimate], str]) -> list[str]:
    return [written(found) for found in accuracy.values()]


def _plain(found: Estimate) -> str:
    return f"{found.value:.3f}"


def _with_interval(found: Estimate) -> str:
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
