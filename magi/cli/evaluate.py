"""``magi evaluate``: scores by named protocols, their rank, and the weights of feature networks."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

import tyro

from magi.cli.data import parse_worker
from magi.cli.options import Device, Speed, check_device, checked, existing_folder, parse
from magi.config import DataConfig
from magi.files import METRICS_FILE
from magi.progress import Report, progress

if TYPE_CHECKING:
    from magi.evaluation.networks.features import FeatureNetwork
    from magi.evaluation.protocol.features import Metrics
    from magi.evaluation.protocol.protocols import EvaluationProtocol
    from magi.evaluation.text.clip_score import ClipScore
    from magi.sampling.pipeline import MagiPipeline

Kind = Literal["i3d", "i3d-torchscript", "inception", "alexnet", "vgg16", "lpips-alex", "lpips-vgg"]


@dataclass(frozen=True)
class ProtocolOptions:
    """Score models by a named protocol: generate their samples, measure them and real clips, write result.json.

    OUT gets the protocol card, the clip table, the samples (lossless), features, a report and pictures. Restartable:
    what is there is used again. 'magi evaluate protocols' lists the names, 'magi evaluate' alone the other verbs.
    """

    protocol: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROTOCOL")]
    """name of a protocol; digits, digits3d, world (built-in videos) and game (recorded ones) need no downloads"""
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """run directory, exported folder, hub id, or a shipped model; or NAME=MODEL,NAME=MODEL to compare several"""
    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """folder of real videos that no model was trained on, of the split that the protocol names"""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """folder to write to"""
    annotations: str = ""
    """split files of the data, as data.annotations; the split is then the protocol's"""
    clips: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """clip table to use instead of drawing one: clips.csv of another evaluation"""
    count: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """other number of clips than the protocol's; the score's name says so, and so it does of the next four"""
    size: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """other height and width"""
    frames: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """other number of frames, those of the context included"""
    context: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """other number of context frames"""
    labels: bool = False
    """give the models the class of the real clip"""
    singular: bool = False
    """score with no more clips than feature dimensions; the score's name says so"""
    synthetic: bool = False
    """networks with synthetic weights: a dry run, whose score means nothing and whose name says so"""
    speeds: tuple[Speed, ...] = ("full",)
    """speeds of sampling to evaluate every model at (magi sample --speed)"""
    seed: int = 0
    """of the samples"""
    batch: int = 8
    """clips generated and measured at a time"""
    worker: str = "0/1"
    """i/N: generate every N-th shard of samples from the i-th on; the last worker to finish scores"""
    max_bad_fraction: float = 0.01
    """share of unreadable videos that is tolerated; above it the exit code is 3"""
    device: Device = "auto"
    """auto takes a GPU where there is one"""


@dataclass(frozen=True)
class TextOptions:
    """Measure how models of captioned digits obey prompts, attribute by attribute, read from pixels.

    Clips are generated from nothing; no data and no downloads are needed. Half of the prompts ask for combinations that
    training videos do not show; single attributes are changed under the same seed, and in mid-video. Beside them stand
    chance, real clips and the autoencoder's. OUT gets the samples (lossless), result.json, a page and a sheet of twelve
    prompts. Restartable: what is there is used again.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """run directory, exported folder or hub id of a model with text; or NAME=MODEL,NAME=MODEL to compare several"""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """folder to write to"""
    prompts: int = 512
    """number of prompts; even"""
    guidance: tuple[float, ...] = ()
    """scales of guidance to try beside the model's own, as in --guidance 1 2 4"""
    clip: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = ""
    """folder or hub id of a CLIP model of Hugging Face's transformers, for a CLIP score as well; needs '.[text]'"""
    frames: int = 16
    """frames a clip"""
    speeds: tuple[Speed, ...] = ("full",)
    """speeds of sampling to evaluate every model at (magi sample --speed)"""
    seed: int = 0
    """of the samples"""
    batch: int = 16
    """clips generated at a time"""
    worker: str = "0/1"
    """i/N: generate every N-th shard of samples from the i-th on; the last worker to finish scores"""
    device: Device = "auto"
    """auto takes a GPU where there is one"""


@dataclass(frozen=True)
class CompareOptions:
    """Rank the models of several results; refused, field by field, where their protocol cards differ."""

    results: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RESULT ...")]
    """folders or result.json files of 'magi evaluate'"""
    ignore: tuple[str, ...] = ()
    """fields of the card that may differ all the same, as in versions.torch; the table says so"""


@dataclass(frozen=True)
class ListOptions:
    """List the protocols, or all fields of one."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROTOCOL")] = ""
    """protocol whose fields are wanted"""


@dataclass(frozen=True)
class ImportWeightsOptions:
    """Check a published weight file and keep it for evaluation, below $MAGI_CACHE or ~/.cache/magi.

    Its size and SHA-256 are compared with the published ones before anything reads it; it is converted to safetensors
    in a separate process that runs no code of the file. FILE is never changed and not needed afterwards.
    """

    kind: Annotated[Kind, tyro.conf.Positional, tyro.conf.arg(metavar="KIND")]
    """i3d or i3d-torchscript (FVD), inception (FID), alexnet with lpips-alex, vgg16 with lpips-vgg (LPIPS)"""
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """the file as its authors published it"""
    allow_unknown: bool = False
    """import a file of another hash too; every score will say so"""


def evaluate_protocol(argv: list[str]) -> None:
    """Score models by a named protocol."""
    options = parse(ProtocolOptions, "evaluate", argv)
    worker = parse_worker(options.worker)
    if options.batch < 1:
        raise ValueError(f"--batch {options.batch}: expected at least 1")
    from magi.evaluation.protocol.protocols import overridden, protocol

    base, sizes = protocol(options.protocol), {"score_size": options.size, "read_size": options.size}
    lengths = {"count": options.count, "frames": options.frames, "context_frames": options.context}
    chosen, overrides = overridden(base, **sizes, **lengths, labels="real" if options.labels else None)
    overrides |= {"singular": True} if options.singular else {}
    data = DataConfig.model_construct(
        root=str(existing_folder(options.data)),
        annotations=options.annotations,
        split=chosen.split if options.annotations else "",
        max_bad_fraction=options.max_bad_fraction,
    )
    check_device(options.device)
    _evaluate(chosen, overrides, model_sources(options.model), checked(data), worker, options)


def evaluate_text(argv: list[str]) -> None:
    """Measure how models obey prompts."""
    options = parse(TextOptions, "evaluate text", argv)
    worker = parse_worker(options.worker)
    if options.batch < 1:
        raise ValueError(f"--batch {options.batch}: expected at least 1")
    check_device(options.device)
    from magi.evaluation.protocol.result import RESULT_FILE
    from magi.evaluation.text.protocol import score_text
    from magi.evaluation.text.report import terminal_rows, write_text_report
    from magi.evaluation.text.result import write_text_result
    from magi.evaluation.text.samples import TextEvaluation, generate_text_samples

    clip = _clip(options.clip, options.device) if options.clip else None
    models, _ = _models(model_sources(options.model), options.speeds, options.device)
    with Stages() as on_progress:
        evaluation = TextEvaluation(
            models,
            options.out,
            options.prompts,
            options.guidance,
            options.frames,
            options.seed,
            options.batch,
            on_progress,
            clip,
        )
        result = score_text(evaluation) if generate_text_samples(evaluation, worker) else None
    if result is None:
        print(f"{options.out}: this worker's samples are finished; the last worker to finish scores them")
        return
    write_text_result(result, options.out / RESULT_FILE)
    files = write_text_report(evaluation, result)
    for line in terminal_rows(result):
        print(line)
    for file in (*files, RESULT_FILE):
        print(options.out / file)


def _clip(source: str, device: Device) -> "ClipScore":
    from magi.devices import resolve_device
    from magi.evaluation.text.clip_score import ClipScore

    return ClipScore.load(source, resolve_device(device))


def compare(argv: list[str]) -> None:
    """Rank results."""
    options = parse(CompareOptions, "evaluate compare", argv)
    if len(options.results) < 2:
        raise ValueError("give at least two results to compare, as in: magi evaluate compare build/a build/b")
    from magi.evaluation.protocol.result import rank, read_result

    ranking = rank({str(path): read_result(path) for path in options.results}, options.ignore)
    if ranking.ignored:
        print(f"cards differ in {', '.join(ranking.ignored)}, which was ignored as asked")
    print(ranking.name)
    for name, score in ranking.rows:
        print(f"{name:<40} {score.value:>10.3f}  ({score.low:.3f} to {score.high:.3f})")


def list_protocols(argv: list[str]) -> None:
    """Print the names of the protocols, or the fields of one."""
    options = parse(ListOptions, "evaluate protocols", argv)
    from magi.config_files import dump_config
    from magi.evaluation.protocol.protocols import PROTOCOLS, protocol

    if options.name:
        print(dump_config(protocol(options.name)), end="")
        return
    for name, one in PROTOCOLS.items():
        folds = f" x {one.folds}" if one.folds > 1 else ""
        print(f"{name:<28} {one.count}{folds} clips, {one.frames} frames at interval {one.interval}; {one.source}")


def import_weights(argv: list[str]) -> None:
    """Import one weight file; print what it is and where it is kept."""
    options = parse(ImportWeightsOptions, "evaluate import-weights", argv)
    from magi.evaluation.networks import import_weights as networks

    imported = networks.import_weights(options.kind, options.file, options.allow_unknown)
    known = "published file" if imported.source.known else "UNKNOWN file, allowed"
    print(f"{options.kind}: {known}, SHA-256 {imported.source.sha256}")
    print(f"{imported.folder}: {imported.tensors} tensors")


def model_sources(given: str) -> dict[str, str]:
    """Name -> MODEL of ``NAME=MODEL,NAME=MODEL``, or of one MODEL, whose name is 'model'.

    ``ValueError`` for anything else and for a name given twice.
    """
    if "=" not in given:
        return {"model": given}
    sources: dict[str, str] = {}
    for part in given.split(","):
        name, equals, source = part.partition("=")
        if not (name and equals and source):
            raise ValueError(f"MODEL {part}: expected NAME=MODEL, as in fresh=build/run,demo=demo")
        if name in sources:
            raise ValueError(f"MODEL {part}: the name '{name}' is given twice")
        sources[name] = source
    return sources


class Stages:
    """Progress of several stages, one after another: ``on_progress(what, done, total)``; a context."""

    def __init__(self) -> None:
        self.what = ""
        self.stack = ExitStack()
        self.report: Report = lambda done, total: None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self.what:
            self.stack.close()
            self.what, self.report = what, self.stack.enter_context(progress(what, "done"))
        self.report(done, total)


def _evaluate(
    protocol: "EvaluationProtocol",
    overrides: Mapping[str, Any],
    sources: Mapping[str, str],
    data: DataConfig,
    worker: tuple[int, int],
    options: ProtocolOptions,
) -> None:
    """Open data and models, generate, and where all samples are there, score, draw and print."""
    from magi.data.index.index import open_index
    from magi.evaluation.protocol.clip_table import TABLE_FILE, build_table, read_table, write_table
    from magi.evaluation.protocol.evaluation import Evaluation
    from magi.evaluation.protocol.real_clips import RealClips
    from magi.evaluation.protocol.samples import generate_samples
    from magi.evaluation.protocol.score import score
    from magi.evaluation.report import FILES, text_rows, write_report

    out, metrics = options.out, _metrics(protocol, options.synthetic, options.device)
    models, runs = _models(sources, options.speeds, options.device)
    with Stages() as on_progress:
        index = open_index(data, lambda done, total: on_progress("decoding videos", done, total))
        table = read_table(options.clips, protocol, index) if options.clips else build_table(protocol, index)
        evaluation = Evaluation(
            protocol,
            overrides,
            metrics,
            RealClips(protocol, index),
            table,
            out,
            models,
            options.seed,
            options.batch,
            on_progress,
        )
        write_table(table, out / TABLE_FILE)
        result = score(evaluation) if generate_samples(evaluation, worker) else None
    if result is None:
        print(f"{out}: this worker's samples are finished; the last worker to finish scores them")
        return
    write_report(evaluation, result, runs)
    print(f"{result.score_name} by {protocol.name}")
    for what, figures in text_rows(result):
        print(f"  {what:<40} {figures}")
    for file in (*FILES, TABLE_FILE, "result.json"):
        print(out / file)


def _models(
    sources: Mapping[str, str], speeds: Sequence[Speed], device: Device
) -> "tuple[dict[str, MagiPipeline], dict[str, Path]]":
    """Every model at every speed by name, each loaded once, and the folders of those that are runs with a log."""
    from magi.devices import resolve_device
    from magi.sampling.pipeline import MagiPipeline

    models, runs = {}, {}
    for given, source in sources.items():
        loaded = MagiPipeline.from_pretrained(source, resolve_device(device))
        for speed in speeds:
            name = given if speed == "full" else f"{given}-{speed}"
            models[name] = loaded.at_speed(speed)
            if (Path(source) / METRICS_FILE).is_file():
                runs[name] = Path(source)
    return models, runs


def _metrics(protocol: "EvaluationProtocol", synthetic: bool, device: Device) -> "Metrics":
    """The networks that a protocol measures with, and beside them those that weights were imported for."""
    from magi.devices import resolve_device
    from magi.evaluation.moving_digits.classifier import DigitClassifier
    from magi.evaluation.moving_digits.digits3d import Digits3d
    from magi.evaluation.networks.i3d import BN_EPS
    from magi.evaluation.networks.load import LPIPS_KINDS, load_i3d, load_inception, load_lpips, synthetic_i3d
    from magi.evaluation.networks.published_files import has_weights
    from magi.evaluation.protocol.features import Metrics

    if protocol.ground_truth:
        return Metrics(classifier=DigitClassifier.load() if protocol.network == "digit_classifier" else None)
    on = resolve_device(device)
    if protocol.network == "digits3d":
        network: FeatureNetwork = Digits3d.load().to(on)
    else:
        load = synthetic_i3d if synthetic else load_i3d
        network = load(protocol.network_input, BN_EPS[protocol.network_eps]).to(on)
    imported = {kind for kind in get_args(Kind) if has_weights(kind) and not synthetic}
    images = load_inception().to(on) if "inception" in imported else None
    distances = tuple(load_lpips(trunk).to(on) for trunk, kinds in LPIPS_KINDS.items() if imported.issuperset(kinds))
    return Metrics(network, images, distances, protocol.context_frames)
