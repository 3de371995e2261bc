"""One procedural world seen by many sensors: land drawn in metres, then rendered in four bands.

Every choice is a hash of a place (block, lot, tree) and the scene's salt, so drawing is a few array
expressions without loops over objects, and a scene of any size has the same texture. `draw` makes the land,
`render` its image.
"""

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from crossearth.data.common.config import checked

F32 = NDArray[np.float32]
Bool = NDArray[np.bool_]
# bands of a rendered scene, in this order
BANDS = ("red", "green", "blue", "near infrared")


class Material(IntEnum):
    """What the ground is made of. Cars stand on it and are a mask of their own."""

    GRASS = 0
    FIELD = 1
    SOIL = 2
    TREE = 3
    WATER = 4
    ROAD = 5
    PAVED = 6
    ROOF = 7
    RUBBLE = 8


@checked
class Landscape:
    """How people and nature use the land. Lengths in m, shares 0..1.

    Attributes:
        block_m: side of a block between roads.
        road_m: width of roads.
        lot_m: about the side of a building lot.
        roads: share of the grid's lines that are roads.
        built, park, field, forest, soil: weights of what a block is.
        building, paved: share of lots with a building, with a paved yard.
        roof: side of a roof as share of its lot.
        gable: share of roofs with two slopes.
        trees: share of tree places taken in parks; gardens have half.
        cars: share of parking places taken.
        river, lake: chance of one in a scene.
        rubble: share of the ground under rubble.
        damage: share of roofs that a storm broke.
    """

    block_m: float = 62.0
    road_m: float = 7.0
    lot_m: float = 21.0
    roads: float = 0.9
    built: float = 6.0
    park: float = 1.0
    field: float = 0.0
    forest: float = 0.5
    soil: float = 0.3
    building: float = 0.75
    paved: float = 0.15
    roof: float = 0.68
    gable: float = 0.6
    trees: float = 0.5
    cars: float = 0.4
    river: float = 0.1
    lake: float = 0.1
    rubble: float = 0.03
    damage: float = 0.0


@checked
class Climate:
    """Reflectance in percent of full scale, (red, green, blue, near infrared), of each material.

    Attributes:
        roads, roofs, fields, cars: what single objects are chosen from.
        marks: how much brighter lane marks are than the road.
        rough: amplitude of fine texture per material, as share of its brightness.
    """

    grass: tuple[float, ...] = (34, 42, 26, 70)
    field: tuple[float, ...] = (45, 48, 28, 66)
    soil: tuple[float, ...] = (58, 50, 40, 60)
    tree: tuple[float, ...] = (18, 28, 15, 62)
    water: tuple[float, ...] = (14, 22, 28, 5)
    paved: tuple[float, ...] = (58, 57, 55, 52)
    rubble: tuple[float, ...] = (50, 46, 42, 44)
    roads: tuple[tuple[float, ...], ...] = ((40, 40, 42, 38), (46, 45, 45, 42))
    roofs: tuple[tuple[float, ...], ...] = (
        (64, 34, 26, 52),
        (78, 77, 74, 68),
        (46, 29, 24, 42),
        (58, 36, 30, 50),
    )
    fields: tuple[tuple[float, ...], ...] = (
        (40, 50, 24, 74),
        (66, 60, 34, 56),
        (52, 42, 32, 44),
        (30, 42, 20, 78),
    )
    cars: tuple[tuple[float, ...], ...] = (
        (92, 92, 92, 85),
        (10, 10, 12, 10),
        (75, 12, 12, 55),
        (16, 24, 66, 30),
        (60, 62, 64, 56),
    )
    marks: float = 0.7
    rough: tuple[float, ...] = (0.10, 0.07, 0.10, 0.22, 0.03, 0.05, 0.05, 0.05, 0.35)

    def table(self) -> F32:
        """(4, materials); of roads and roofs the first kind."""
        rows = (
            self.grass,
            self.field,
            self.soil,
            self.tree,
            self.water,
            self.roads[0],
            self.paved,
            self.roofs[0],
            self.rubble,
        )
        return np.array(rows, np.float32).T


@checked
class Sensor:
    """What stands between the ground and the file.

    Attributes:
        m_per_px: ground sample distance of the drawing.
        sun_azimuth, sun_elevation: degrees, azimuth clockwise from the image's top.
        shadow: light left in the shade, 0..1.
        haze: share of the light that is haze.
        haze_colour: per cent, per band.
        blur_px: sigma of the optics.
        noise: sigma in grey levels.
        gain: per band.
    """

    m_per_px: float
    sun_azimuth: float = 140.0
    sun_elevation: float = 45.0
    shadow: float = 0.45
    haze: float = 0.0
    haze_colour: tuple[float, ...] = (72, 75, 80, 60)
    blur_px: float = 0.6
    noise: float = 3.0
    gain: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Land:
    """A synthetic scene; all arrays (H, W).

    Attributes:
        material: of `Material`, without cars.
        car: mask.
        height_m: of roofs, trees and cars above the ground.
        pick: 0..1, one number per object: which roof, field, car it is.
        slope: -1..1, how far a surface leans away from (-) or towards (+) the sun's azimuth.
        stripes: -1..1, furrows and lane marks.
        variant: 0..3, damage of a roof; 1 where water stands, and where rubble blocks a road.
    """

    material: NDArray[np.uint8]
    car: Bool
    height_m: F32
    pick: F32
    slope: F32
    stripes: F32
    variant: NDArray[np.uint8]

    def window(self, top: int, left: int, height: int, width: int) -> "Land":
        part = (slice(top, top + height), slice(left, left + width))
        return Land(*(getattr(self, layer.name)[part] for layer in fields(self)))


def draw(height: int, width: int, landscape: Landscape, sensor: Sensor, rng: np.random.Generator) -> Land:
    return _Drawing(height, width, landscape, sensor, rng).land()


class _Drawing:
    """One scene while it is drawn: coordinates in metres along and across its streets, and its salt."""

    def __init__(
        self, height: int, width: int, landscape: Landscape, sensor: Sensor, rng: np.random.Generator
    ) -> None:
        self.use, self.rng = landscape, rng
        self.shape = (height, width)
        self.salt = int(rng.integers(2**31))
        self.m_per_px = sensor.m_per_px
        rows, cols = np.mgrid[:height, :width].astype(np.float32) * np.float32(sensor.m_per_px)
        self.x, self.y = cols, rows
        self.angle = float(rng.uniform(0, np.pi / 2))
        sun = np.radians(sensor.sun_azimuth)
        self.sun = (float(np.sin(sun)), float(-np.cos(sun)))
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        block = landscape.block_m
        along = cols * cos + rows * sin + rng.uniform(0, block)
        across = rows * cos - cols * sin + rng.uniform(0, block)
        bend = 0.06 * block
        phases = rng.uniform(0, 2 * np.pi, 2)
        self.u = (along + bend * np.sin(across * (2 * np.pi / (3.1 * block)) + phases[0])).astype(np.float32)
        self.v = (across + bend * np.sin(along * (2 * np.pi / (3.7 * block)) + phases[1])).astype(np.float32)

    def land(self) -> Land:
        use = self.use
        block = self._blocks()
        forest, field_, soil, park = block == 3, block == 2, block == 4, block == 1
        built = self._kind(self.u, self.v) == 0

        material = np.full(self.shape, Material.GRASS, np.uint8)
        pick = self._noise(12.0) * 0.5 + 0.5
        stripes = np.zeros(self.shape, np.float32)
        material[soil] = Material.SOIL
        field_pick, furrows = self._fields()
        material[field_] = Material.FIELD
        pick[field_], stripes[field_] = field_pick[field_], furrows[field_]

        river, lake = self._water()
        water = river | lake
        road, walk, marks, road_pick = self._roads()
        material[walk & built] = Material.PAVED
        free = built & ~water & ~road
        roof, yard, roof_pick, slope, roof_height, variant, parked, car_pick = self._lots(free)
        material[yard] = Material.PAVED
        heaps = self._noise(9.0)
        rubble = heaps > np.quantile(heaps, 1 - use.rubble)
        material[rubble & ~field_ & ~forest] = Material.RUBBLE
        canopy, crown, crown_slope = self._trees(forest, park, built & ~road & ~yard)
        material[water] = Material.WATER
        trees = canopy & ~water
        material[trees] = Material.TREE
        pick[trees], slope[trees & ~roof] = crown[trees], crown_slope[trees & ~roof]
        material[road] = Material.ROAD
        blocked = road & rubble & (use.damage > 0)
        material[blocked] = Material.RUBBLE
        variant[blocked | (lake & ~road & ~roof)] = 1
        stripes[road], pick[road] = marks[road], road_pick[road]
        material[roof] = Material.ROOF
        pick[roof] = roof_pick[roof]

        moving, moving_pick = self._traffic()
        parked &= material == Material.PAVED
        moving &= material == Material.ROAD
        cars = parked | moving
        pick[parked], pick[moving] = car_pick[parked], moving_pick[moving]
        tree_height = np.where(material == Material.TREE, 3 + 4 * pick, 0)
        height = np.where(roof, roof_height, tree_height).astype(np.float32)
        height[cars] = 1.5
        return Land(material, cars, height, pick.astype(np.float32), slope, stripes, variant)

    def _hash(self, i: NDArray[Any], j: NDArray[Any], kind: int) -> F32:
        """Uniform 0..1 per pair of integers (an integer finaliser: multiply, shift, twice)."""
        h = i.astype(np.uint32) * np.uint32(0x9E3779B1) + j.astype(np.uint32) * np.uint32(0x85EBCA77)
        h += np.uint32((self.salt + kind * 0x61C88647) & 0xFFFFFFFF)
        h ^= h >> np.uint32(15)
        h *= np.uint32(0x2C1B3C6D)
        h ^= h >> np.uint32(12)
        h *= np.uint32(0x297A2D39)
        h ^= h >> np.uint32(15)
        return (h >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)

    def _noise(self, cell_m: float) -> F32:
        """Smooth noise of about -1..1 with features of `cell_m`."""
        return soft_noise(self.shape, cell_m / self.m_per_px, self.rng)

    def _kind(self, u: F32, v: F32) -> NDArray[np.uint8]:
        """0 built, 1 park, 2 field, 3 forest, 4 soil of the block at u, v."""
        use = self.use
        weights = np.cumsum([use.built, use.park, use.field, use.forest, use.soil])
        chance = self._hash(np.floor(u / use.block_m), np.floor(v / use.block_m), 1)
        return np.searchsorted(weights / weights[-1], chance, side="right").clip(0, 4).astype(np.uint8)

    def _blocks(self) -> NDArray[np.uint8]:
        """Kinds of blocks with nature's uneven borders."""
        wander = 0.12 * self.use.block_m
        return self._kind(self.u + wander * self._noise(16.0), self.v + wander * self._noise(16.0))

    def _roads(self) -> tuple[Bool, Bool, F32, F32]:
        """Roads, the walks beside them, lane marks, and a number per road."""
        use = self.use
        road, walk = np.zeros(self.shape, bool), np.zeros(self.shape, bool)
        marks, pick = np.zeros(self.shape, np.float32), np.zeros(self.shape, np.float32)
        for kind, (a, b) in enumerate(((self.u, self.v), (self.v, self.u)), start=2):
            line = np.round(a / use.block_m)
            distance = np.abs(a - line * use.block_m)
            there = self._hash(line, np.full_like(line, kind), kind) < use.roads
            half = use.road_m * (0.4 + 0.25 * self._hash(line, line, kind))
            here = there & (distance < half)
            road |= here
            pick[here] = self._hash(line, line, kind + 38)[here]
            walk |= there & (distance < half + 1.6)
            dashes = (distance < 0.45) & (np.mod(b, 9.0) < 5.0)
            marks[there & dashes] = 1.0
        return road, walk, marks, pick

    def _lots(self, free: Bool) -> tuple[Bool, Bool, F32, F32, F32, NDArray[np.uint8], Bool, F32]:
        """Masks of roofs, yards; per px a roof's pick, slope, height, damage; parked cars, their picks."""
        use = self.use
        margin = 0.5 * use.road_m + 3.0
        side = use.block_m - 2 * margin
        per_block = max(1, round(side / use.lot_m))
        lot = side / per_block
        index, local = [], []
        inside = free.copy()
        for a in (self.u, self.v):
            block = np.floor(a / use.block_m)
            place = a - block * use.block_m - margin
            inside &= (place >= 0) & (place < side)
            number = np.clip(np.floor(place / lot), 0, per_block - 1)
            index.append(block * per_block + number)
            local.append(place - (number + 0.5) * lot)
        (i, j), (a, b) = index, local
        chance = self._hash(i, j, 5)
        half_a = 0.5 * lot * use.roof * (0.8 + 0.4 * self._hash(i, j, 6))
        half_b = 0.5 * lot * use.roof * (0.8 + 0.4 * self._hash(i, j, 7))
        a = a - 0.06 * lot * (2 * self._hash(i, j, 8) - 1)
        notch = (self._hash(i, j, 9) < 0.3) & (a > 0.1 * half_a) & (b > 0.1 * half_b)
        roof = inside & (chance < use.building) & (np.abs(a) < half_a) & (np.abs(b) < half_b) & ~notch
        yard = inside & (chance > 1 - use.paved) & ~roof

        # a gable's sides lean along the short axis; x = u cos - v sin, y = u sin + v cos
        along_u = half_a < half_b
        cos, sin = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        to_sun = (self.sun[0] * cos + self.sun[1] * sin, -self.sun[0] * sin + self.sun[1] * cos)
        slope = np.where(along_u, np.sign(a) * to_sun[0], np.sign(b) * to_sun[1])
        slope = np.where(roof & (self._hash(i, j, 10) < use.gable), slope, 0).astype(np.float32)
        height = 4 + 5 * self._hash(i, j, 11)
        broken = self._hash(i, j, 12)
        levels = (broken < use.damage) + (broken < 0.6 * use.damage) + (broken < 0.25 * use.damage)

        bay_a, bay_b = np.floor(a / 5.6), np.floor(b / 3.0)
        taken = self._hash(bay_a + 97 * i, bay_b + 89 * j, 13)
        parked = yard & (taken < use.cars)
        parked &= (np.abs(a - (bay_a + 0.5) * 5.6) < 2.3) & (np.abs(b - (bay_b + 0.5) * 3.0) < 1.05)
        roof_pick, car_pick = self._hash(i, j, 14), taken / max(use.cars, 0.01)
        damage = np.where(roof, levels, 0).astype(np.uint8)
        return roof, yard, roof_pick, slope, height, damage, parked, car_pick

    def _traffic(self) -> tuple[Bool, F32]:
        """Places of cars along the lanes of both road directions, and their picks."""
        use = self.use
        cars, pick = np.zeros(self.shape, bool), np.zeros(self.shape, np.float32)
        for kind, (a, b) in enumerate(((self.u, self.v), (self.v, self.u)), start=15):
            line = np.round(a / use.block_m)
            offset = a - line * use.block_m
            lane = 2 * line + np.where(offset < 0, -1, 1)
            gap = np.floor(b / 11.0)
            taken = self._hash(gap, lane, kind) / max(0.6 * use.cars, 0.01)
            along = b - gap * 11.0 - 3.0 - 4.0 * self._hash(gap, lane, kind + 2)
            car = (taken < 1) & (np.abs(np.abs(offset) - 0.22 * use.road_m) < 1.05) & (np.abs(along) < 2.4)
            cars |= car
            pick[car] = taken[car]
        return cars, pick

    def _trees(self, forest: Bool, park: Bool, garden: Bool) -> tuple[Bool, F32, F32]:
        """Crowns on two shifted lattices: mask, a number per tree, how its crown leans to the sun."""
        use = self.use
        density = np.where(forest, 0.97, np.where(park, use.trees, np.where(garden, 0.5 * use.trees, 0.04)))
        canopy = forest & (self._noise(9.0) > -0.45)
        crown, lean = np.full(self.shape, 0.3, np.float32), np.full(self.shape, -0.35, np.float32)
        for kind, (spacing, shift) in enumerate(((7.5, 0.0), (6.3, 3.1)), start=19):
            i, j = np.floor((self.x + shift) / spacing), np.floor((self.y + shift) / spacing)
            radius = spacing * (0.28 + 0.2 * self._hash(i, j, kind))
            slack = 0.5 * spacing - radius
            dx = self.x + shift - (i + 0.5) * spacing - slack * (2 * self._hash(i, j, kind + 2) - 1)
            dy = self.y + shift - (j + 0.5) * spacing - slack * (2 * self._hash(i, j, kind + 4) - 1)
            tree = (self._hash(i, j, kind + 6) < density) & (dx * dx + dy * dy < radius * radius)
            canopy |= tree
            crown[tree] = self._hash(i, j, kind + 8)[tree]
            lean[tree] = ((dx * self.sun[0] + dy * self.sun[1]) / radius)[tree]
        return canopy, crown, lean

    def _fields(self) -> tuple[F32, F32]:
        """A number per field, and furrows along it."""
        turn = self.angle + 0.4
        p = self.x * np.cos(turn) + self.y * np.sin(turn)
        q = self.y * np.cos(turn) - self.x * np.sin(turn)
        i, j = np.floor(p / 38.0), np.floor(q / 26.0)
        across = np.where(self._hash(i, j, 30) < 0.5, p, q)
        return self._hash(i, j, 31), np.sin(across * (2 * np.pi / 2.8)).astype(np.float32)

    def _water(self) -> tuple[Bool, Bool]:
        """A river across the scene, and a lake: masks, each empty unless chance has it."""
        use = self.use
        river, lake = np.zeros(self.shape, bool), np.zeros(self.shape, bool)
        if self.rng.random() < use.river:
            turn = self.rng.uniform(0, np.pi)
            p = self.x * np.cos(turn) + self.y * np.sin(turn)
            q = self.y * np.cos(turn) - self.x * np.sin(turn)
            middle = self.rng.uniform(0.25, 0.75) * (p.max() - p.min()) + p.min()
            path = middle + 7 * np.sin(q / 19.0) + 4 * np.sin(q / 8.3)
            river = np.abs(p - path) < self.rng.uniform(6.5, 13.0)
        if self.rng.random() < use.lake:
            basin = self._noise(34.0)
            lake = (basin > np.quantile(basin, self.rng.uniform(0.7, 0.92))) & ~river
        return river, lake


def render(land: Land, climate: Climate, sensor: Sensor, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The image of a land: uint8 (4, H, W), bands as `BANDS`."""
    shape = land.material.shape
    colour = climate.table()[:, land.material]
    roof, field_ = land.material == Material.ROOF, land.material == Material.FIELD
    road = land.material == Material.ROAD
    objects = (
        (road, climate.roads),
        (roof, climate.roofs),
        (field_, climate.fields),
        (land.car, climate.cars),
    )
    for mask, kinds in objects:
        table = np.array(kinds, np.float32).T
        colour[:, mask] = table[:, (land.pick[mask] * len(kinds)).astype(int) % len(kinds)]
    # what a storm broke shows its inside
    broken = roof & (land.variant > 0) & (soft_noise(shape, 2.5, rng) < land.variant * 0.45 - 0.75)
    colour[:, broken] = np.array(climate.rubble, np.float32)[:, None]

    rough = np.array(climate.rough, np.float32)[land.material]
    fine = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), 0.7) * 2
    light = 1 + rough * fine + 0.08 * soft_noise(shape, 26.0, rng)
    light *= 1 + 0.10 * (land.pick - 0.5)
    light *= 1 + 0.30 * land.slope * np.where(land.material == Material.TREE, 1.2, 1.0).astype(np.float32)
    light += np.where(road, climate.marks, np.where(field_, 0.09, 0)) * np.where(land.car, 0, land.stripes)
    light *= np.where(_shade(land, sensor), sensor.shadow, 1)

    image = colour * light * np.array(sensor.gain, np.float32)[:, None, None]
    if sensor.haze:
        veil = sensor.haze * (1 + 0.35 * soft_noise(shape, 60.0, rng))
        image = image * (1 - veil) + np.array(sensor.haze_colour, np.float32)[:, None, None] * veil
    image = ndimage.gaussian_filter(image, (0, sensor.blur_px, sensor.blur_px))
    image *= 2.55
    image += sensor.noise * rng.standard_normal(image.shape, np.float32)
    # 0 in all bands means no-data to most readers
    return np.clip(np.rint(image), 1, 255).astype(np.uint8)


def _shade(land: Land, sensor: Sensor) -> Bool:
    """Where something towards the sun is high enough to stand in its light."""
    azimuth, rise = np.radians(sensor.sun_azimuth), np.tan(np.radians(sensor.sun_elevation)) * sensor.m_per_px
    shade = np.zeros(land.material.shape, bool)
    rows, cols = land.material.shape
    for step in range(1, int(land.height_m.max() / rise) + 1):
        # what stands `step` px towards the sun: (down, right) away in the image
        down = max(-rows, min(rows, round(float(-np.cos(azimuth)) * step)))
        right = max(-cols, min(cols, round(float(np.sin(azimuth)) * step)))
        here = (slice(max(0, -down), rows - max(0, down)), slice(max(0, -right), cols - max(0, right)))
        there = (slice(max(0, down), rows - max(0, -down)), slice(max(0, right), cols - max(0, -right)))
        shade[here] |= land.height_m[there] - np.float32(step * rise) > land.height_m[here]
    return shade


def soft_noise(shape: tuple[int, int], cell_px: float, rng: np.random.Generator) -> F32:
    """Smooth noise of about -1..1, float32 (H, W), with features of `cell_px`: a coarse grid interpolated."""
    coarse = rng.standard_normal([int(side / cell_px) + 4 for side in shape], np.float32)
    rows, cols = (np.arange(side, dtype=np.float32) / cell_px + 1 for side in shape)
    # separable interpolation with smooth steps
    i, j = rows.astype(int), cols.astype(int)
    p, q = (f * f * (3 - 2 * f) for f in (rows - i, cols - j))
    bands = coarse[i] * (1 - p)[:, None] + coarse[i + 1] * p[:, None]
    return 0.75 * (bands[:, j] * (1 - q) + bands[:, j + 1] * q)
