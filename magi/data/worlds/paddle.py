"""``paddle``: one screen, a paddle that slides on the floor, a ball that it aims, eight bricks that stay gone.

The ball flies straight, comes back from the walls, and from the floor too, so nothing ever ends; where the paddle is
under it, the part that it falls on says where it goes. A brick that the ball touches is gone and turns it round. Small
enough to train on in a test. Units are pixels and frames; x and y are top left corners, y grows downwards.
"""

from dataclasses import dataclass, replace

import numpy as np

from magi.data.worlds.contract import Frame, World, WorldState, held
from magi.data.worlds.shapes import Box, ColourReader, paint

SKY, PADDLE, BALL, BRICK = (30, 34, 60), (90, 210, 120), (250, 220, 70), (225, 80, 90)

FRAME_SIZE = 32
FLOOR = 28.0
"""Where the ball turns; the paddle is below, so the two never cover each other."""
RUN = 2.0
WIDTH, HEIGHT = 8.0, 3.0
BALL_SIZE, FALL = 4.0, 1.5
AIMS = (-1.5, -0.75, 0.75, 1.5)
"""Pixels a frame across, by the quarter of the paddle that the ball falls on."""
BRICKS = tuple(Box(x, y, 6.0, 3.0) for y in (5.0, 9.0) for x in (1.0, 9.0, 17.0, 25.0))
BRICK_SHARE = 0.75  # of the bricks are there when a video begins
AT_WALL = 0.2  # pixels from a wall at which the ball turns: more than the oracle's error
INSIDE = 1.5  # pixels off the screen or within a brick that the oracle's error does not explain


@dataclass(frozen=True)
class PaddleState(WorldState):
    """``x`` is the paddle's; ``bricks`` are those still there; speeds are signed steps a frame."""

    x: float
    ball_x: float
    ball_y: float
    ball_vx: float
    ball_vy: float
    bricks: tuple[bool, ...]

    @property
    def ball(self) -> Box:
        """Where the ball is."""
        return Box(self.ball_x, self.ball_y, BALL_SIZE, BALL_SIZE)


class Paddle(World[PaddleState]):
    """The simulator, its drawing and its oracle (``magi.data.worlds.contract.World``)."""

    name = "paddle"
    actions = ("stand", "left", "right")
    size = FRAME_SIZE
    fps = 15
    state = PaddleState
    positions = ("x",)
    things = "bricks"

    def start(self, rng: np.random.Generator) -> PaddleState:
        """The paddle anywhere; each brick there or not; the ball anywhere between them, up or down."""
        bricks = tuple(bool(there) for there in rng.random(len(BRICKS)) < BRICK_SHARE)
        x, ball_x = rng.uniform(0, FRAME_SIZE - WIDTH), rng.uniform(1, FRAME_SIZE - BALL_SIZE - 1)
        ball_y = rng.uniform(13, FLOOR - BALL_SIZE - 1)
        speed = FALL if rng.random() < 0.5 else -FALL
        return PaddleState(float(x), float(ball_x), float(ball_y), float(rng.choice(AIMS)), speed, bricks)

    def policy(self, state: PaddleState, frames: int, rng: np.random.Generator) -> list[int]:
        """A key, held for 1 to 6 frames: longer, and the paddle would spend half of a video at a wall."""
        return held(frames, np.array([0.2, 0.4, 0.4]), rng, longest=6)

    def step(self, state: PaddleState, action: int) -> PaddleState:
        """The paddle moves; then the ball, up to a wall; then it takes the bricks that it touches, and turns."""
        x = min(max(state.x + (0, -RUN, RUN)[action], 0.0), FRAME_SIZE - WIDTH)
        ball_x = min(max(state.ball_x + state.ball_vx, 0.0), FRAME_SIZE - BALL_SIZE)
        ball_y = min(max(state.ball_y + state.ball_vy, 0.0), FLOOR - BALL_SIZE)
        moved = replace(state, x=x, ball_x=ball_x, ball_y=ball_y)
        left = tuple(
            there and not moved.ball.overlaps(brick) for brick, there in zip(BRICKS, state.bricks, strict=True)
        )
        return _turned(replace(moved, bricks=left), state)

    def draw(self, state: PaddleState) -> Frame:
        """The ball before the bricks; the paddle under both."""
        image_HWC = np.full((FRAME_SIZE, FRAME_SIZE, 3), SKY, np.float64)
        for brick, there in zip(BRICKS, state.bricks, strict=True):
            if there:
                paint(image_HWC, brick, BRICK)
        paint(image_HWC, state.ball, BALL)
        paint(image_HWC, Box(state.x, FLOOR, WIDTH, HEIGHT), PADDLE)
        return np.rint(image_HWC).astype(np.uint8)

    def read(self, frame_HWC: Frame, before: PaddleState | None = None) -> PaddleState:
        """Centres of the colours; the ball's speed is its way from ``before``, without which it falls to the right."""
        x = _READER.find(frame_HWC, 0, WIDTH, HEIGHT, int(FLOOR), FRAME_SIZE).x
        ball = _READER.find(frame_HWC, 1, BALL_SIZE, BALL_SIZE, 0, int(FLOOR))
        bricks = _READER.things_there(frame_HWC)
        state = PaddleState(x, ball.x, ball.y, AIMS[2], FALL, bricks)
        if before is None:
            return state
        vx = before.ball_vx  # a wall shortens the way
        if AT_WALL < ball.x < FRAME_SIZE - BALL_SIZE - AT_WALL:
            vx = min(AIMS, key=lambda aim: abs(ball.x - before.ball_x - aim))
        vy = FALL if ball.y > before.ball_y else -FALL
        return _turned(replace(state, ball_vx=vx, ball_vy=vy), before)

    def alike(self, state: PaddleState, before: PaddleState) -> tuple[PaddleState, ...]:
        """The whole paddle is always seen, and nothing but the key moves it."""
        return (state,)

    def is_inside(self, state: PaddleState) -> bool:
        """Whether the paddle is more than a pixel and a half off the screen, or the ball as far within a brick."""
        inner = Box(state.ball_x + INSIDE, state.ball_y + INSIDE, BALL_SIZE - 2 * INSIDE, BALL_SIZE - 2 * INSIDE)
        within = any(there and inner.overlaps(brick) for brick, there in zip(BRICKS, state.bricks, strict=True))
        return within or not -INSIDE <= state.x <= FRAME_SIZE - WIDTH + INSIDE


def _turned(state: PaddleState, before: PaddleState) -> PaddleState:
    """The ball's speed after what it has met since ``before``: bricks that are gone, walls, the floor, the paddle."""
    vx, vy = state.ball_vx, state.ball_vy
    gone = [brick for brick, then, now in zip(BRICKS, before.bricks, state.bricks, strict=True) if then and not now]
    if gone:
        from_the_side = not any(before.ball.is_over(brick) for brick in gone)
        vx, vy = (-vx, vy) if from_the_side else (vx, -vy)
    if state.ball_x < AT_WALL or state.ball_x > FRAME_SIZE - BALL_SIZE - AT_WALL:
        vx = abs(vx) if state.ball_x < AT_WALL else -abs(vx)
    if state.ball_y < AT_WALL:
        vy = FALL
    if state.ball_y > FLOOR - BALL_SIZE - AT_WALL:
        vy = -FALL
        if state.ball.is_over(Box(state.x, FLOOR, WIDTH, HEIGHT)):
            quarter = (state.ball_x + BALL_SIZE / 2 - state.x) // (WIDTH / 4)
            vx = AIMS[int(np.clip(quarter, 0, 3))]
    return replace(state, ball_vx=vx, ball_vy=vy)


_READER = ColourReader(np.full((FRAME_SIZE, FRAME_SIZE, 3), SKY, np.float64), SKY, (PADDLE, BALL, BRICK), BRICKS)
