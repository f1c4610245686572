"""``magi evaluate import-weights``: the user's files of feature networks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from magi.cli.options import parse

Kind = Literal["i3d", "i3d-torchscript", "inception", "alexnet", "vgg16", "lpips-alex", "lpips-vgg"]


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


def import_weights(argv: list[str]) -> None:
    """Import one weight file; print what it is and where it is kept."""
    options = parse(ImportWeightsOptions, "evaluate import-weights", argv)
    from magi.evaluation.networks import import_weights as networks

    imported = networks.import_weights(options.kind, options.file, options.allow_unknown)
    known = "published file" if imported.source.known else "UNKNOWN file, allowed"
    print(f"{options.kind}: {known}, SHA-256 {imported.source.sha256}")
    print(f"{imported.folder}: {imported.tensors} tensors")
