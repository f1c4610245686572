"""What is asked: all attributes named, truly, in prompts that training has not been told of; one changed at a time."""

from dataclasses import fields

from magi.data.captioned_digits import is_held_out
from magi.data.digit_captions import VALUES
from magi.evaluation.text.prompts import draw_asked, swaps
from tests.fakes.caption_reader import values_read

ASKED = {name: draw_asked(5, 20, name, 64, 16) for name in ("seen", "held-out")}


def test_a_prompt_names_all_attributes_of_its_real_clip() -> None:
    for name, clips in ASKED.items():
        for clip in clips:
            assert values_read(clip.prompt) == {of: getattr(clip.attributes, of) for of in VALUES}
            assert is_held_out(clip.attributes) == (name == "held-out")
    assert len({clip.prompt for clip in ASKED["seen"]}) == 20


def test_a_swap_changes_one_attribute_and_stays_among_the_seen() -> None:
    changed = swaps(ASKED["seen"], 5)
    assert len(changed) == 20 * len(VALUES)
    for swap in changed:
        before = ASKED["seen"][swap.base].attributes
        differing = [
            one.name for one in fields(before) if getattr(before, one.name) != getattr(swap.attributes, one.name)
        ]
        assert differing == [swap.name] and not is_held_out(swap.attributes)
        assert values_read(swap.prompt) == {of: getattr(swap.attributes, of) for of in VALUES}
