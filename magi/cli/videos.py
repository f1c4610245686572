"""``magi data digits``, ``world``, ``record``, ``import-lerobot``, ``captions``: what writes videos and captions."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from magi.cli.data import SHOWN
from magi.cli.options import check_share, existing_folder, parse
from magi.progress import progress

if TYPE_CHECKING:
    from magi.data.import_captions import CaptionReport


@dataclass(frozen=True)
class DigitsOptions:
    """Write the built-in videos: ten classes of bouncing digits with exact physics, as mp4 files.

    OUT/<digit>/<digit>_<number>.mp4, 25 frames a second, each beside a .json of the exact positions. The same options
    give the same pixels; clips that are there already are kept. With --captions one digit is thin or bold, small or
    large, dim or bright, and moves slowly or fast in one of eight directions; a .txt says so, true of its first frames;
    with --glyphs 2 it has a clause for each of two different digits.
    """

    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """folder to write to"""
    clips: int = 1000
    """number of videos, spread evenly over the classes"""
    size: int = 64
    """height and width in pixels; even"""
    seed: int = 0
    """another seed gives other videos of the same kind"""
    glyphs: int = 1
    """digits a video, with captions one or two; they pass through each other, and the first one is the label"""
    frames: int | None = None
    """frames a video: 200, or 16 with captions"""
    captions: bool = False
    """write a sentence beside each video, as NAME.txt"""
    combinations: Literal["seen", "held-out"] = "seen"
    """with captions: held-out shows only the pairs of a digit and a direction that seen leaves out"""


def data_digits(words: list[str]) -> None:
    """Write the built-in videos."""
    options = parse(DigitsOptions, "data digits", words)
    if options.seed < 0:
        raise ValueError(f"--seed {options.seed}: expected 0 or more")
    if options.captions and options.glyphs not in (1, 2):
        raise ValueError(f"--glyphs {options.glyphs}: captions are of one digit or two")
    if options.combinations != "seen" and not options.captions:
        raise ValueError(f"--combinations {options.combinations}: only with --captions")
    from magi.data.captioned_digits import FRAMES, write_captioned_digits
    from magi.data.captioned_pairs import write_captioned_pairs
    from magi.data.moving_digits import write_digits

    out, clips, size, seed = options.out, options.clips, options.size, options.seed
    with progress("writing videos", "videos") as on_progress:
        if options.captions:
            frames = FRAMES if options.frames is None else options.frames
            write = write_captioned_digits if options.glyphs == 1 else write_captioned_pairs
            written = write(out, clips, size, seed, options.combinations, frames, on_progress)
        else:
            frames = 200 if options.frames is None else options.frames
            written = write_digits(out, clips, size, seed, options.glyphs, frames, on_progress)
    _say_written(options.out, written, options.clips)


@dataclass(frozen=True)
class WorldOptions:
    """Write videos of a built-in world: an exact simulator played by a policy that tries every action.

    OUT/<world>_<number>.mp4, each beside a .json of its actions and of the exact state of every frame. The same options
    give the same pixels; clips that are there already are kept.
    """

    world: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """platform: a player who runs and jumps among platforms, coins and an enemy; paddle: a paddle, a ball, bricks; or
    maze: first person, walls of one hue a cell"""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """folder to write to"""
    clips: int = 1000
    """number of videos"""
    seed: int = 0
    """another seed gives other videos of the same world"""
    frames: int | None = None
    """frames a video: 200, or those of a round trip"""
    round_trips: bool = False
    """videos that turn round once, or walk away and back, so that their last frame shows what the first one does"""


def data_world(words: list[str]) -> None:
    """Write videos of a built-in world."""
    options = parse(WorldOptions, "data world", words)
    if options.seed < 0:
        raise ValueError(f"--seed {options.seed}: expected 0 or more")
    if options.round_trips and options.frames is not None:
        raise ValueError(f"--frames {options.frames}: a round trip has a length of its own; leave one of the two out")
    from magi.data.worlds.worlds import FRAMES, find_world, write_world

    world, frames = find_world(options.world), options.frames
    if frames is None and not options.round_trips:
        frames = FRAMES
    with progress("writing videos", "videos") as on_progress:
        written = write_world(world, options.out, options.clips, options.seed, frames, on_progress)
    _say_written(options.out, written, options.clips)


@dataclass(frozen=True)
class RecordOptions:
    """Record episodes of a Gymnasium environment that renders 'rgb_array', with the action that led to every frame.

    OUT/<environment>_<number>.mp4, each beside a .json of its actions, and of its states where they are observed.
    Random actions are held for random lengths. The same options give the same episodes; what is there is kept.
    """

    environment: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV_ID")]
    """as gymnasium.make takes it: CartPole-v1, or PACKAGE:NAME where another package has it"""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """folder to write to"""
    clips: int = 200
    """number of episodes"""
    frames: int = 200
    """most frames of an episode"""
    shortest: int = 16
    """an episode that ends earlier is played again from another start"""
    size: int = 128
    """pixels of the short side; 0 is as rendered"""
    hold: int = 12
    """most frames that an action is held; 1 draws one a frame"""
    seed: int = 0
    """another seed gives other episodes"""


def data_record(words: list[str]) -> None:
    """Record episodes of an environment."""
    options = parse(RecordOptions, "data record", words)
    from magi.data.record import Recording, record

    recording = Recording(
        options.clips, options.frames, options.shortest, options.size, options.hold, seed=options.seed
    )
    with progress("recording", "episodes") as on_progress:
        written = record(options.environment, options.out, recording, progress=on_progress)
    _say_written(options.out, written, options.clips)


@dataclass(frozen=True)
class LerobotOptions:
    """Write the episodes of a LeRobot dataset (v2.1 or v3, stored as video) with the action that led to every frame.

    OUT/episode_<number>.mp4, each beside a .json of its actions. LeRobot's action t leads to frame t + 1. What is there
    is kept.
    """

    dataset: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """folder that holds meta, data and videos"""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """folder to write to"""
    camera: str = ""
    """feature that is shown, such as observation.images.top; needed where there are several"""
    column: str = "action"
    """column of the actions: a vector, or a whole number that says which one"""
    size: int = 128
    """pixels of the short side; 0 is as stored"""
    max_bad_fraction: float = 0.01
    """share of unusable episodes that is tolerated; above it the exit code is 3"""


def data_import_lerobot(words: list[str]) -> None:
    """Write the episodes of a LeRobot dataset."""
    options = parse(LerobotOptions, "data import-lerobot", words)
    if options.size < 0:
        raise ValueError(f"--size {options.size}: expected 0 (as stored) or more")
    existing_folder(options.dataset)
    from magi.data.lerobot import Dataset, import_lerobot

    dataset = Dataset.opened(options.dataset, options.camera, options.column)
    with progress("importing", "episodes") as on_progress:
        written, reasons = import_lerobot(dataset, options.out, options.size, options.max_bad_fraction, on_progress)
    print(f"{options.out}: {written} videos written")
    for reason in reasons[:SHOWN]:
        print(f"skipped {reason}")


@dataclass(frozen=True)
class CaptionsOptions:
    """Write the captions of an annotation file beside the videos that it names, and account for every row and video.

    NAME.mp4 gets NAME.txt, or NAME.captions.jsonl where captions are of segments; training takes them from there. Read
    are .csv, .jsonl, .parquet (needs '.[text]') and videos.txt with prompts.txt. Known columns are those of VideoFolder
    (a folder with metadata.csv is enough), OpenVid, WebVid, Panda-70M, Koala-36M and InternVid; others are named. A row
    finds its video by its path, or by the end of it; nothing outside VIDEOS is touched.
    """

    annotations: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="ANNOTATIONS")]
    """file of captions, or a folder that holds metadata.csv, .jsonl, .parquet or videos.txt"""
    videos: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="VIDEOS")]
    """folder of the videos"""
    path_column: str = ""
    """column that names the video: a path, with or without its suffix"""
    caption_column: str = ""
    """column that holds the caption"""
    start_column: str = ""
    """column of the second at which the caption begins, as 12.5 or 0:00:12.5"""
    end_column: str = ""
    """column of the second at which it ends"""
    text_length: int = 128
    """bytes a caption may have; those that have more are reported (model.text_length cuts them)"""
    replace: bool = False
    """overwrite captions that say something else"""
    max_bad_fraction: float = 0.01
    """share of unusable rows that is tolerated; above it the exit code is 3"""


def data_captions(words: list[str]) -> None:
    """Write captions beside videos, and say what became of each row."""
    options = parse(CaptionsOptions, "data captions", words)
    existing_folder(options.videos)
    if options.text_length < 1:
        raise ValueError(f"--text-length {options.text_length}: expected at least 1")
    check_share("--max-bad-fraction", options.max_bad_fraction)
    named = (options.path_column, options.caption_column)
    if any((*named, options.start_column, options.end_column)) and not all(named):
        raise ValueError("--path-column and --caption-column: name both, or none where the columns are known")
    from magi.data.caption_files import CaptionColumns, open_captions
    from magi.data.import_captions import import_captions

    columns = CaptionColumns(*named, options.start_column, options.end_column) if all(named) else None
    file = open_captions(options.annotations, columns)
    report = import_captions(
        file, options.videos, options.text_length, replace=options.replace, max_bad_fraction=options.max_bad_fraction
    )
    if file.columns is not None:
        print(f"{file.path}: columns {', '.join(map(ascii, file.columns.names))}")
    kept = f", {report.kept} were there" if report.kept else ""
    print(f"{options.videos}: captions of {report.written} videos written{kept}, from {report.rows} rows")
    _say_captions(report, options.text_length)


def _say_captions(report: "CaptionReport", budget: int) -> None:
    """A line for each kind of row or video that needs a look."""
    for cases, what in (
        (report.unusable, "rows cannot be used"),
        (report.outside, "rows lead out of the folder"),
        (report.unmatched, "rows match no video"),
        (report.ambiguous, "rows match several videos"),
        (report.empty, "rows have no caption"),
        (report.repeated, "rows repeat a video; the first one counts"),
        (report.too_long, f"captions are above {budget} bytes"),
        (report.uncaptioned, "videos have no caption"),
    ):
        if cases.count:
            more = ", ..." if cases.count > len(cases.examples) else ""
            print(f"{cases.count} {what}: {', '.join(cases.examples)}{more}")


def _say_written(out: Path, written: int, clips: int) -> None:
    found = clips - written
    print(f"{out}: {written} videos written" + (f", {found} were there" if found else ""))
