"""``magi evaluate PROTOCOL``, ``digits3d``, ``compare``, ``protocols``: scores by named protocols, and their rank."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from magi.cli.data import parse_worker
from magi.cli.evaluate import Stages, model_sources
from magi.cli.options import Device, check_device, checked, existing_folder, parse
from magi.config import DataConfig

if TYPE_CHECKING:
    from magi.evaluation.networks.features import FeatureNetwork
    from magi.evaluation.protocol.features import Instruments
    from magi.evaluation.protocol.protocols import EvaluationProtocol
    from magi.evaluation.protocol.score import Evaluation
    from magi.sampling.pipeline import MagiPipeline


@dataclass(frozen=True)
class ProtocolOptions:
    """Score a model by a named protocol: generate its samples, measure them and real clips, write result.json.

    OUT gets the protocol card, the clip table, the samples (lossless), features, a report and pictures. Restartable:
    what is there is kept. 'magi evaluate protocols' lists the names, 'magi evaluate' alone the other verbs.
    """

    protocol: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROTOCOL")]
    """name of a protocol"""
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """run directory, exported folder, hub id, or 'demo'; or NAME=MODEL"""
    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """folder of real videos, of the split that the protocol names"""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """folder to write to"""
    annotations: str = ""
    """split files of the data, as data.annotations; the split is then the protocol's"""
    clips: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """clip table to use instead of drawing one: clips.csv of another evaluation"""
    seed: int = 0
    """of the samples"""
    batch: int = 8
    """clips made and measured at a time"""
    worker: str = "0/1"
    """i/N: make every N-th shard of samples from the i-th on; the last to finish scores"""
    count: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """other number of clips than the protocol's; the score's name says so"""
    size: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """other height and width; the score's name says so"""
    singular: bool = False
    """score with no more clips than feature dimensions; the score's name says so"""
    artificial: bool = False
    """networks with artificial weights: a dry run, whose score means nothing and whose name says so"""
    max_bad_fraction: float = 0.01
    """share of unreadable videos that is tolerated; above it the exit code is 3"""
    device: Device = "auto"
    """auto takes a GPU where there is one"""


@dataclass(frozen=True)
class Digits3dOptions:
    """Frechet video distance of continued built-in videos, by features of digits3d; printed as fvd[digits3d].

    Beside it the floor (real against real), the autoencoder alone, and real clips spoilt on purpose.
    """

    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """folder to write to"""
    models: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=MODEL")]
    """models to score, as NAME=MODEL"""
    videos: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """held-out videos, two a clip: magi data digits DIR --clips 512 with a seed that no model was trained on"""
    variant: Annotated[str, tyro.conf.arg(metavar="PROTOCOL")] = "digits3d"
    """digits3d, digits3d-s2 (interval 2) or digits3d-f1 (one context frame)"""
    seed: int = 0
    """of the samples"""
    batch: int = 16
    """clips made and measured at a time"""
    worker: str = "0/1"
    """i/N: make every N-th shard of samples from the i-th on"""
    count: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """other number of clips than the protocol's; the score's name says so"""
    singular: bool = False
    """score with no more clips than feature dimensions; the score's name says so"""
    readme: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """also write the table of scores between the markers of this file, and results/PROTOCOL.json beside it"""
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


def evaluate_protocol(words: list[str]) -> None:
    """Score one model by a named protocol."""
    options = parse(ProtocolOptions, "evaluate", words)
    from magi.evaluation.protocol.protocols import overridden, protocol

    name, equals, source = options.model.partition("=")
    sources = {name: source} if equals else {"model": options.model}
    changed, overrides = overridden(
        protocol(options.protocol), count=options.count, score_size=options.size, read_size=options.size
    )
    if options.singular:
        overrides["singular"] = True
    worker = parse_worker(options.worker)
    check_device(options.device)
    data = DataConfig.model_construct(
        root=str(existing_folder(options.data)),
        annotations=options.annotations,
        split=changed.split if options.annotations else "",
        max_bad_fraction=options.max_bad_fraction,
    )
    instruments = _instruments(changed, options.artificial, options.device)
    _evaluate(changed, overrides, sources, checked(data), options.clips, instruments, worker, options, options.device)


def evaluate_digits3d(words: list[str]) -> None:
    """Score models on built-in videos."""
    options = parse(Digits3dOptions, "evaluate digits3d", words)
    sources = model_sources(options.models)
    from magi.evaluation.protocol.protocols import overridden, protocol

    changed, overrides = overridden(protocol(options.variant), count=options.count)
    if options.singular:
        overrides["singular"] = True
    if changed.network != "digits3d":
        raise ValueError(f"--variant {options.variant}: not a protocol of built-in videos; use 'magi evaluate' itself")
    worker = parse_worker(options.worker)
    check_device(options.device)
    data = checked(DataConfig.model_construct(root=str(existing_folder(options.videos))))
    instruments = _instruments(changed, False, options.device)
    _evaluate(changed, overrides, sources, data, None, instruments, worker, options, options.device)
    if options.readme is not None and (options.out / "result.json").is_file():
        from magi.evaluation.report import write_score_table

        print(write_score_table(options.out / "result.json", options.readme))


def compare(words: list[str]) -> None:
    """Rank results."""
    options = parse(CompareOptions, "evaluate compare", words)
    if len(options.results) < 2:
        raise ValueError("give at least two results to compare, as in: magi evaluate compare build/a build/b")
    from magi.evaluation.protocol.card import rank, read_result

    ranking = rank({str(path): read_result(path) for path in options.results}, options.ignore)
    if ranking.ignored:
        print(f"cards differ in {', '.join(ranking.ignored)}, which was ignored as asked")
    print(ranking.name)
    for name, values in ranking.rows:
        score = values["score"]
        print(f"{name:<40} {score['value']:>10.3f}  ({score['low']:.3f} to {score['high']:.3f})")


def list_protocols(words: list[str]) -> None:
    """Print the names of the protocols, or the fields of one."""
    options = parse(ListOptions, "evaluate protocols", words)
    from magi.config import dump_config
    from magi.evaluation.protocol.protocols import PROTOCOLS, protocol

    if options.name:
        print(dump_config(protocol(options.name)), end="")
        return
    for name, one in PROTOCOLS.items():
        folds = f" x {one.folds}" if one.folds > 1 else ""
        print(f"{name:<28} {one.count}{folds} clips, {one.frames} frames at interval {one.interval}; {one.source}")


def _instruments(protocol: "EvaluationProtocol", artificial: bool, device: Device) -> "Instruments":
    """The feature network of a protocol, and beside it what weights were imported for."""
    from magi.evaluation.moving_digits.digits3d import Digits3d
    from magi.evaluation.networks.i3d import BN_EPS
    from magi.evaluation.networks.load import artificial_i3d, load_i3d, load_inception, load_lpips
    from magi.evaluation.networks.published_files import has_weights
    from magi.evaluation.protocol.features import Instruments
    from magi.training.parallelize import resolve_device

    on = resolve_device(device)
    if protocol.network == "digits3d":
        network: FeatureNetwork = Digits3d.load().to(on)
    elif artificial:
        network = artificial_i3d(0, protocol.network_input, BN_EPS[protocol.network_eps]).to(on)
    else:
        network = load_i3d(protocol.network_input, BN_EPS[protocol.network_eps]).to(on)
    images = load_inception().to(on) if has_weights("inception") and not artificial else None
    distances = []
    if not artificial and has_weights("alexnet") and has_weights("lpips-alex"):
        distances.append(load_lpips("alex").to(on))
    if not artificial and has_weights("vgg16") and has_weights("lpips-vgg"):
        distances.append(load_lpips("vgg").to(on))
    return Instruments(network, images, tuple(distances), protocol.context_frames)


def _evaluate(
    protocol: "EvaluationProtocol",
    overrides: Mapping[str, Any],
    sources: Mapping[str, str],
    data: DataConfig,
    clips: Path | None,
    instruments: "Instruments",
    worker: tuple[int, int],
    options: ProtocolOptions | Digits3dOptions,
    device: Device,
) -> None:
    """Open the data, generate, and where all samples are there, score and print."""
    from magi.data.index.index import open_index
    from magi.evaluation.protocol.clip_table import build_table, read_table, write_table
    from magi.evaluation.protocol.real_clips import RealClips
    from magi.evaluation.protocol.score import TABLE_FILE, Evaluation, check_evaluation, generate, score
    from magi.sampling.pipeline import MagiPipeline
    from magi.training.parallelize import resolve_device

    if options.batch < 1:
        raise ValueError(f"--batch {options.batch}: expected at least 1")
    models = {name: MagiPipeline.from_pretrained(source, resolve_device(device)) for name, source in sources.items()}
    with Stages() as tell:
        index = open_index(data, lambda done, total: tell("decoding videos", done, total))
        table = build_table(protocol, index) if clips is None else read_table(clips, protocol, index)
        evaluation = Evaluation(
            protocol,
            overrides,
            instruments,
            RealClips(protocol, index),
            table,
            options.out,
            options.seed,
            options.batch,
        )
        check_evaluation(evaluation, models)
        write_table(table, options.out / TABLE_FILE)
        whole = generate(evaluation, models, worker, tell)
        result = score(evaluation, models, tell) if whole else None
    if result is None:
        print(f"{options.out}: this worker's samples are made; the last worker to finish scores them")
        return
    _report(evaluation, models, result)


def _report(evaluation: "Evaluation", models: "Mapping[str, MagiPipeline]", result: Mapping[str, Any]) -> None:
    """Write the pictures and the page, and print the scores."""
    import torch

    from magi.evaluation.protocol.real_clips import to_score_size
    from magi.evaluation.report import SHOWN, drift_rows, frame_rows, score_rows, write_protocol_report

    count = min(SHOWN, evaluation.protocol.count)
    real = torch.cat(list(evaluation.clips.batches(evaluation.continued[:count], count)))
    made = {
        name: to_score_size(next(evaluation.plan(name, model).read(0, count, count)), evaluation.protocol).numpy()
        for name, model in models.items()
    }
    write_protocol_report(evaluation.out, result, real.numpy(), made)
    print(f"{result['score_name']} by {evaluation.protocol.name}")
    for what, told in score_rows(result) + drift_rows(result):
        print(f"  {what:<40} {told}")
    for model, metric, mean in frame_rows(result):
        print(f"  {model + ', ' + metric:<40} {mean}")
    for file in ("side_by_side.png", "curves.png", "report.html", "clips.csv", "result.json"):
        print(evaluation.out / file)
