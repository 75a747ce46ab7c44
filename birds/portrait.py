"""Draw one picture of a bird: the pose, the parts of the body, what stands behind and what grows in front.

Curves are complex numbers, x + 1j * y with y downwards, so that a product turns them. Birds look to the right.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

Draw = ImageDraw.ImageDraw
Rng = np.random.Generator
ROOM = 1000 + 750j
COLOURS = {
    "Black": (36, 36, 42), "White": (246, 244, 238), "Grey": (146, 152, 160), "Slate": (78, 94, 116),
    "Russet": (170, 82, 40), "Umber": (104, 72, 52), "Scarlet": (206, 34, 36), "Orange": (242, 128, 28),
    "Golden": (246, 200, 48), "Olive": (118, 126, 54), "Emerald": (24, 140, 84), "Azure": (44, 134, 214),
    "Indigo": (48, 52, 132), "Violet": (132, 70, 164), "Rose": (236, 136, 158), "Buff": (224, 190, 140),
}  # fmt: skip
SCENES = np.array([  # above, below, blobs, and what lies or grows in front
    [(150, 196, 232), (222, 236, 244), (244, 248, 250), (126, 132, 92)],
    [(112, 150, 92), (168, 190, 120), (206, 218, 150), (92, 116, 60)],
    [(206, 200, 150), (172, 164, 108), (226, 218, 176), (134, 126, 70)],
    [(204, 216, 230), (236, 240, 246), (220, 226, 236), (206, 184, 140)],
    [(142, 130, 172), (236, 184, 156), (246, 208, 176), (120, 98, 96)],
])  # fmt: skip
# from the rump along the back to the shoulder, and from the breast along the belly to the vent
BACK = np.array([-0.5 - 0.18j, -0.22 - 0.46j, 0.05 - 0.51j])
FRONT = np.array([0.41 + 0.26j, 0.23 + 0.45j, 0.52j, -0.32 + 0.3j, -0.52 + 0.06j])
FLANK = np.array([-0.52, -0.2 + 0.1j, 0.1 - 0.05j, 0.3 - 0.25j])
WING = np.array([-0.1j, -0.2 - 0.3j, -0.5 - 0.24j, -0.8 - 0.04j, -1 + 0.08j])
PINIONS = np.array([-0.1j, -0.1 + 0.24j, -0.4 + 0.34j, -0.75 + 0.2j, -1 + 0.08j])
SKULL = np.array([-0.86 + 0.42j, -0.94 - 0.26j, -0.42 - 0.88j, 0.36 - 0.88j, 0.9 - 0.3j, 0.8 + 0.42j, 0.45 + 0.86j])
CREST = np.array([0.6 - 0.6j, 0.4 - 1.1j, -0.3 - 1.45j, -1.5 - 1.4j, -1.1 - 0.9j, -1.5 - 0.5j, -0.9 + 0.1j])
CHEEK = np.array([0.45 + 0.15j, -0.1 - 0.05j, -0.75, -1 + 0.4j, -0.5 + 0.95j, 0.25 + 0.95j, 0.6 + 0.5j])
MASK = np.array([0.95 + 0.1j, 0.6 - 0.35j, 0.2 - 0.4j, -0.4 - 0.35j, -0.95, -0.3 + 0.35j, 0.3 + 0.35j, 0.7 + 0.3j])
BIB = np.array([0.2 + 1.5j, -0.45 + 0.9j, -0.1 + 0.3j, 0.6 + 0.12j])
CIRCLE = np.exp(1j * np.linspace(0, 2 * np.pi, 25))
DISC = CIRCLE.real + 0.2j * CIRCLE.imag
STEPS = 8
CATMULL_ROM = np.array([(0, 2, 0, 0), (-1, 0, 1, 0), (2, -5, 4, -1), (-1, 3, -3, 1)]) / 2
SPLINE = (np.arange(STEPS)[:, None] / STEPS) ** np.arange(4) @ CATMULL_ROM


class Build(NamedTuple):
    """Proportions that the species of a genus share, in body lengths; ``cocked`` and ``upright`` in degrees."""

    noun: str
    height: float
    head: float
    neck: float
    bill: float
    depth: float  # of the bill
    curve: float
    tail: float
    fork: float  # below zero the tail is forked, above zero pointed
    cocked: float
    legs: float  # a bird without legs swims, one with short legs perches
    upright: float


@dataclass(frozen=True)
class Species:
    """One invented species: unique English name, place in the list, build, and a colour name for each trait it has."""

    name: str
    index: int
    build: Build
    look: dict[str, str]


class Part(NamedTuple):
    """A closed curve and its ink: a colour, or a trait; a species without that trait leaves the part unpainted."""

    ink: str
    curve: np.ndarray
    light: float = 1.0
    contour: bool = False


def smooth(control: np.ndarray, closed: bool = False) -> np.ndarray:
    """Draw a smooth curve through the control points (n,) complex, ``STEPS`` points to a segment."""
    before, after = (control[-1:], control[:2]) if closed else (control[:1], control[-1:])
    padded = np.concatenate([before, control, after])
    return np.append(np.lib.stride_tricks.sliding_window_view(padded, 4) @ SPLINE.T, padded[-2])


def band(upper: np.ndarray, lower: np.ndarray, along: tuple[float, float], across: tuple[float, float]) -> np.ndarray:
    """Cut a piece out of the area between two edges: fractions of its length (``along``) and width (``across``)."""
    places, edges = np.linspace(*along, 9) * (len(upper) - 1), (upper + (lower - upper) * depth for depth in across)
    top, bottom = (np.interp(places, np.arange(len(upper)), edge) for edge in edges)
    return np.concatenate([top, bottom[::-1]])


class Pose:
    """Where one bird holds its trunk, head, wing and tail."""

    def __init__(self, build: Build, rng: Rng) -> None:
        self.build = build
        angles = np.add(rng.uniform((-8, -14, -7, -9), (8, 14, 3, 9)), (build.upright, 0, 0, -build.cocked))
        self.tilt, self.nod, self.lift, self.wag = np.exp(-1j * np.radians(angles))
        self.head = self.on_trunk(0.43 - 1j * (0.34 + 0.2 * build.head / build.height)) + build.neck * (0.42 - 0.9j)
        self.feet = self.on_trunk(-0.06 + 0.5j) + 0.02 + 1j * build.legs
        back, skull, front = self.on_trunk(*BACK), self.on_head(SKULL), self.on_trunk(*FRONT)
        # the breast of an upright bird hangs: it turns less than the back
        front[0] *= self.tilt**-0.25
        nape = (back[-1] + skull[0]) / 2 + 0.12 * build.neck - 0.02 - 0.02j
        chest = (front[0] + skull[-1]) / 2 + 0.12 * build.neck + 0.03
        self.outline = smooth(np.array([*back, nape, *skull, chest, *front]), closed=True)

    def on_trunk(self, *points: complex) -> np.ndarray:
        return (np.real(points) + 1j * self.build.height * np.imag(points)) * self.tilt

    def on_head(self, curve: np.ndarray) -> np.ndarray:
        return self.head + curve * self.build.head * self.nod

    def arc(self, start: float, end: float) -> np.ndarray:
        """Cut the outline between two control points: 3 is the nape, 8 the forehead, 12 the breast, 16 the vent."""
        return self.outline[round(start * STEPS) : round(end * STEPS) + 1]


def body(pose: Pose) -> Iterator[Part]:
    flank, skin = pose.on_trunk(*FLANK), pose.arc(11.5, 15.5)
    core = np.linspace(flank[3], flank[0], len(skin))
    span, wide, away = pose.build.tail + 0.12, 0.075 * (1 - pose.build.fork), pose.tilt * pose.wag
    root, edge = pose.on_trunk(-0.4 - 0.04j), np.array([-0.12j, -0.4 * span - 0.1j, -span - 1j * wide])
    upper, lower = (root + smooth(side) * away for side in (edge, edge.conj()))
    point = root - span * (1 + 0.8 * pose.build.fork) * away
    yield Part("tail", np.concatenate([upper, point, lower[::-1]]), contour=True)
    for step, light in ((0.1, 0.75), (-0.02, 1.0)):
        hip, foot = pose.on_trunk(step - 0.06 + 0.36j), pose.feet + step
        leg = np.concatenate([hip, (hip + foot) / 2 - 0.15 * pose.build.legs, foot])
        yield Part("legs", np.concatenate([leg - 0.018, leg[::-1] + 0.018]), light)
        yield Part("legs", foot + 0.03 + DISC * 0.1, light)
    yield Part("back", pose.outline, contour=True)
    yield Part("belly", np.concatenate([pose.arc(10.5, 16), smooth(flank)]))
    yield Part("breast", np.concatenate([pose.arc(10.5, 13.7), smooth(flank[1:])]))
    for start in np.arange(0.05, 0.9, 0.2):
        yield Part("belts", band(skin, core, (start, start + 0.11), (0, 0.9)))
    for centre in band(skin, core, (0.05, 0.82), (0.2, 0.58))[::2]:
        yield Part("spots", centre + CIRCLE * 0.055)


def head(pose: Pose) -> Iterator[Part]:
    build, reach = pose.build, np.linspace(0, 1, 13)
    yield Part("crest", smooth(pose.on_head(CREST), closed=True), contour=True)
    yield Part("head", pose.arc(3.5, 10.5))
    yield Part("cheek", smooth(pose.on_head(CHEEK), closed=True))
    yield Part("throat", np.concatenate([pose.arc(8.7, 11.5), smooth(pose.on_head(BIB))]))
    yield Part("collar", np.concatenate([pose.arc(2.1, 4.0), pose.arc(10.0, 11.9)]))
    yield Part("cap", pose.arc(4.4, 8.2))
    yield Part("mask", smooth(pose.on_head(MASK), closed=True))
    for ink, centre, size, light in (("White", 0, 0.25, 1), ("Black", 0, 0.2, 0.5), ("White", 0.06 - 0.07j, 0.065, 1)):
        yield Part(ink, pose.on_head(0.34 - 0.08j + centre + CIRCLE * size), light)
    gape = (0.78 + 0.06j + 0.22 * reach) * build.head + (reach + 1j * build.curve * reach**2) * build.bill
    for side, length, light in ((0.5j, 0.75, 0.8), (-0.5j, 1, 1.0)):
        edge = gape + side * build.depth * np.sqrt(np.clip(1 - reach / length, 0, 1))
        yield Part("bill", pose.head + np.concatenate([gape, edge[::-1]]) * pose.nod, light, contour=True)


def wing(pose: Pose) -> Iterator[Part]:
    shoulder = pose.on_trunk(0.27 - 0.1j)
    upper, lower = (shoulder + smooth(pose.on_trunk(*edge)) * pose.lift for edge in (WING, PINIONS))
    yield Part("wing", np.concatenate([upper, lower[::-1]]), contour=True)
    yield Part("wing", band(upper, lower, (0.56, 1), (0, 1)), 0.78)
    for depth in (0.22, 0.46, 0.7):
        yield Part("wing", band(upper, lower, (0.58, 0.97), (depth, depth + 0.05)), 0.55)
    for start in (0.24, 0.46):
        yield Part("bars", band(upper, lower, (start, start + 0.13), (0, 1)))


def fill(draw: Draw, curve: np.ndarray, colour: np.ndarray, contour: bool = False) -> None:
    corners = curve.view(float).tolist()
    inside, line = np.array([colour, colour * 0.6]).clip(0, 255).astype(int).tolist()
    draw.polygon(corners, fill=tuple(inside))
    if contour:
        draw.line(corners + corners[:2], fill=tuple(line), width=3)


def backdrop(scene: np.ndarray, rng: Rng) -> Image.Image:
    """Draw what is out of focus, at an eighth of the size, and blur it."""
    image = ImageOps.colorize(Image.linear_gradient("L").resize((125, 94)), *scene[:2].astype(int).tolist())
    draw, (_, below, blob, _) = ImageDraw.Draw(image), scene
    for _ in range(rng.integers(5, 12)):
        centre, blur = complex(*rng.uniform((0, 0), (125, 94))), rng.uniform(0.4, 0.85)
        fill(draw, centre + CIRCLE * rng.uniform(5, 22), blob + (below - blob) * blur)
    return image.filter(ImageFilter.BoxBlur(1.6)).resize((1000, 750), Image.Resampling.BILINEAR)


def draw_grass(draw: Draw, top: float, lean: float, hue: np.ndarray, rng: Rng) -> None:
    for _ in range(rng.integers(0, 6)):
        tip = complex(*rng.uniform((0, top), (1000, 750)))
        foot = tip.real + rng.uniform(-lean, lean) + 1j * ROOM.imag
        middle = (tip + foot) / 2 + 0.2 * (foot - tip).real
        fill(draw, smooth(np.array([foot - 12, middle - 6, tip, middle + 6, foot + 12])), hue * rng.uniform(0.8, 1.2))


def draw_support(draw: Draw, build: Build, feet: complex, hue: np.ndarray, rng: Rng) -> None:
    """Draw uneven ground; for a bird with short legs a wire, a twig or a branch, with leaves on all but the wire."""
    if build.legs >= 0.19:
        ridge = np.linspace(-10, ROOM.real + 10, 9) + 1j * (feet.imag - 26 + rng.uniform(-14, 14, 9))
        fill(draw, np.array([*smooth(ridge), ROOM, 1j * ROOM.imag]), hue)
        return
    slope, thick = ROOM.real * (1 + 1j * rng.uniform(-0.16, 0.16)), rng.choice([14, 40, 56])
    branch = feet - 0.15j * thick + np.array([-slope, slope, slope + 1j * thick, -slope + 1j * thick])
    fill(draw, branch, hue * rng.uniform(0.6, 0.8), contour=True)
    for _ in range(rng.integers(0, 6) if thick > 14 else 0):
        leaf = (1 + DISC) * rng.uniform(30, 60) * np.exp(2j * np.pi * rng.random())
        fill(draw, feet + rng.uniform(-1, 1) * slope + leaf, hue * rng.uniform(0.8, 1.2), contour=True)


def draw_water(draw: Draw, middle: complex, reach: float, hue: np.ndarray, rng: Rng) -> None:
    """Draw water in front of a swimming bird, with rings around it."""
    fill(draw, np.array([1j * middle.imag, ROOM.real + 1j * middle.imag, ROOM, 1j * ROOM.imag]), hue)
    for radius, light in ((1.0, 1.2), (0.97, 1.0), (0.8, 1.12), (0.76, 1.0)):
        fill(draw, middle + DISC[:13] * reach * radius, hue * light)
    for _ in range(14):
        ripple = complex(*rng.uniform((0, middle.imag + 30), (1000, 750))) + DISC * rng.uniform(20, 60)
        fill(draw, ripple, hue * rng.choice([0.85, 1.15, 1.25]))


def draw_picture(bird: Species, picture: int, seed: int) -> Image.Image:
    """Draw an RGB picture, 500x375: a function of species, picture number and seed, whatever was drawn before."""
    rng = np.random.default_rng([seed, bird.index, picture])
    light = rng.uniform(0.8, 1.1) * (1 + rng.uniform(-0.08, 0.08) * np.array([1, 0, -1]))
    scene = ((SCENES[rng.integers(len(SCENES))] + rng.integers(-8, 9, (4, 3))) * light).clip(0, 255)
    inks = {name: (colour + rng.integers(-8, 9, 3)) * light for name, colour in COLOURS.items()}
    inks |= {trait: inks[name] for trait, name in bird.look.items()}
    pose = Pose(bird.build, rng)
    parts = [part for draw_part in (body, head, wing) for part in draw_part(pose)]
    curves = np.concatenate([part.curve for part in parts])
    low, high = (complex(edge(curves.real), edge(curves.imag)) for edge in (np.min, np.max))
    size = min(840 / (high - low).real, 675 / (high - low).imag) * rng.uniform(0.5, 1.05)
    spare, (x, y) = ROOM - size * (high - low), rng.uniform(-0.4, 0.4, 2)
    shift = ROOM / 2 - size * (low + high) / 2 + complex(x * spare.real, y * spare.imag)
    feet = complex(pose.feet[0] * size + shift)
    image, (above, below, _, growth) = backdrop(scene, rng), scene
    draw = ImageDraw.Draw(image)
    draw_grass(draw, 100, 200, (growth + 2 * below) / 3, rng)
    if bird.build.legs:
        draw_support(draw, bird.build, feet, growth, rng)
    for part in parts:
        if part.ink in inks:
            fill(draw, part.curve * size + shift, inks[part.ink] * part.light, part.contour)
    if not bird.build.legs:
        draw_water(draw, feet - 0.09j * size, 0.62 * size, 0.85 * above, rng)
    draw_grass(draw, 300, 120, growth, rng)
    return ImageOps.mirror(image.reduce(2)) if rng.random() < 0.5 else image.reduce(2)
