"""``magi evaluate import-weights`` and ``selftest``: the user's files of feature networks, and whether they agree."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from magi.cli.options import Device, check_device, parse
from magi.errors import NumericsError

if TYPE_CHECKING:
    from magi.evaluation.networks.selftest import Check

Kind = Literal["i3d", "i3d-torchscript", "inception", "alexnet", "vgg16", "lpips-alex", "lpips-vgg"]


@dataclass(frozen=True)
class ImportWeightsOptions:
    """Check a published weight file and keep it for evaluation, below $MAGI_CACHE or ~/.cache/magi.

    Its size and SHA-256 are compared with the published ones before anything reads it; it is converted to safetensors
    in a separate process. FILE is never changed and not needed afterwards.
    """

    kind: Annotated[Kind, tyro.conf.Positional, tyro.conf.arg(metavar="KIND")]
    """i3d and i3d-torchscript (FVD), inception (FID), alexnet with lpips-alex, vgg16 with lpips-vgg (LPIPS)"""
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """the file as its authors published it"""
    allow_unknown: bool = False
    """import a file of another hash too; every score will say so"""


@dataclass(frozen=True)
class SelftestOptions:
    """Hold the feature networks against published numbers; what cannot be run is listed, never passed over.

    Without imported weights it checks the arithmetic with artificial ones.
    """

    device: Device = "auto"
    """where to run"""
    noise: bool = False
    """also the uniform-noise reference: 768 clips, minutes on a CPU"""
    lpips_images: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """folder with ex_ref.png, ex_p0.png and ex_p1.png of PerceptualSimilarity"""
    strict: bool = False
    """a check that was not run counts as failed"""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """also write the report to this file"""


def import_weights(words: list[str]) -> None:
    """Import one weight file and say what it is and where it went."""
    options = parse(ImportWeightsOptions, "evaluate import-weights", words)
    from magi.evaluation.networks import import_weights as network_import
    from magi.evaluation.networks.published_files import check_kind

    imported = network_import.import_weights(check_kind(options.kind), options.file, options.allow_unknown)
    known = "published file" if imported.source.known else "UNKNOWN file, allowed"
    parts = [f"{imported.tensors} tensors"] + ["the program"] * imported.program
    print(f"{options.kind}: {known}, SHA-256 {imported.source.sha256}")
    print(f"{imported.folder}: {' and '.join(parts)}; 'magi evaluate selftest' holds them against published values")


def selftest(words: list[str]) -> None:
    """Run every check that can be run here; ``NumericsError`` where one fails."""
    options = parse(SelftestOptions, "evaluate selftest", words)
    check_device(options.device)
    import torch

    from magi.evaluation.networks.selftest import artificial_checks, summary
    from magi.evaluation.networks.selftest_published import published_checks

    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    checks = []
    for part in (artificial_checks(device), published_checks(device, options.noise, options.lpips_images)):
        for check in part:
            print(_line(check), flush=True)
            checks.append(check)
    print(f"{summary(checks)} (device {device}, torch {torch.__version__})")
    if options.json is not None:
        _write(options.json, checks, device, torch.__version__)
    failed = [check.name for check in checks if check.outcome == "failed"]
    unrun = [check.name for check in checks if check.outcome == "not run"] if options.strict else []
    if failed or unrun:
        raise NumericsError(_complaint(failed, unrun))


def _complaint(failed: list[str], unrun: list[str]) -> str:
    parts = [f"{len(failed)} checks failed, the first is '{failed[0]}'"] if failed else []
    parts += [f"{len(unrun)} checks were not run (--strict), the first is '{unrun[0]}'"] if unrun else []
    return f"selftest: {'; '.join(parts)}; scores from these networks cannot be trusted here"


def _line(check: "Check") -> str:
    figures = f"  {check.measured} (expected {check.expected})" if check.expected else f"  {check.measured}".rstrip()
    note = f"  [{check.note}]" if check.note else ""
    word = check.outcome if check.outcome in ("passed", "shown") else check.outcome.upper()
    return f"{word:<12} {check.name}{figures}{note}"


def _write(path: Path, checks: "list[Check]", device: str, torch_version: str) -> None:
    import json
    from dataclasses import asdict

    report = {"device": device, "torch": torch_version, "checks": [asdict(check) for check in checks]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
