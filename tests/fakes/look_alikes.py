"""Look-alikes of what tests have not: UCF-101 and Kinetics-600 as they come, coloured videos, a model, a network.

The trees of the two data sets have the frame number drawn into every frame; the model is a pipeline that paints.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from magi.config import Config
from magi.data.index.index import VideoIndex, VideoRecord
from magi.data.video_writer import write_mp4
from magi.evaluation.protocol.real_clips import RealClips
from magi.presets import preset
from magi.vae.pixel import PixelVae
from tests.fakes.numbered_videos import UNEVEN_TIMES, write

UCF_CLASSES = ("ApplyEyeMakeup", "BabyCrawling", "YoYo")
KINETICS_CLASSES = ("abseiling", "air drumming", "zumba")


def painted(seed: int, frames: int, height: int, width: int) -> NDArray[np.uint8]:
    """Video_THWC of a warm blob that drifts over a cold ground; place, way and size are drawn from ``seed``."""
    rng = np.random.default_rng(seed)
    at_2, way_2 = rng.uniform(0.3, 0.7, 2), rng.uniform(-0.02, 0.02, 2)
    y_H, x_W = np.arange(height) / height, np.arange(width) / width
    video = np.empty((frames, height, width, 3))
    for t in range(frames):
        y, x = (at_2 + t * way_2) % 1
        blob_HW = np.exp(-((y_H[:, None] - y) ** 2 + (x_W - x) ** 2) / (0.02 + 0.02 * (seed % 5)))
        video[t] = 60 * (1 - blob_HW[..., None]) * np.array([0.2, 0.6, 1.0]) + 230 * blob_HW[..., None] * np.array(
            [1.0, 0.6, 0.1]
        )
    return video.round().astype(np.uint8)


def write_look_alikes(folder: Path, videos: int, frames: int = 60, height: int = 32, width: int = 48) -> Path:
    """``videos`` mp4 files in three class folders."""
    for number in range(videos):
        name = ("arch", "bowl", "cart")[number % 3]
        write_mp4(folder / name / f"v_{number:03d}.mp4", painted(number, frames, height, width), 25)
    return folder


class PaintedClips(RealClips):
    """Reads the frames that ``look_alike_index`` tells of, without files."""

    def _frames(self, record: VideoRecord, numbers: range) -> Iterator[NDArray[np.uint8]]:
        video_THWC = _source(int(record.path.split("_")[1][:3]), record.frames, record.height, record.width)
        return iter([video_THWC[number] for number in numbers])


@lru_cache(maxsize=256)
def _source(number: int, frames: int, height: int, width: int) -> NDArray[np.uint8]:
    return painted(number, frames, height, width)


def look_alike_index(videos: int, frames: int = 56, height: int = 32, width: int = 48) -> VideoIndex:
    """The index of what ``write_look_alikes`` would write."""
    names = ("arch", "bowl", "cart")
    records = [
        VideoRecord(frames, height, width, 25.0, range(frames), f"{names[k % 3]}/v_{k:03d}.mp4", k % 3, 1000, 1)
        for k in range(videos)
    ]
    return VideoIndex(Path("look-alikes"), names, tuple(records))


class Painter:
    """A pipeline whose sample of seed s is ``painted`` by s; it keeps what it was asked."""

    def __init__(self, size: int = 32, classes: int = 3, fail_at_call: int = 0) -> None:
        values = preset("digits").model_dump()
        values["data"] |= {"height": size, "width": size}
        values["model"] |= {"classes": classes}
        self.config, self.vae = Config.model_validate(values), PixelVae(8)
        self.classes = ("arch", "bowl", "cart")[:classes] or None
        self.model = torch.nn.Linear(1, 1)
        torch.nn.init.ones_(self.model.weight)
        torch.nn.init.zeros_(self.model.bias)
        self.asked: list[dict[str, Any]] = []
        self.fail_at_call, self.size = fail_at_call, size

    def stream(
        self,
        *,
        frames: int,
        context: Tensor | None,
        labels: Sequence[int | str | None] | None,
        interval: int,
        seeds: Sequence[int],
        actions: None,
    ) -> Iterator[Tensor]:
        given = 0 if context is None else context.shape[1]
        self.asked.append({"seeds": list(seeds), "labels": labels, "interval": interval, "context": context})
        if len(self.asked) == self.fail_at_call:
            raise KeyboardInterrupt
        made = [_source(1000 + seed, frames, self.size, self.size) for seed in seeds]
        for t in range(given, frames):
            yield torch.stack([torch.from_numpy(video[t]) for video in made])


class Projection:
    """Mean colours of four quarters over time, and their mean change: quick, sees colour, place and order."""

    name, hash, dimension, minimum_frames = "projection", "0" * 64, 6, 9

    def features(self, video_BTHWC: Tensor) -> Tensor:
        frames_FCHW = video_BTHWC.movedim(-1, 2).flatten(0, 1).float() / 255
        small_BTC22 = functional.adaptive_avg_pool2d(frames_FCHW, 2).unflatten(0, video_BTHWC.shape[:2])
        steps_BT = small_BTC22.flatten(2).diff(dim=1).abs().mean(2)
        colour_BC = small_BTC22.mean((1, 3, 4))
        sides = [small_BTC22[:, :, 0, 0].mean((1, 2)), small_BTC22[:, 0, 0, 1].mean(1)]
        return torch.cat([colour_BC, torch.stack([*sides, steps_BT.mean(1) * 80], dim=1)], dim=1)


def _xvid(stream) -> None:  # type: ignore[no-untyped-def]
    stream.codec_context.codec_tag = "XVID"


def write_packed(path: Path) -> Path:
    """An AVI with a 'packed bitstream', as DivX and XviD write it: a B-frame in the packet of the frame it precedes."""
    plain = write(path.with_suffix(".plain"), codec="mpeg4", b_frames=1, format="avi", prepare=_xvid)
    with av.open(str(plain), format="avi") as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [bytes(packet) for packet in source.demux(source.streams.video[0]) if packet.size]
        kinds = [packet[packet.find(b"\x00\x00\x01\xb6") + 4] >> 6 for packet in packets]  # 0 I, 1 P, 2 B
        packed: list[bytes] = []
        for number, (packet, kind) in enumerate(zip(packets, kinds, strict=True)):
            if kind == 2:
                continue
            pair = number + 1 < len(packets) and kinds[number + 1] == 2
            packed += [packet + packets[number + 1], b"\x00\x00\x01\xb6\x5f\x00"] if pair else [packet]
        first = packed[0].find(b"\x00\x00\x01\xb3")
        packed[0] = packed[0][:first] + b"\x00\x00\x01\xb2DivX503b1393p" + packed[0][first:]
        for number, content in enumerate(packed):
            moved = av.Packet(content)
            moved.stream, moved.pts, moved.dts, moved.time_base = stream, number, number, stream.time_base
            moved.is_keyframe = number == 0
            target.mux(moved)
    plain.unlink()
    return path


def write_ucf101(root: Path) -> None:
    """``UCF-101/Class/v_Class_gGG_cCC.avi`` and ``ucfTrainTestlist``; group 1 is tested on, the others trained on."""
    for name in UCF_CLASSES:
        (root / "UCF-101" / name).mkdir(parents=True)
    videos = {name: root / "UCF-101" / name / f"v_{name}" for name in UCF_CLASSES}
    write(_avi(videos["ApplyEyeMakeup"], 1), codec="mpeg4", prepare=_xvid)
    write(_avi(videos["ApplyEyeMakeup"], 8), codec="mpeg4", prepare=_xvid, b_frames=1)
    write(_avi(videos["BabyCrawling"], 8), codec="mpeg4", b_frames=0)
    write_packed(_avi(videos["YoYo"], 8))
    write(_avi(videos["YoYo"], 1), codec="mpeg4")
    lists = root / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("".join(f"{n} {name}\r\n" for n, name in enumerate(UCF_CLASSES, start=1)))
    trained = [(name, f"{name}/v_{name}_g08_c01.avi {n}\n") for n, name in enumerate(UCF_CLASSES, start=1)]
    (lists / "trainlist01.txt").write_text("".join(line for _, line in trained))
    (lists / "testlist01.txt").write_text("".join(f"{n}/v_{n}_g01_c01.avi\n" for n in ("ApplyEyeMakeup", "YoYo")))


def _avi(stem: Path, group: int) -> Path:
    return stem.with_name(f"{stem.name}_g{group:02d}_c01.avi")


def write_kinetics600(root: Path) -> None:
    """Videos of the train split flat, of val in class folders; missing, empty, cut and ``._`` files as they come."""
    train, val, tables = root / "train", root / "val", root / "annotations"
    for folder in (train, val / "air drumming", val / "zumba", tables):
        folder.mkdir(parents=True)
    write(train / "aaaaaaaaaaa_000010_000020.mp4")
    write(train / "bb-b_bbbbbb_000000_000010.mp4", times=UNEVEN_TIMES)
    write(train / "ccccccccccc.mp4", prepare=lambda stream: stream.set_display_rotation(90))
    cut = write(train / "ddddddddddd_000001_000011.mp4")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (train / "eeeeeeeeeee_000001_000011.mp4").touch()
    (train / "._aaaaaaaaaaa_000010_000020.mp4").write_bytes(b"\x00\x05\x16\x07")
    write(train / "not-listed_000001_000011.mp4", count=4)
    write(val / "air drumming" / "ggggggggggg_000003_000013.mp4", b_frames=0)
    write(val / "zumba" / "hhhhhhhhhhh_000003_000013.mkv", times=UNEVEN_TIMES)
    head = "label,youtube_id,time_start,time_end,split\n"
    rows = [
        "air drumming,aaaaaaaaaaa,10,20,train",
        '"zumba",bb-b_bbbbbb,0,10,train',
        "abseiling,ccccccccccc,5,15,train",
        "zumba,ddddddddddd,1,11,train",
        "zumba,eeeeeeeeeee,1,11,train",
        "abseiling,fffffffffff,1,11,train",
    ]
    (tables / "train.csv").write_text(head + "\n".join(rows) + "\n")
    rows = ["air drumming,ggggggggggg,3,13,val", "zumba,hhhhhhhhhhh,3,13,val"]
    (tables / "val.csv").write_text(head + "\n".join(rows) + "\n")
