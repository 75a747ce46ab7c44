"""Near-duplicates: one photo twice, resized, recompressed, slightly cropped, or brighter; found from the pixels.

Candidates are pictures whose difference hashes agree in nearly all bits (Krawetz, "Kind of Like That", 2013), found as
neighbours in sorted lists (Charikar, STOC 2002, section 3; Manku et al., WWW 2007): linear in the pictures but for the
sorting. Then their pixels decide, laid over each other (Lucas and Kanade, IJCAI 1981).
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from plumage.data.ahead import map_ahead
from plumage.data.fit import GREY as PADDING

GREY, CELL = 25, 4  # pixels a side of what is hashed, and of a cell of it
# Windows of six by six cells, in each corner: of a picture and of one that lacks a twentieth, some two nearly agree.
WINDOWS = ((0, 0), (0, 1), (1, 0), (1, 1))
HASHES = len(WINDOWS)
STEEP, DARK = 0.1, 2.0  # a difference counts from this part of the contrast on; no less contrast is taken, in levels
# Neighbours in a picture go wrong together, so that they are none in a hash.
SCATTERED = np.arange(64) * 37 % 64
TABLES, NEIGHBOURS, BITS = 8, 8, 6  # sorted lists; neighbours in each that are looked at; bits that may differ
MOST = 8  # candidates for each picture, on average
MASKS = [np.uint64(0x0101010101010101 * byte) for byte in (0x55, 0x33, 0x0F, 0x01)]

THUMB = 64  # pixels a side of what is laid over each other
COARSE, FINE = (12, 2), (24, 4)  # cells a side in which that is done, and steps
# How far a picture is moved: scales, and shifts in halves of its side, downwards and to the right.
WHOLE = np.array([1, 1, 0, 0], np.float32)
PLACES = np.array([(0.88, 0.88, -0.08, -0.08), (1.14, 1.14, 0.08, 0.08)], np.float32)
FAR = 0.4  # the part of the contrast that may remain after a coarse fit, and after the fine one
REMAINS = 0.165
WORST, UNLIKE = 0.08, 0.48  # of white, and of the contrast: by what no block of two by two cells may differ
GAINS = (0.5, 2.0)  # how much contrast may change
FLAT = 0.01  # of white: with no more contrast than that, pictures look the same without being so
CROWD = 32  # pictures, each like another: with more they are of one kind, as from a fixed camera, not copies of one
BATCH = 2**26  # bytes of pixels that a thread reads at a time


def _differences() -> np.ndarray:
    """Return (64 HASHES, GREY²) float32, what takes a picture to its differences, of zeros and ones: sums are exact."""
    pixels, cells = np.eye(GREY**2, dtype=np.float32).reshape(GREY, GREY, -1), (GREY - 1) // CELL
    matrix = np.zeros((HASHES, 64, GREY**2), np.float32)
    for rows, (top, left) in zip(matrix, WINDOWS, strict=True):
        window = pixels[top : top + cells * CELL, left : left + cells * CELL]
        sums = window.reshape(cells, CELL, cells, CELL, -1).sum((1, 3))
        both = [np.diff(sums, axis=axis).reshape(-1, GREY**2) for axis in (0, 1)]  # downwards, and to the right
        rows[SCATTERED[: 2 * len(both[0])]] = np.concatenate(both)
    return matrix.reshape(-1, GREY**2)


DIFFERENCES = _differences()


def difference_hashes(picture: np.ndarray) -> np.ndarray:
    """Return (HASHES,) uint64 of a (side, side, 3) uint8 picture: for each window, where it grows brighter."""
    small = Image.fromarray(without_padding(picture)).convert("L").resize((GREY, GREY), Image.Resampling.BOX)
    grey = np.asarray(small, np.float32)
    least = STEEP * max(float(grey.std()), DARK) * CELL**2
    return np.packbits(DIFFERENCES @ grey.ravel() > least).view(np.uint64)


def without_padding(picture: np.ndarray) -> np.ndarray:
    """Return the part of a picture that ``--fit pad`` has laid grey around: in the grey all pictures are alike."""
    if not any((edge == PADDING).all() for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1])):
        return picture
    inside = (picture != PADDING).any(axis=2)
    rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else picture


def near_duplicates(
    hashes: np.ndarray, digests: np.ndarray, read: Callable[[np.ndarray], np.ndarray], workers: int
) -> np.ndarray:
    """Return (m, 2) int64, rows of pictures that are the same or look nearly so, the smaller first, sorted.

    hashes: (n, HASHES) uint64, of ``difference_hashes``. digests: (n, 16) uint8, the same where the pixels are. read:
    gives (k, side, side, 3) uint8 of (k,) rows, to several threads at a time.
    """
    pairs = np.unique(np.concatenate([candidates(hashes), linked(digests.view(np.uint64)[:, 0])]), axis=0)
    if not len(pairs):
        return pairs

    def compare(batch: np.ndarray) -> np.ndarray:
        rows, places = np.unique(batch, return_inverse=True)
        first, second = read(rows)[places.reshape(batch.shape).T]
        return batch[alike(first, second)]

    each = max(1, min(256, BATCH // (2 * read(pairs[0, :1]).nbytes)))
    batches, found = (pairs[start : start + each] for start in range(0, len(pairs), each)), []
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(desc="comparing", total=len(pairs), unit="pair", disable=None, leave=False) as bar,
    ):
        for batch in map_ahead(pool, compare, batches, 2 * workers):
            found.append(batch)
            bar.update(each)
    return np.concatenate(found)


def in_crowds(n: int, pairs: np.ndarray) -> np.ndarray:
    """Return (m,) bool, which of (m, 2) int64 ``pairs`` of n rows link, over any others, more than CROWD rows."""
    groups = connected(n, pairs)
    return np.bincount(groups)[groups[pairs[:, 0]]] > CROWD


def candidates(hashes: np.ndarray) -> np.ndarray:
    """Return (m, 2) int64, rows whose hashes differ in at most BITS bits, as far as sorted lists have them together.

    Each list is sorted by other bits first. m is at most MOST n: those with the fewest different bits.
    """
    n, each = hashes.shape
    flat, code, far = hashes.ravel(), np.empty(0, np.int64), np.empty(0, np.uint8)
    for table in range(TABLES):
        turn = np.uint64(64 // TABLES * table)
        order = np.argsort(flat << turn | flat >> (np.uint64(64) - turn) % np.uint64(64), kind="stable")
        ordered, rows = flat[order], order // each
        for step in range(1, NEIGHBOURS + 1):
            bits = _count_bits(ordered[step:] ^ ordered[:-step])
            near = np.flatnonzero((bits <= BITS) & (rows[step:] != rows[:-step]))
            one, other = rows[near], rows[near + step]
            code = np.concatenate([code, np.minimum(one, other) * n + np.maximum(one, other)])
            far = np.concatenate([far, bits[near]])
        order = np.lexsort((far, code))
        order = order[np.diff(code[order], prepend=-1) > 0]  # each pair once, by its nearest hashes
        order = order[np.argsort(far[order], kind="stable")[: MOST * n]]
        code, far = code[order], far[order]
    return np.stack(np.divmod(np.sort(code), max(n, 1)), axis=1)


def _count_bits(values: np.ndarray) -> np.ndarray:
    """Return (n,) uint8, how many bits of each uint64 are set: in pairs, in fours, in bytes, and all together."""
    pairs, fours, bytes_, ones = MASKS
    values = values - (values >> np.uint64(1) & pairs)
    values = (values & fours) + (values >> np.uint64(2) & fours)
    values = (values + (values >> np.uint64(4))) & bytes_
    return (values * ones >> np.uint64(56)).astype(np.uint8)


def alike(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return (m,) bool, whether pictures show nearly the same, of (m, side, side, 3) uint8 of each pair.

    The first is scaled, shifted, brightened and stretched until it fits the second best. What then remains must be
    small everywhere: not the same face with another mouth. What is flat is like nothing but its copy, and a picture
    of one colour not even that.
    """
    same = (first.reshape(len(first), -1) == second.reshape(len(first), -1)).all(axis=1)
    same[same] = (first[same] != first[same][:, :1, :1]).any(axis=(1, 2, 3))
    one, other = _thumbs(first), _thumbs(second)
    coarse = _fit(one, other, *COARSE)
    near = np.flatnonzero(coarse.remains < FAR * (coarse.contrast + 0.005))
    if not len(near):
        return same
    fine = _fit(one[near], other[near], *FINE)
    fits = (fine.remains < REMAINS * fine.contrast) & (fine.worst < np.minimum(WORST, UNLIKE * fine.contrast))
    same[near] |= fits & (fine.contrast > FLAT) & (GAINS[0] < fine.gain) & (fine.gain < GAINS[1])
    return same


def linked(keys: np.ndarray) -> np.ndarray:
    """Return (m, 2) int64, each row and the next with the same of (n,) keys."""
    _, number = np.unique(keys, return_inverse=True)
    order = np.argsort(number, kind="stable")
    same = np.flatnonzero(np.diff(number[order]) == 0)
    return np.stack([order[same], order[same + 1]], axis=1)


def connected(n: int, pairs: np.ndarray) -> np.ndarray:
    """Return (n,) int64, the smallest row that each of n rows is linked to by ``pairs``, (m, 2) int64, over any others.

    A forest in which each row points to a smaller one, and all links at a time lower their roots (Shiloach and
    Vishkin, J. Algorithms 3, 1982).
    """
    root = np.arange(n)
    one, other = pairs.T
    while True:
        low, high = np.minimum(root[one], root[other]), np.maximum(root[one], root[other])
        if not (low < high).any():
            return root
        np.minimum.at(root, high, low)
        while not np.array_equal(root, above := root[root]):
            root = above


def _thumbs(pictures: np.ndarray) -> np.ndarray:
    """Return (m, s, s, 3) float32 from 0 to 1 of uint8 pictures: s is THUMB, or their side where that is less."""
    side = min(pictures.shape[1], THUMB)
    shown = map(Image.fromarray, map(without_padding, pictures))
    small = [np.asarray(each.resize((side, side), Image.Resampling.BOX)) for each in shown]
    return np.stack(small).astype(np.float32) / 255


class Fit(NamedTuple):
    """How pictures fit others, (m,) each, in parts of white, over the cells that both have.

    remains: root mean square of what they differ by. worst: the same of the block of two by two cells that differs
    most. contrast: of the others. gain: by what the first one's contrast was multiplied.
    """

    remains: np.ndarray
    worst: np.ndarray
    contrast: np.ndarray
    gain: np.ndarray


def _fit(one: np.ndarray, other: np.ndarray, cells: int, steps: int) -> Fit:
    """Lay pictures over others, (m, s, s, 3) float32, in ``cells`` a side, moved step by step to the best fit."""
    place = np.tile(WHOLE, (len(one), 1))
    target, _ = _cells(other, cells, place)
    line = ((np.arange(cells, dtype=np.float32) + 0.5) / cells * 2 - 1)[:, None]
    for _ in range(steps):
        seen, inside = _cells(one, cells, place)
        down, right = (np.gradient(seen, 2 / cells, axis=axis) / _wide(place[:, axis - 1]) for axis in (1, 2))
        moves = np.stack([down * line[:, None], right * line, down, right], axis=-1)
        found, _ = _least_squares(np.concatenate([_tones(seen), moves], axis=-1), target, inside)
        gain = np.maximum(_gain(found, seen), GAINS[0])
        place = (place + (found[:, 3:] / gain[:, None]).clip(-0.05, 0.05)).clip(*PLACES)
    seen, inside = _cells(one, cells, place)
    found, rest = _least_squares(_tones(seen), target, inside)
    count = 3 * inside.sum((1, 2)).clip(1)
    mean = 3 * np.einsum("mijc,mij->mc", target, inside) / count[:, None]  # of each colour: one alone is no contrast
    contrast = np.sqrt((((target - mean[:, None, None]) ** 2).sum(3) * inside).sum((1, 2)) / count)
    blocks = rest[:, 1:, 1:] + rest[:, 1:, :-1] + rest[:, :-1, 1:] + rest[:, :-1, :-1]
    worst = np.sqrt((blocks**2).mean(axis=3)).max(axis=(1, 2)) / 4
    return Fit(np.sqrt((rest**2).sum((1, 2, 3)) / count), worst, contrast, _gain(found, seen))


def _wide(values: np.ndarray) -> np.ndarray:
    return values[:, None, None, None]


def _tones(seen: np.ndarray) -> np.ndarray:
    """Return (..., 3) of what a brighter or darker picture is made of: a linear change, and a bend as gamma's."""
    return np.stack([seen, seen**2, np.ones_like(seen)], axis=-1)


def _gain(found: np.ndarray, seen: np.ndarray) -> np.ndarray:
    return found[:, 0] + 2 * found[:, 1] * seen.mean(axis=(1, 2, 3))


def _cells(pictures: np.ndarray, cells: int, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the means (m, cells, cells, 3) of a grid laid over pictures at ``place``, and which cells lie inside."""
    m, side, _, colours = pictures.shape
    edges = np.linspace(-1, 1, cells + 1, dtype=np.float32)
    edges = ((edges * place[:, :2, None] + place[:, 2:, None]) + 1) / 2 * side
    low, high, pixel = edges[:, :, :-1, None], edges[:, :, 1:, None], np.arange(side, dtype=np.float32)
    covered = (np.minimum(high, pixel + 1) - np.maximum(low, pixel)).clip(0)
    share = covered.sum(axis=3)
    covered /= share[..., None].clip(1e-6)
    inside = share > 0.5 * (high - low)[..., 0]
    rows = (covered[:, 0] @ pictures.reshape(m, side, -1)).reshape(m, cells, side, colours)
    columns = covered[:, 1] @ rows.swapaxes(1, 2).reshape(m, side, -1)
    means = np.ascontiguousarray(columns.reshape(m, cells, cells, colours).swapaxes(1, 2))
    return means, (inside[:, 0, :, None] & inside[:, 1, None]).astype(np.float32)


def _least_squares(parts: np.ndarray, target: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (m, k) by which (m, c, c, 3, k) ``parts`` make up (m, c, c, 3) best inside, and what remains there."""
    m, k = len(parts), parts.shape[-1]
    matrix = parts.reshape(m, -1, k)
    weighed = (parts * inside[..., None, None]).reshape(m, -1, k).transpose(0, 2, 1)
    squares = weighed @ matrix
    # A little damped, since what is flat determines nothing.
    damped = squares + np.eye(k, dtype=np.float32) * (1e-4 * squares + 1e-2)
    found = np.linalg.solve(damped, weighed @ target.reshape(m, -1, 1))
    return found[..., 0], (target - (matrix @ found).reshape(target.shape).clip(0, 1)) * inside[..., None]
