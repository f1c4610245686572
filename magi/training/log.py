"""What a run tells: metrics.jsonl, a progress bar or plain lines, loss.png, and TensorBoard where asked for.

It knows numbers and files; no model or loop.
"""

import gc
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from magi.files import METRICS_FILE, atomic_write, write_text
from magi.training.run_folder import LOSS_FILE

_DRAW_SECONDS = 60
_DRAWN = ("loss", "mse", "gradient_norm")
_PLACES: dict[str, Any] = {
    "height_ratios": [3, 1], "left": 0.12, "right": 0.98, "bottom": 0.1, "top": 0.97, "hspace": 0.06
}  # fmt: skip
"""Of both plots in the picture, as shares of it. A layout found by measuring the labels takes most of the time."""
_LARGEST = 1e300  # a float has it, and comparing an integer of any length with it does not overflow


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl in order; one cut short by a crash, or that is no line of a log, is left out."""
    path = run / METRICS_FILE
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict) and type(values.get("step")) is int and all(map(_is_number, _numbers(values))):
            lines.append(values)
    return lines


def _numbers(values: Mapping[str, Any]) -> list[Any]:
    return [values[name] for name in ("step", "seconds", *_DRAWN) if name in values]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < _LARGEST


def drop_metrics_after(run: Path, step: int) -> None:
    """Forget lines past ``step``, which a resumed run writes again."""
    kept = [line for line in read_metrics(run) if line["step"] <= step]
    write_text(run / METRICS_FILE, "".join(json.dumps(line) + "\n" for line in kept))


def draw_losses(run: Path) -> None:
    """Draw loss.png from metrics.jsonl: the loss, its running mean, and the gradient norm, over steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [line for line in read_metrics(run) if line.keys() >= set(_DRAWN)]
    if not lines:
        return
    steps, figure = [line["step"] for line in lines], Figure(figsize=(8, 5))
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw=_PLACES)
    for name, colour in (("loss", "tab:blue"), ("mse", "tab:orange")):
        values = [line[name] for line in lines]
        upper.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        upper.plot(steps, _running_mean(values), color=colour, label=name)
    upper.set_yscale("log")
    upper.set_ylabel("loss")
    upper.legend()
    lower.plot(steps, [line["gradient_norm"] for line in lines], color="tab:gray", linewidth=0.8)
    lower.set_yscale("log")
    lower.set_ylabel("gradient norm")
    lower.set_xlabel("step")
    with atomic_write(run / LOSS_FILE) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
    # A figure is a circle of references. Training makes so few objects that the collector hardly ever comes by.
    del figure, upper, lower
    gc.collect()


def _running_mean(values: list[float]) -> list[float]:
    """Mean over the last 5 % of the values before each."""
    span = max(1, len(values) // 20)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[i + 1] - sums[max(0, i + 1 - span)]) / min(i + 1, span) for i in range(len(values))]


def readable_time(seconds: float) -> str:
    """Seconds as ``1 h 02 min``, ``3 min 20 s`` or ``12 s``."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class TrainingLog:
    """Writes a run's metrics and shows its progress; a context. A process that is not the first stays silent."""

    def __init__(self, run: Path, last: int, *, is_main: bool, tensorboard: bool = False, unit: str = "clips") -> None:
        self.run, self.step, self.first, self.last, self.is_main, self.unit = run, 0, 0, last, is_main, unit
        self.console = Console(highlight=False, soft_wrap=True)
        self.bar: Progress | None = None
        self.board = _tensorboard_writer(run) if is_main and tensorboard else None
        self.began = self._drawn = time.monotonic()
        self._marked = (self.began, 0)

    def from_step(self, first: int) -> Self:
        """Let the context show progress from ``first`` finished steps on."""
        self.step = self.first = first
        return self

    def __enter__(self) -> Self:
        if self.is_main and self.console.is_terminal:
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"))
            self.bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console)
            self.task = self.bar.add_task("training", total=self.last, completed=self.first, told="")
            self.bar.start()
        self.began = time.monotonic()
        self._marked = (self.began, self.first)
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()
        if self.board is not None:
            self.board.close()

    def say(self, text: str) -> None:
        """One line of text, above the bar if there is one; nobody's where standard output is full or gone."""
        if self.is_main:
            with suppress(OSError):
                self.console.print(text, markup=False)

    def rate(self, step: int) -> float:
        """Steps a second since the last call."""
        now = time.monotonic()
        before, at = self._marked
        self._marked = (now, step)
        return (step - at) / max(1e-9, now - before)

    def draw(self, at_once: bool) -> None:
        """Draw loss.png, unless it is a minute young and need not be drawn at once."""
        if self.is_main and (at_once or time.monotonic() - self._drawn > _DRAW_SECONDS):
            with self.going_on():
                draw_losses(self.run)
            self._drawn = time.monotonic()

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Context of what tells of a run: where the disk is full that is lost and said, the run itself goes on."""
        try:
            yield
        except OSError as error:
            self.say(f"{error.filename or self.run}: not written ({error.strerror or error}); training goes on")

    def advance(self, step: int) -> None:
        """Move the bar."""
        self.step = step
        if self.bar is not None:
            self.bar.update(self.task, completed=step)

    def write(self, values: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl and tell its main numbers."""
        if not self.is_main:
            return
        with self.going_on(), (self.run / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(values)) + "\n")
        if "loss" not in values:
            return
        quality = f"  psnr {values['psnr_db']:.1f} dB" if "psnr_db" in values else ""
        told = f"loss {values['loss']:.4f}{quality}  {values[f'{self.unit}_per_second']:.1f} {self.unit}/s"
        if self.bar is not None:
            self.bar.update(self.task, told=told)
        else:
            left = (time.monotonic() - self.began) / max(1, values["step"] - self.first) * (self.last - values["step"])
            self.say(f"step {values['step']}/{self.last}  {told}  {readable_time(left)} left")
        if self.board is not None:
            for name in ("loss", "mse", "vlb", "gradient_norm", "learning_rate"):
                self.board.add_scalar(name, values[name], values["step"])


def _tensorboard_writer(run: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("TensorBoard was asked for, but is not installed; pip install 'magi-video[track]'") from None
    return SummaryWriter(str(run / "tensorboard"))
