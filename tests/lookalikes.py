"""Small trees that look like UCF-101 and Kinetics-600 as they come, the frame number drawn into every frame."""

from pathlib import Path

import av

from tests.test_data_decode import UNEVEN_TIMES, write

UCF_CLASSES = ("ApplyEyeMakeup", "BabyCrawling", "YoYo")
KINETICS_CLASSES = ("abseiling", "air drumming", "zumba")


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
