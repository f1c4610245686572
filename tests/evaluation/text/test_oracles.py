"""The oracles are right on real clips and on the autoencoder's, and say nothing where there is nothing to see."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from magi.data.captioned_digits import CaptionedVideo, captioned_video
from magi.data.digit_captions import VALUES
from magi.evaluation.moving_digits.classifier import DigitClassifier
from magi.evaluation.text.oracles import READ_FRAMES, AttributeReadings, read_attributes
from magi.vae.adapters import load_vae, named_vae

COUNT = 60
CLIPS = [captioned_video(11, number, "seen" if number < COUNT // 2 else "held-out") for number in range(COUNT)]


def stacked(clips: list[CaptionedVideo]) -> NDArray[np.uint8]:
    return np.stack([clip.video_THWC for clip in clips])


def read(video_BTHWC: NDArray[np.uint8]) -> AttributeReadings:
    return read_attributes(video_BTHWC, DigitClassifier.load())


@pytest.mark.parametrize("name", VALUES)
def test_real_clips_show_their_attributes(name: str) -> None:
    assert real_readings().values[name] == tuple(getattr(clip.attributes, name) for clip in CLIPS)


_READ: list[AttributeReadings] = []


def real_readings() -> AttributeReadings:
    if not _READ:
        _READ.append(read(stacked(CLIPS)))
    return _READ[0]


def test_the_digit_of_the_last_frame_is_read_from_it() -> None:
    assert real_readings().last_digit == real_readings().values["digit"]
    video_BTHWC = stacked(CLIPS[:10])
    video_BTHWC[:, -1] = np.roll(video_BTHWC[:, -1], 1, axis=0)
    shown = read(video_BTHWC)
    assert shown.values["digit"] == tuple("0123456789") and shown.last_digit == tuple("9012345678")


def test_the_shipped_autoencoder_leaves_them_readable() -> None:
    vae = load_vae(named_vae("demo"))
    video_BTHWC = torch.from_numpy(stacked(CLIPS[15:35])[:, :READ_FRAMES])
    seen = read(vae.decode(vae.encode(video_BTHWC)).numpy())
    for name in VALUES:
        hits = [
            value == getattr(clip.attributes, name) for value, clip in zip(seen.values[name], CLIPS[15:35], strict=True)
        ]
        assert np.mean(hits) >= 0.9, name


@pytest.mark.parametrize("size", [96, 128])
def test_other_sizes_are_read_alike(size: int) -> None:
    clips = [captioned_video(12, number, size=size) for number in range(20)]
    seen = read(stacked(clips))
    for name in VALUES:
        assert seen.values[name] == tuple(getattr(clip.attributes, name) for clip in clips), name


def test_black_shows_nothing_and_a_still_digit_goes_nowhere() -> None:
    still_BTHWC = np.repeat(stacked(CLIPS[:1])[:, :1], 16, axis=1)
    seen = read(np.concatenate([np.zeros_like(still_BTHWC), still_BTHWC]))
    assert {name: values[0] for name, values in seen.values.items()} == dict.fromkeys(VALUES)
    assert seen.last_digit[0] is None
    assert seen.values["direction"][1] is None and seen.values["speed"][1] is None
    assert seen.values["digit"][1] == CLIPS[0].attributes.digit


def test_backwards_is_the_opposite_direction() -> None:
    video_BTHWC = stacked(CLIPS[:20])[:, :12]
    places = [VALUES["direction"].index(str(one)) for one in read(video_BTHWC).values["direction"]]
    back = [VALUES["direction"].index(str(one)) for one in read(video_BTHWC[:, ::-1].copy()).values["direction"]]
    assert back == [(place + 4) % 8 for place in places]


def test_too_few_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="videos of 9 frames; attributes are read from 10"):
        read(stacked(CLIPS[:1])[:, :9])
