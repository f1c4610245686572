"""The shipped model of captioned digits hears its prompt: a short form of ``runs/text.sh``'s evaluation."""

from magi.files import SHIPPED
from magi.sampling.pipeline import MagiPipeline

CLIPS = 6


def test_the_shipped_model_hears_the_brightness_it_is_asked_for() -> None:
    pipe = MagiPipeline.from_pretrained("text")

    def brightest(prompt: str) -> list[int]:
        video_BTHWC = pipe(frames=1, prompt=[prompt] * CLIPS, seeds=range(CLIPS)).video_BTHWC
        return video_BTHWC.flatten(1).amax(1).tolist()

    pairs = list(zip(brightest("a bright bold large 8"), brightest("a dim bold large 8"), strict=True))
    assert sum(bright > dim + 40 for bright, dim in pairs) >= CLIPS - 1, pairs


def test_the_shipped_model_is_small() -> None:
    assert sum(path.stat().st_size for path in SHIPPED["text"].rglob("*") if path.is_file()) < 12e6
