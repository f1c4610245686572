"""``platform``: one screen, fixed camera, a player who runs and jumps among platforms, eight coins and a patrol.

The player is under gravity and stands on solid blocks; coins stay taken; touching the patrolling enemy throws the
player up, so nothing ever ends. Every shape is an axis-aligned rectangle (a coin is a small square), drawn with the
exact share of each pixel that it covers, so the centroid of its colour in a frame is its centre in the state.

Units are pixels and frames; (x, y) is the top left corner of the player, y grows downwards.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from magi.data.worlds.contract import Frame, World, WorldState, held
from magi.data.worlds.shapes import Box, ColourReader, paint

SKY, SOLID = (34, 38, 66), (120, 130, 150)
PLAYER, ENEMY, COIN = (235, 70, 60), (60, 220, 110), (250, 205, 40)

RUN = 2.0
GRAVITY, JUMP, FALL = 0.75, 5.25, 5.0
WIDTH, HEIGHT = 5.0, 7.0
ENEMY_WIDTH, ENEMY_HEIGHT, ENEMY_SPEED = 6.0, 5.0, 1.0
ENEMY_FROM, ENEMY_TO = 8.0, 50.0
COIN_SIZE = 4.0
COIN_SHARE = 0.75  # of the coins are there when a video begins
INSIDE = 1.5  # pixels within a block that the oracle's error does not explain


FRAME_SIZE = 64
GROUND = Box(0, 56, FRAME_SIZE, 8)
SOLIDS = (GROUND, Box(4, 40, 18, 4), Box(42, 40, 18, 4), Box(22, 24, 20, 4))
COINS = tuple(
    Box(x, y, COIN_SIZE, COIN_SIZE)
    for x, y in ((2, 50), (30, 44), (58, 50), (6, 33), (54, 33), (24, 17), (36, 17), (30, 34))
)


@dataclass(frozen=True)
class PlatformState(WorldState):
    """``coins`` are those still there; ``enemy_x`` is the left edge, ``enemy_speed`` its signed step a frame."""

    x: float
    y: float
    vy: float
    on_ground: bool
    coins: tuple[bool, ...]
    enemy_x: float
    enemy_speed: float

    @property
    def player(self) -> Box:
        """Where the player is."""
        return Box(self.x, self.y, WIDTH, HEIGHT)

    @property
    def enemy(self) -> Box:
        """Where the enemy is."""
        return Box(self.enemy_x, GROUND.y - ENEMY_HEIGHT, ENEMY_WIDTH, ENEMY_HEIGHT)


class Platform(World[PlatformState]):
    """The simulator, its drawing and its oracle (``magi.data.worlds.contract.World``)."""

    name = "platform"
    actions = ("stand", "left", "right", "jump", "jump left", "jump right")
    size = FRAME_SIZE
    fps = 15
    state = PlatformState
    positions = ("x", "y")
    things = "coins"

    def start(self, rng: np.random.Generator) -> PlatformState:
        """The player in free space, anywhere; each coin there or not; the enemy anywhere on its way."""
        while True:
            x, y = rng.uniform(0, FRAME_SIZE - WIDTH), rng.uniform(4, GROUND.y - HEIGHT)
            if not any(Box(x, y, WIDTH, HEIGHT).overlaps(solid) for solid in SOLIDS):
                break
        coins = tuple(bool(there) for there in rng.random(len(COINS)) < COIN_SHARE)
        speed = ENEMY_SPEED * (1 if rng.random() < 0.5 else -1)
        falling = PlatformState(float(x), float(y), 0.0, False, coins, float(rng.uniform(ENEMY_FROM, ENEMY_TO)), speed)
        return _taken(falling)

    def policy(self, state: PlatformState, frames: int, rng: np.random.Generator) -> list[int]:
        """A direction and the jump key, each held for 1 to 12 frames."""
        for_direction, for_jump = rng.spawn(2)
        across = held(frames, np.array([0.2, 0.4, 0.4]), for_direction)
        jump = held(frames, np.array([0.6, 0.4]), for_jump)
        return [int(direction + 3 * pressed) for direction, pressed in zip(across, jump, strict=True)]

    def step(self, state: PlatformState, action: int) -> PlatformState:
        """Run, fall or jump; then blocks stop the player, coins are taken, and the enemy moves and throws."""
        direction, jump = (0, -1, 1)[action % 3], action >= 3
        jumps = jump and state.on_ground
        vy = -JUMP if jumps else min(state.vy + GRAVITY, FALL)
        x = _moved_across(state, direction * RUN)
        y, vy, on_ground = _moved_down(x, state.y, vy)
        enemy_x, enemy_speed = _patrolled(state.enemy_x, state.enemy_speed)
        moved = PlatformState(x, y, vy, on_ground, state.coins, enemy_x, enemy_speed)
        return _thrown(_taken(moved))

    def draw(self, state: PlatformState) -> Frame:
        """The player before the enemy before the coins before the blocks."""
        image_HWC = _BACKGROUND_HWC.copy()
        for coin, there in zip(COINS, state.coins, strict=True):
            if there:
                paint(image_HWC, coin, COIN)
        paint(image_HWC, state.enemy, ENEMY)
        paint(image_HWC, state.player, PLAYER)
        return np.rint(image_HWC).astype(np.uint8)

    def read(self, frame_HWC: Frame, before: PlatformState | None = None) -> PlatformState:
        """Centres of the colours, in the neighbourhood where most of each colour is.

        Speeds come from ``before``; without it the player has none and the enemy goes right. Where the player hides
        the enemy, the enemy is where it must have come from ``before``.
        """
        player = _READER.find(frame_HWC, 0, WIDTH, HEIGHT, 0, FRAME_SIZE)
        x, y = player.x, player.y
        top = int(GROUND.y - ENEMY_HEIGHT)
        enemy_x = _READER.find(frame_HWC, 1, ENEMY_WIDTH, ENEMY_HEIGHT, top, int(GROUND.y)).x
        coins = _READER.things_there(frame_HWC)
        speed = ENEMY_SPEED
        if before is not None:
            expected_x, speed = _patrolled(before.enemy_x, before.enemy_speed)
            if player.overlaps(Box(expected_x, top, ENEMY_WIDTH, ENEMY_HEIGHT)):
                enemy_x = expected_x
            elif abs(enemy_x - before.enemy_x) > ENEMY_SPEED / 2:
                speed = ENEMY_SPEED if enemy_x > before.enemy_x else -ENEMY_SPEED
        still = before is not None and abs(y - before.y) < 0.4
        gap = 1.0 if still else 0.25  # a fall is about to end within a pixel of the block, a stand is not in motion
        on_ground = any(abs(y + HEIGHT - solid.y) < gap and player.is_over(solid) for solid in SOLIDS)
        under = any(abs(y - solid.y - solid.height) < 0.5 and player.is_over(solid) for solid in SOLIDS)
        vy = 0.0 if before is None or on_ground or under else min(max(y - before.y, -JUMP), FALL)
        return _thrown(PlatformState(x, y, vy, on_ground, coins, enemy_x, speed))

    def alike(self, state: PlatformState, before: PlatformState) -> tuple[PlatformState, ...]:
        """Within a pixel of a block, whether the player stands on it or is about to land or to leave cannot be seen.

        A player read as within a block by less than that is beside it: the simulator would push it to the other side.
        """
        state = _pushed_out(state)
        vy = min(max(state.y - before.y, -JUMP), FALL)
        moving = (state, replace(state, on_ground=False, vy=vy))
        for solid in SOLIDS:
            if abs(state.y + HEIGHT - solid.y) < 1 and state.player.is_over(solid):
                return *moving, replace(state, y=solid.y - HEIGHT, on_ground=True, vy=0.0)
        return moving

    def is_inside(self, state: PlatformState) -> bool:
        """Whether the player is more than a pixel and a half within a block, or as far off the screen."""
        x, y, width, height = state.x + INSIDE, state.y + INSIDE, WIDTH - 2 * INSIDE, HEIGHT - 2 * INSIDE
        inner = Box(x, y, width, height)
        return any(inner.overlaps(solid) for solid in SOLIDS) or not -INSIDE <= state.x <= FRAME_SIZE - WIDTH + INSIDE


def _moved_across(state: PlatformState, distance: float) -> float:
    """x after a run of ``distance``, stopped by blocks and by the edges of the screen."""
    x = state.x + distance
    for solid in SOLIDS:
        if Box(x, state.y, WIDTH, HEIGHT).overlaps(solid):
            x = solid.x - WIDTH if distance > 0 else solid.x + solid.width
    return float(min(max(x, 0.0), FRAME_SIZE - WIDTH))


def _moved_down(x: float, y: float, vy: float) -> tuple[float, float, bool]:
    """(y, vy, on ground) after a fall of ``vy``, stopped by blocks and by the top of the screen."""
    y = y + vy
    for solid in SOLIDS:
        if Box(x, y, WIDTH, HEIGHT).overlaps(solid):
            return (solid.y - HEIGHT, 0.0, True) if vy > 0 else (solid.y + solid.height, 0.0, False)
    return (0.0, 0.0, False) if y < 0 else (y, vy, False)


def _pushed_out(state: PlatformState) -> PlatformState:
    """The player beside the blocks that it overlaps, where it is nearest."""
    for solid in SOLIDS:
        if state.player.overlaps(solid):
            left, right = solid.x - WIDTH - state.x, solid.x + solid.width - state.x
            up, down = solid.y - HEIGHT - state.y, solid.y + solid.height - state.y
            move = min((left, right, up, down), key=abs)
            state = replace(state, x=state.x + move) if move in (left, right) else replace(state, y=state.y + move)
    return state


def _patrolled(x: float, speed: float) -> tuple[float, float]:
    """The enemy's next place and speed: it turns where its way ends."""
    x = x + speed
    if x > ENEMY_TO:
        return 2 * ENEMY_TO - x, -ENEMY_SPEED
    return (2 * ENEMY_FROM - x, ENEMY_SPEED) if x < ENEMY_FROM else (x, speed)


def _taken(state: PlatformState) -> PlatformState:
    """Coins that the player touches are gone, for good."""
    player = state.player
    coins = tuple(there and not player.overlaps(coin) for coin, there in zip(COINS, state.coins, strict=True))
    return replace(state, coins=coins)


def _thrown(state: PlatformState) -> PlatformState:
    """The enemy throws up a player whom it touches."""
    return replace(state, vy=-JUMP, on_ground=False) if state.player.overlaps(state.enemy) else state


def _background() -> NDArray[np.float64]:
    image_HWC = np.empty((FRAME_SIZE, FRAME_SIZE, 3))
    image_HWC[:] = SKY
    for solid in SOLIDS:
        paint(image_HWC, solid, SOLID)
    return image_HWC


_BACKGROUND_HWC = _background()
_READER = ColourReader(_BACKGROUND_HWC, SKY, (PLAYER, ENEMY, COIN), COINS)
