"""Trains in a run folder: the loop of steps, saving, and exact resuming (paper section 4); a MAGI, or another network.

The same call again continues a run; the losses that follow are equal to the bit to those of a run that was never
stopped (same machine, same numbers of processes and threads). It knows no command line and no sampling: contact
sheets are drawn by a callback.
"""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path

from magi.config import Config
from magi.config_files import dump_config
from magi.errors import CheckpointError, NumericsError, StoppedCleanly
from magi.files import CHECKPOINTS_FOLDER, CLASSES_FILE, CONFIG_FILE, TEXT_ENCODER_FILE, VAE_FOLDER, write_text
from magi.model.magi import Magi
from magi.training.batch import Clips, frozen_choice
from magi.training.checkpoint import (
    clear_unfinished,
    load_checkpoint,
    newest_checkpoint,
    quarantine_damaged,
    save_checkpoint,
)
from magi.training.log import TrainingLog, drop_metrics_after, read_metrics
from magi.training.parallelize import init_distributed
from magi.training.run_folder import STOP_FILE, STOPPED_FILE, StopRequest, locked
from magi.training.run_state import RunState, StepResult
from magi.training.trainer import Trainer
from magi.vae.contract import VideoAutoencoder
from magi.weights import step_folder

SKIPS_ALLOWED = 10
_REFUSED = -1.0


def train(
    config: Config,
    dataset: Clips,
    vae: VideoAutoencoder | None,
    model: Magi,
    run: Path,
    on_sample: Callable[[int, Magi], None] | None = None,
    *,
    classes: Sequence[str] = (),
    device: str = "auto",
    tensorboard: bool = False,
) -> None:
    """Train ``model`` on ``dataset`` in the folder ``run``, or continue the run that is there.

    ``dataset[g]`` is a ``Clip`` (encoded on the fly) or a ``LatentClip``. ``on_sample(step, ema_model)`` is called in
    the first process every ``training.sample_every`` steps and at the end. Raises ``StoppedCleanly`` after SIGINT,
    SIGTERM or a file ``stop`` in the folder (state saved, and a file ``stopped`` says so), ``NumericsError`` after 10
    non-finite steps in a row, ``CheckpointError`` if the run in the folder cannot be continued, ``ValueError`` if it is
    in use.
    """
    training = config.training
    with init_distributed(device) as process, locked(run) if process.is_main else nullcontext():
        trainer = Trainer(config, dataset, vae, model, process)
        continue_run(trainer, run)
        if process.is_main:
            _write_run(config, vae, classes, dataset, run, trainer.step)
        log = TrainingLog(run, training.steps, is_main=process.is_main, tensorboard=tensorboard)
        if trainer.step >= training.steps:
            log.say(f"{run}: all {training.steps} steps are done; raise training.steps to train on")
            return

        def after_step(step: int) -> None:
            due = step == training.steps or (training.sample_every and step % training.sample_every == 0)
            if on_sample is not None and due and (averaged := trainer.ema_model()) is not None:
                with log.going_on():
                    on_sample(step, averaged)

        run_steps(trainer, run, log, training.keep_checkpoints, after_step)
        process.barrier()


def continue_run(trainer: RunState, run: Path) -> None:
    """Restore the newest good checkpoint in every process, if there is one; all refuse where the first refuses."""
    process, step, found, refusal = trainer.process, 0.0, None, None
    if process.is_main:
        for name in (STOP_FILE, STOPPED_FILE):  # of an earlier stop, before any process looks for them
            (run / name).unlink(missing_ok=True)
        try:
            clear_unfinished(run)
            found = newest_checkpoint(run, trainer.check)
            step = 0.0 if found is None else float(found.step)
        except CheckpointError as error:
            step, refusal = _REFUSED, error
    (step,) = process.sum(step)
    if refusal is not None:
        raise refusal
    if step == _REFUSED:
        raise CheckpointError(f"{run}: the first process refused the checkpoint")
    if step:
        trainer.restore(found or load_checkpoint(run / CHECKPOINTS_FOLDER / step_folder(int(step))))
    if process.is_main:
        quarantine_damaged(run, int(step))
        drop_metrics_after(run, int(step))


def _write_run(
    config: Config, vae: VideoAutoencoder | None, classes: Sequence[str], dataset: Clips, run: Path, step: int
) -> None:
    """Make the folder self-contained: the config, the names of the classes and of the text encoder, the autoencoder."""
    write_text(run / CONFIG_FILE, dump_config(config))
    if step == 0:
        if (choice := frozen_choice(dataset)) is not None:
            choice.write(run / TEXT_ENCODER_FILE)
        write_text(run / CLASSES_FILE, json.dumps(list(classes), ensure_ascii=False) + "\n")
        if vae is not None:
            vae.save(run / VAE_FOLDER)


def run_steps(
    trainer: RunState, run: Path, log: TrainingLog, keep: int, after_step: Callable[[int], None] = lambda step: None
) -> None:
    """Take the steps that are left, and save: every so often, at the end, and where the run is asked to stop.

    ``after_step`` is called in every process. Raises what ``train`` does.
    """
    if trainer.step:
        log.say(f"continuing {run} after step {trainer.step}")
    with StopRequest(run) as stop, closing(trainer):
        trainer.start()
        with log.from_step(trainer.step):
            _loop(trainer, run, log, stop, keep, after_step)


def _loop(
    trainer: RunState, run: Path, log: TrainingLog, stop: StopRequest, keep: int, after_step: Callable[[int], None]
) -> None:
    settings, began, earlier = trainer.settings, time.monotonic(), _seconds_so_far(run)
    while trainer.step < settings.steps:
        result = trainer.take_step(lambda: stop.asked)
        step, last = trainer.step, trainer.step == settings.steps
        seconds = earlier + time.monotonic() - began
        log.advance(step)
        if result.skipped:
            _report_skip(trainer, log)
        elif step % settings.log_every == 0 or last:
            log.write(_metrics(trainer, result, log, seconds))
        if last or result.stop or step % settings.checkpoint_every == 0:
            _save(trainer, run, log, keep, required=last or result.stop)
        if result.stop and not last:
            if trainer.process.is_main:
                write_text(run / STOPPED_FILE, f"{step}\n")
            trainer.process.barrier()  # no process may leave while the first still saves: its launcher would end it
            raise StoppedCleanly(f"{run}: stopped after step {step}, state saved; the same command continues")
        after_step(step)


def _metrics(trainer: RunState, result: StepResult, log: TrainingLog, seconds: float) -> dict[str, float]:
    measures, batch = asdict(result), trainer.settings.batch
    return {
        "step": trainer.step,
        **{name: value for name, value in measures.items() if name not in ("skipped", "stop")},
        "learning_rate": trainer.learning_rate(trainer.step),
        log.unit: trainer.step * batch,
        f"{log.unit}_per_second": round(log.rate(trainer.step) * batch, 3),
        "seconds": round(seconds, 1),
    }


def _seconds_so_far(run: Path) -> float:
    return max((float(line.get("seconds", 0)) for line in read_metrics(run)), default=0.0)


def _report_skip(trainer: RunState, log: TrainingLog) -> None:
    """Name the samples of a non-finite step; ``NumericsError`` after ten in a row."""
    first = (trainer.step - 1) * trainer.settings.batch
    samples = list(range(first, first + trainer.settings.batch))
    log.write({"step": trainer.step, "skipped": True, "samples": samples})
    log.say(
        f"step {trainer.step}: non-finite loss or gradient; skipped, nothing changed; samples {first}..{samples[-1]}"
    )
    if trainer.skips_in_a_row >= SKIPS_ALLOWED:
        raise NumericsError(
            f"{SKIPS_ALLOWED} steps in a row had a non-finite loss or gradient, the last was step {trainer.step} "
            f"(samples {first}..{samples[-1]}); look at these, or lower learning_rate"
        )


def _save(trainer: RunState, run: Path, log: TrainingLog, keep: int, required: bool) -> None:
    """Save in the first process; a full disk ends the run only where there is no later chance (``required``)."""
    checkpoint = trainer.checkpoint()
    if not trainer.process.is_main:
        return
    try:
        save_checkpoint(run, checkpoint, keep)
    except OSError as error:
        if required:
            raise CheckpointError(f"{error}; free some space and give the same command again") from error
        log.say(f"{error}; training goes on and tries again")
    log.draw(at_once=required)
