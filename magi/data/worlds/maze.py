"""``maze``: first person, a ray caster on one fixed map, flat walls of one hue a cell.

The player turns and walks; walls stop whom would come nearer than a radius at which, with this field of view, no wall
fills the picture. Every column of pixels is one ray, its wall drawn with the exact share of each pixel that it covers,
so heights and colours of the columns give the pose. Units are tenths of a cell and degrees; y grows downwards on the
map, and a heading of 0 looks along x.
"""

import colorsys
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magi.data.worlds.contract import Frame, World, WorldState, held

MAP = (
    "#########",
    "#...#...#",
    "#.......#",
    "#..##...#",
    "#...#..##",
    "##......#",
    "#...#...#",
    "#...#...#",
    "#########",
)
CELL, FRAME_SIZE = 10.0, 64
WALK, TURN = 2.0, 12.0
RADIUS = 4.0
HALF_VIEW = 1.35  # of the view to each side, at a distance of 1: more than a cell is seen at the radius
WALL_HEIGHT = 0.36 * CELL * FRAME_SIZE  # pixels times distance
CEILING, FLOOR = (24, 28, 44), (70, 66, 62)
AHEAD = 10.0
INSIDE = 1.5  # tenths of a cell that the oracle's error does not explain
LOST = 2.0  # pixels of wall that a column is off on average, where the search begins anew from the whole map

_IS_WALL_YX = np.array([[cell == "#" for cell in row] for row in MAP])
_LINES = np.arange(len(MAP) + 1)
_ACROSS_W = ((np.arange(FRAME_SIZE) + 0.5) / FRAME_SIZE * 2 - 1) * HALF_VIEW
# By the axis that a face is across, then by cell: neighbours differ in hue, the two faces at a corner in brightness.
_COLOURS = np.array([
    [[colorsys.hsv_to_rgb((3 * x + 5 * y) % 13 / 13, 0.75, value) for x in range(len(MAP))] for y in range(len(MAP))]
    for value in (0.95, 0.7)
]) * 255  # fmt: skip


@dataclass(frozen=True)
class MazeState(WorldState):
    """Where the player is and looks; there are no ``things`` in a maze."""

    x: float
    y: float
    heading: float
    things: tuple[bool, ...] = ()

    @property
    def ahead_x(self) -> float:
        """x of a point a cell ahead: with (x, y) it says the heading as a length does, without a jump at 360."""
        return float(self.x + AHEAD * np.cos(np.radians(self.heading)))

    @property
    def ahead_y(self) -> float:
        """y of that point."""
        return float(self.y + AHEAD * np.sin(np.radians(self.heading)))


class Maze(World[MazeState]):
    """The simulator, its drawing and its oracle (``magi.data.worlds.contract.World``)."""

    name = "maze"
    actions = ("stand", "left", "right", "forward", "forward left", "forward right")
    size = FRAME_SIZE
    fps = 15
    state = MazeState
    positions = ("x", "y", "ahead_x", "ahead_y")
    things = "things"

    def start(self, rng: np.random.Generator) -> MazeState:
        """Anywhere with free space around, looking anywhere."""
        while True:
            x, y, heading = (float(value) for value in rng.uniform(0, (90, 90, 360)))
            if not _hits_wall(x, y, RADIUS):
                return MazeState(x, y, heading)

    def policy(self, state: MazeState, frames: int, rng: np.random.Generator) -> list[int]:
        """Keys held for 1 to 12 frames, most of them forward; where a wall is near ahead, turns until it is not."""
        wanted = held(frames, np.array([0.1, 0.12, 0.12, 0.26, 0.2, 0.2]), rng)
        turns, actions, turn = rng.integers(1, 3, frames), [0], 0
        for wish, new_turn in zip(wanted[1:], turns[1:], strict=True):
            turn = (turn or int(new_turn)) if self.step(state, 3) != _walked(state) else 0
            actions.append(turn + 3 * (wish >= 3) if turn else wish)
            state = self.step(state, actions[-1])
        return actions

    def step(self, state: MazeState, action: int) -> MazeState:
        """Turn, then walk, along each axis as far as no wall is near."""
        turned = replace(state, heading=(state.heading + (0, -TURN, TURN)[action % 3]) % 360)
        ahead = _walked(turned) if action >= 3 else turned
        x = turned.x if _hits_wall(ahead.x, turned.y, RADIUS) else ahead.x
        y = turned.y if _hits_wall(x, ahead.y, RADIUS) else ahead.y
        return replace(turned, x=x, y=y)

    def round_trip(self, state: MazeState, rng: np.random.Generator) -> list[int]:
        """A whole turn between stands, or a walk ahead and back where no wall is in the way; 40 frames."""
        turn, whole, legs = int(rng.integers(1, 3)), int(360 / TURN), 5
        turned = [0] * legs + [turn] * whole + [0] * legs
        walked = ([3] * legs + [turn] * (whole // 2)) * 2
        ends = reduce(self.step, walked, state)
        returns = max(abs(ends.x - state.x), abs(ends.y - state.y)) < 1e-6
        return walked if returns and rng.random() < 0.5 else turned

    def draw(self, state: MazeState) -> Frame:
        """The walls as the rays meet them, between a ceiling and a floor."""
        height_PW, colour_PWC = _cast(np.array([[state.x, state.y, state.heading]]))
        rows_H1 = np.abs(np.arange(FRAME_SIZE) - (FRAME_SIZE - 1) / 2)[:, None]
        cover_HW1 = np.clip(height_PW / 2 - rows_H1 + 0.5, 0, 1)[..., None]
        back_HWC = np.repeat(np.array([CEILING, FLOOR], np.float64), FRAME_SIZE // 2, axis=0)[:, None]
        return np.rint(back_HWC + cover_HW1 * (colour_PWC - back_HWC)).astype(np.uint8)

    def read(self, frame_HWC: Frame, before: MazeState | None = None) -> MazeState:
        """The pose whose walls are the frame's, searched from where an action may lead; else on the whole map."""
        image_HWC = frame_HWC.astype(np.float64)
        colour_WC = image_HWC[FRAME_SIZE // 2 - 1 : FRAME_SIZE // 2 + 1].mean(0)
        back_HWC = np.repeat(np.array([CEILING, FLOOR], np.float64), FRAME_SIZE // 2, axis=0)[:, None]
        contrast_HWC = colour_WC - back_HWC
        share_HW = ((image_HWC - back_HWC) * contrast_HWC).sum(-1) / (contrast_HWC**2).sum(-1).clip(1)
        seen = share_HW.clip(0, 1).sum(0), colour_WC
        found, cost = np.zeros(3), np.inf
        if before is not None:
            steps = [self.step(before, action) for action in range(len(self.actions))]
            found, cost = _refined(np.array([[state.x, state.y, state.heading] for state in steps]), seen)
        if cost > LOST:
            poses_P3, walls = self._whole_map
            nearest = np.argsort(_costs(walls, seen))[:8]
            again, new_cost = min(
                (_refined(poses_P3[number, None], seen) for number in nearest), key=lambda one: one[1]
            )
            found = again if new_cost < cost else found
        return MazeState(float(found[0]), float(found[1]), float(found[2] % 360))

    @cached_property
    def _whole_map(self) -> tuple[NDArray[np.float64], tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Poses everywhere on the map, and what is seen from them."""
        places = np.arange(2.5, CELL * len(MAP), 2.5)
        poses = [(x, y, heading) for x in places for y in places if not _hits_wall(x, y, RADIUS - 1)
                 for heading in np.arange(0, 360, 15)]  # fmt: skip
        return np.array(poses), _cast(np.array(poses))

    def alike(self, state: MazeState, before: MazeState) -> tuple[MazeState, ...]:
        """Nothing but the key moves the player, and one frame shows the whole pose."""
        return (state,)

    def is_inside(self, state: MazeState) -> bool:
        """Whether the player is nearer to a wall than the radius allows, by more than the oracle's error."""
        return _hits_wall(state.x, state.y, RADIUS - INSIDE)


def _walked(state: MazeState) -> MazeState:
    """A step ahead, as if there were no walls."""
    angle = np.radians(state.heading)
    return replace(state, x=float(state.x + WALK * np.cos(angle)), y=float(state.y + WALK * np.sin(angle)))


def _hits_wall(x: float, y: float, radius: float) -> bool:
    """Whether a square around (x, y) reaches into a wall; outside of the map is wall."""
    low_x, high_x, low_y, high_y = (
        int(np.floor(end / CELL)) for end in (x - radius, x + radius, y - radius, y + radius)
    )
    if min(low_x, low_y) < 0 or max(high_x, high_y) >= len(MAP):
        return True
    return bool(_IS_WALL_YX[low_y : high_y + 1, low_x : high_x + 1].any())


def _cast(poses_P3: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Height in pixels (P, W) and colour (P, W, 3) of the wall in every column of what is seen from each pose."""
    x_P1, y_P1 = poses_P3[:, :1] / CELL, poses_P3[:, 1:2] / CELL
    angle_P1 = np.radians(poses_P3[:, 2:])
    ray_x_PW = np.cos(angle_P1) - np.sin(angle_P1) * _ACROSS_W
    ray_y_PW = np.sin(angle_P1) + np.cos(angle_P1) * _ACROSS_W
    across_x = _faces(x_P1, y_P1, ray_x_PW, ray_y_PW, _IS_WALL_YX)
    across_y = _faces(y_P1, x_P1, ray_y_PW, ray_x_PW, _IS_WALL_YX.T)
    is_y_PW = across_y[0] < across_x[0]
    distance_PW = np.where(is_y_PW, across_y[0], across_x[0])
    row_PW, column_PW = np.where(is_y_PW, across_y[1], across_x[2]), np.where(is_y_PW, across_y[2], across_x[1])
    return WALL_HEIGHT / CELL / distance_PW.clip(1e-3), _COLOURS[is_y_PW.astype(int), row_PW, column_PW]


def _faces(
    a_P1: NDArray[Any], b_P1: NDArray[Any], ray_a_PW: NDArray[Any], ray_b_PW: NDArray[Any], is_wall_BA: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Of the nearest wall that is across the axis a: its distance (along the view), and its cell on a and on b."""
    safe_PW1 = np.where(np.abs(ray_a_PW) < 1e-9, 1e-9, ray_a_PW)[..., None]
    distance_PWL = (_LINES - a_P1[..., None]) / safe_PW1
    cell_a_PWL = np.where(safe_PW1 > 0, _LINES, _LINES - 1)
    cell_b_PWL = np.floor(b_P1[..., None] + distance_PWL * ray_b_PW[..., None])
    last = len(MAP) - 1
    on_map_PWL = (cell_a_PWL >= 0) & (cell_a_PWL <= last) & (cell_b_PWL >= 0) & (cell_b_PWL <= last)
    cell_a_PWL, cell_b_PWL = cell_a_PWL.clip(0, last), cell_b_PWL.clip(0, last).astype(int)
    meets_PWL = on_map_PWL & (distance_PWL > 0) & is_wall_BA[cell_b_PWL, cell_a_PWL]
    distance_PWL = np.where(meets_PWL, distance_PWL, np.inf)
    nearest_PW1 = distance_PWL.argmin(-1)[..., None]
    return tuple(
        np.take_along_axis(values, nearest_PW1, -1)[..., 0] for values in (distance_PWL, cell_a_PWL, cell_b_PWL)
    )  # type: ignore[return-value]


def _costs(walls: tuple[NDArray[Any], NDArray[Any]], seen: tuple[NDArray[Any], NDArray[Any]]) -> NDArray[np.float64]:
    """Of each pose: by how many pixels of wall a column is off, on average; another colour is off by up to 8."""
    height_PW = np.abs(np.minimum(walls[0], FRAME_SIZE) - seen[0]).clip(0, 8)
    colour_PW = np.abs(walls[1] - seen[1]).sum(-1) / 40
    costs_P: NDArray[np.float64] = (height_PW + colour_PW.clip(0, 8)).mean(1)
    return costs_P


_AROUND = np.array(np.meshgrid([-1.5, 0, 1.5], [-1.5, 0, 1.5], [-6, 0, 6])).reshape(3, -1).T


def _refined(
    poses_P3: NDArray[np.float64], seen: tuple[NDArray[Any], NDArray[Any]]
) -> tuple[NDArray[np.float64], float]:
    """The best pose near the best of some, by ever smaller steps, and its cost."""
    for scale in 0.6 ** np.arange(9):
        best = poses_P3[_costs(_cast(poses_P3), seen).argmin()]
        poses_P3 = best + scale * _AROUND
    costs_P = _costs(_cast(poses_P3), seen)
    return poses_P3[costs_P.argmin()], float(costs_P.min())
