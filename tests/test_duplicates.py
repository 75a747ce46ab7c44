"""Near-duplicates: planted ones are found, others are not, and a split keeps them together."""

import io
import logging
from pathlib import Path

import numpy as np
import pytest
from conftest import CLIPART, TINY
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

import plumage.data.dataset
from plumage.birds.portrait import draw_picture
from plumage.birds.species import species_list
from plumage.data.dataset import find_twins, prepare, read_all, recall
from plumage.data.decode import Square, to_rgb, to_square
from plumage.data.duplicates import (
    CROWD,
    HASHES,
    MOST,
    alike,
    candidates,
    connected,
    difference_hashes,
    in_crowds,
    linked,
    without_padding,
)
from plumage.data.duplicates import near_duplicates as search
from plumage.data.samples import Samples
from plumage.data.sources import list_samples, pictures_below
from plumage.data.split import read_split, write_split
from plumage.data.store import Cache, write_skipped


def resized(image: Image.Image, scale: float = 0.5, form: float = 1.2) -> Image.Image:
    return image.resize((round(image.width * scale * form), round(image.height * scale)))


def recompressed(image: Image.Image, quality: int = 30) -> Image.Image:
    memory = io.BytesIO()
    image.save(memory, "JPEG", quality=quality)
    return Image.open(memory).convert("RGB")


def cropped(image: Image.Image, *parts: float) -> Image.Image:
    left, top, right, bottom = np.multiply(parts or (0.04, 0.01, 0.02, 0.05), [*image.size, *image.size])
    return image.crop((round(left), round(top), round(image.width - right), round(image.height - bottom)))


def brighter(image: Image.Image, factor: float = 1.15, gamma: float = 1.0) -> Image.Image:
    levels = (np.arange(256) / 255) ** gamma * factor
    return image.point((levels.clip(0, 1) * 255).astype(int).tolist() * 3)


CHANGES = {
    "smaller": resized,
    "larger": lambda image: resized(image, 2, 0.8),
    "recompressed": recompressed,
    "cropped": cropped,
    "cropped on the right": lambda image: cropped(image, 0, 0, 0.05, 0),
    "brighter": brighter,
    "darker": lambda image: brighter(image, 0.75),
    "gamma": lambda image: brighter(image, 1, 1.3),
    "cropped and recompressed": lambda image: recompressed(cropped(image), 60),
    "resized and darker": lambda image: brighter(resized(image), 1, 1.2),
}


def near_duplicates(pictures: np.ndarray) -> list[list[int]]:
    hashes = np.array([*map(difference_hashes, pictures)], np.uint64).reshape(-1, HASHES)
    digests = np.array([[hash(picture.tobytes()) % 2**63, 0] for picture in pictures], np.uint64).reshape(-1, 2)
    return search(hashes, digests.view(np.uint8), lambda rows: pictures[rows], 2).tolist()


def squares(images, side: int = 64) -> np.ndarray:
    return np.stack([to_square(image, Square(side)) for image in images])


@pytest.fixture(scope="module")
def birds() -> list[Image.Image]:
    """Ten of each of six species, which differ by pose, place and scene."""
    return [draw_picture(bird, number, 0) for bird in species_list(6, 0) for number in range(10)]


@pytest.mark.parametrize("side", [64, 96])
def test_birds_that_were_changed_are_found_and_no_others(birds, side):
    for change in CHANGES.values():
        number = np.arange(0, 60, 6)
        found = near_duplicates(squares([*birds, *(change(birds[row]) for row in number)], side))
        assert found == [[row, 60 + place] for place, row in enumerate(number.tolist())]


@pytest.mark.skipif(not CLIPART.is_dir(), reason="the clip art is not there")
def test_clip_art_that_was_changed_is_found_and_no_others():
    files = sorted((CLIPART / "labelled" / "birds").glob("*.png"))[:12]
    originals = [to_rgb(Image.open(file)) for file in files]
    among = near_duplicates(squares(originals))
    found = [near_duplicates(squares([*originals, *map(change, originals)])) for change in CHANGES.values()]
    hits = sum([row, row + 12] in pairs for pairs in found for row in range(12))
    assert hits >= 0.95 * len(found) * 12
    assert all(pair in among for pairs in found for pair in pairs if pair[1] < 12)


def face(mouth: str) -> Image.Image:
    image = Image.new("RGB", (200, 200), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((10, 10, 190, 190), fill="orange")
    for left in (60, 120):
        draw.ellipse((left, 60, left + 20, 90), fill="black")
    if mouth == "tongue":
        draw.rectangle((70, 130, 130, 134), fill="black")
        draw.rectangle((90, 134, 110, 160), fill="red")
    else:
        draw.arc((60, 100, 140, 150) if mouth == "smile" else (60, 125, 140, 175), *ARC[mouth], fill="black", width=6)
    return image


ARC = {"smile": (0, 180), "frown": (180, 360)}


def test_the_same_face_with_another_mouth_is_another_picture():
    faces = [face(mouth) for mouth in ("smile", "frown", "tongue")]
    assert near_duplicates(squares([*faces, *map(brighter, faces)])) == [[0, 3], [1, 4], [2, 5]]


def test_another_colour_is_another_picture():
    flags = [Image.new("RGB", (90, 60), "white") for _ in range(2)]
    for flag, colours in zip(flags, (("navy", "crimson"), ("darkgreen", "crimson")), strict=True):
        ImageDraw.Draw(flag).rectangle((0, 0, 30, 60), fill=colours[0])
        ImageDraw.Draw(flag).rectangle((60, 0, 90, 60), fill=colours[1])
    assert near_duplicates(squares([*flags, resized(flags[0])])) == [[0, 2]]


def test_candidates_that_are_all_unlike_are_no_special_case(birds):
    pictures = squares(birds[::20])
    assert alike(pictures[:2], pictures[1:]).tolist() == [False, False]


def blank(number: int) -> np.ndarray:
    """White, black, with the noise of a scanner, with a mild shade, or of one of many colours, or of nearly one."""
    rng = np.random.default_rng(number)
    kinds = [
        np.full((64, 64, 3), 255.0),
        np.zeros((64, 64, 3)),
        rng.normal(245, 1.5, (64, 64, 3)),
        np.linspace(240, 246, 64)[:, None, None] + rng.normal(0, 0.5, (64, 64, 3)),
        rng.integers(0, 256, 3) * np.ones((64, 64, 3)),
        np.array([number % 256, 9, 9]) * np.ones((64, 64, 3)),
    ]
    return kinds[number % len(kinds)].clip(0, 255).astype(np.uint8)


def test_flat_pictures_are_no_evidence_even_pixel_for_pixel():
    assert near_duplicates(np.stack([blank(number) for number in range(300)])) == []


def test_noise_is_like_its_copy_alone():
    """Though its hashes say nothing."""
    pictures = np.random.default_rng(0).normal(120, 30, (200, 40, 40, 3)).clip(0, 255).astype(np.uint8)
    assert near_duplicates(np.concatenate([pictures, pictures[[7, 99]]])) == [[7, 200], [99, 201]]


def test_hashes_of_a_ramp_by_hand():
    ramp = np.tile(np.linspace(0, 250, 50, dtype=np.uint8)[None, :, None], (50, 1, 3))
    hashes, turned = difference_hashes(ramp), difference_hashes(ramp.swapaxes(0, 1).copy())
    assert len(set(hashes.tolist())) == 1  # wherever the window is
    assert [int(each[0]).bit_count() for each in (hashes, turned, hashes | turned, hashes & turned)] == [30, 30, 60, 0]
    assert not difference_hashes(ramp[:, ::-1].copy()).any()  # which grows darker
    assert np.array_equal(difference_hashes(ramp // 2), hashes)


def test_candidates_of_many_hashes_are_few_and_planted_ones_among_them():
    n, rng = 100_000, np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, (n, HASHES), np.uint64)
    originals = rng.permutation(n)[:1000].reshape(2, -1)
    for bit in (3, 17, 40):
        hashes[originals[1], 1] = hashes[originals[0], 2] ^ np.uint64(1 << bit | 1 << 60)
    found = candidates(hashes)
    pairs = set(map(tuple, found.tolist()))
    assert len(found) == len(pairs) < 1000
    assert np.mean([tuple(sorted(pair)) in pairs for pair in originals.T.tolist()]) > 0.95
    assert (found[:, 0] < found[:, 1]).all()


@pytest.mark.parametrize("bits", [0, 4, 8])
def test_hashes_that_crowd_have_a_bounded_number_of_candidates(bits):
    hashes = np.random.default_rng(0).integers(0, 2**bits, (20_000, HASHES), np.uint64)
    assert 20_000 <= len(candidates(hashes)) <= MOST * 20_000


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_pictures_are_no_special_case(n):
    pictures = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8).repeat(n, axis=0)
    assert near_duplicates(pictures) == ([[0, 1]] if n == 2 else [])


def test_connected_by_hand():
    pairs = np.array([[1, 4], [4, 6], [2, 3], [6, 1], [5, 3]])
    assert connected(8, pairs).tolist() == [0, 1, 2, 2, 1, 2, 1, 7]
    assert connected(3, np.empty((0, 2), np.int64)).tolist() == [0, 1, 2]
    chain = np.random.default_rng(0).permutation(1000)
    assert not connected(1000, np.stack([chain[1:], chain[:-1]], axis=1)).any()


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_connected_as_one_row_after_another_finds_it(case):
    n, pairs = case
    sets = [{row} for row in range(n)]
    for one, other in pairs:
        union = sets[one] | sets[other]
        for row in union:
            sets[row] = union
    assert connected(n, np.array(pairs, np.int64).reshape(-1, 2)).tolist() == [min(each) for each in sets]


def test_linked_by_hand():
    assert linked(np.array(["b", "a", "b", "c", "b", "a"], object)).tolist() == [[1, 5], [0, 2], [2, 4]]


@pytest.fixture
def twins(tmp_path: Path, birds) -> Path:
    """Two species of ten; the first five of the first are also there as smaller JPEGs."""
    folder = tmp_path / "photos"
    for place, name in enumerate(("a", "b")):
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(birds[10 * place : 10 * place + 10]):
            image.save(folder / name / f"{number}.png")
            if number < 5 and name == "a":
                recompressed(resized(image), 70).save(folder / name / f"{number} again.jpg")
    return folder


def sides_of_twins(dataset) -> list[bool]:
    """Whether each picture is on the side of its twin."""
    side = dict(zip(dataset.samples.paths, dataset.samples.split.tolist(), strict=True))
    return [side[f"a/{number}.png"] == side[f"a/{number} again.jpg"] for number in range(5)]


@pytest.mark.parametrize("seed", range(4))
def test_a_split_keeps_twins_together_and_says_how_many(twins, tmp_path, caplog, seed):
    caplog.set_level(logging.INFO, "plumage")
    dataset = prepare(list_samples(twins), Square(64), 0.3, seed, Cache(tmp_path / "cache"))
    assert all(sides_of_twins(dataset))
    (line,) = [line for line in caplog.messages if "look nearly the same" in line]
    assert "10 pictures in 5 groups look nearly the same, and stay on one side" in line
    assert "a/0 again.jpg ~ a/0.png" in line
    assert "and 2 more; --no-group-duplicates" in line
    assert dataset.samples.groups is None  # split.csv has what people wrote


def test_without_grouping_nobody_looks(twins, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "plumage")
    monkeypatch.setattr(plumage.data.dataset, "near_duplicates", None)
    cache, square = Cache(tmp_path / "cache"), Square(64)
    parted = [prepare(list_samples(twins), square, 0.3, seed, cache, 1, False) for seed in range(4)]
    assert not all(map(all, map(sides_of_twins, parted)))
    assert "nearly" not in caplog.text


def test_a_run_that_has_begun_keeps_its_split(twins, tmp_path, monkeypatch):
    cache, square = Cache(tmp_path / "cache"), Square(64)
    parted = [prepare(list_samples(twins), square, 0.3, seed, cache, 1, False) for seed in range(4)]
    dataset = next(dataset for dataset in parted if not all(sides_of_twins(dataset)))
    write_split(tmp_path / "split.csv", dataset.samples)
    write_skipped(tmp_path / "skipped.csv", [])
    monkeypatch.setattr(plumage.data.dataset, "near_duplicates", None)
    samples = read_split(tmp_path / "split.csv", twins, ["a", "b"])
    again = recall(samples, square, tmp_path / "skipped.csv", cache)
    assert again.samples.split.tolist() == dataset.samples.split.tolist()


def test_groups_and_twins_are_united(twins, tmp_path):
    samples = list_samples(twins)
    named = [f"patient {path[2]}" if path in ("a/0.png", "a/8.png") else path for path in samples.paths]
    grouped = Samples(twins, samples.paths, samples.labels, samples.classes, None, np.array(named, object))
    grouped.groups[samples.paths.index("a/8.png")] = "patient 0"
    for seed in range(6):
        found = prepare(grouped, Square(64), 0.3, seed, Cache(tmp_path / "cache")).samples
        side = dict(zip(found.paths, found.split.tolist(), strict=True))
        assert len({side[path] for path in ("a/0.png", "a/0 again.jpg", "a/8.png")}) == 1
        assert found.groups.tolist() == grouped.groups.tolist()


@pytest.fixture
def products(tmp_path: Path) -> Path:
    """Forty of a product that a fixed camera looks at, all alike but for the noise; half of them have a scratch."""
    rng, folder = np.random.default_rng(0), tmp_path / "products"
    disc = np.hypot(*np.mgrid[-1:1:64j, -1:1:64j]) < 0.8
    for number in range(2 * (CROWD // 2 + 4)):
        image = Image.fromarray((60 + 130 * disc + rng.normal(0, 4, (64, 64))).clip(0, 255).astype(np.uint8))
        if number % 2:
            ImageDraw.Draw(image).line(rng.integers(20, 44, 4).tolist(), fill=230)
        (folder / ("good", "scratched")[number % 2]).mkdir(parents=True, exist_ok=True)
        image.save(folder / ("good", "scratched")[number % 2] / f"{number}.png")
    return folder


def test_a_crowd_that_looks_alike_may_part_and_is_told(products, tmp_path, caplog):
    """Else all of it would train, and next to nothing validate."""
    for copy in ("one", "two"):
        Image.open(products / "good/0.png").save(products / f"good/{copy}.png")
    samples = list_samples(products)
    found = prepare(samples, Square(64), 0.25, 0, Cache(tmp_path / "cache")).samples
    validating = np.bincount(found.labels[found.split == "val"])
    assert np.abs(validating - 0.25 * np.bincount(found.labels)).max() <= 2
    side = dict(zip(found.paths, found.split.tolist(), strict=True))
    assert side["good/0.png"] == side["good/one.png"] == side["good/two.png"]
    (line,) = [line for line in caplog.messages if "which are of one kind" in line]
    assert f"in groups of more than {CROWD}" in line
    assert "; --group-by keeps together" in line


def test_crowds_by_hand():
    chain = np.stack([np.arange(CROWD), np.arange(CROWD) + 1], axis=1)
    few, n = chain[:-1] + CROWD + 1, 3 * CROWD
    assert in_crowds(n, np.concatenate([few, chain])).tolist() == [False] * (CROWD - 1) + [True] * CROWD
    assert in_crowds(0, np.empty((0, 2), np.int64)).tolist() == []


def test_twins_across_a_split_that_was_given_are_named(twins, tmp_path, caplog):
    samples = list_samples(twins)
    split = np.array(["val" if "again" in path or path == "b/9.png" else "train" for path in samples.paths])
    given = Samples(twins, samples.paths, samples.labels, samples.classes, split)
    dataset = prepare(given, Square(64), 0.3, 0, Cache(tmp_path / "cache"))
    assert dataset.samples.split.tolist() == split.tolist()
    (line,) = [line for line in caplog.messages if "look nearly the same" in line]
    assert "5 pairs on different sides of the split look nearly the same, which makes accuracy untrue: " in line
    assert "a/0 again.jpg ~ a/0.png, a/1 again.jpg ~ a/1.png, a/2 again.jpg ~ a/2.png and 2 more" in line


def test_the_command_line_keeps_a_recompressed_copy_with_its_picture(cli, twins):
    for number, name in enumerate(("b/0.png", "b/1.png")):
        recompressed(Image.open(twins / name), 60).save(twins / f"a/copy {number}.jpg")
    code, _, errors = cli("train", "--data", twins, *TINY, "--epochs", 1, "--val-fraction", 0.3, "--run", "one")
    assert code == 0
    assert "14 pictures in 7 groups look nearly the same" in errors
    at_odds = "2 pairs of contradictory labels look nearly the same: a/copy 0.jpg ~ b/0.png, a/copy 1.jpg ~ b/1.png"
    assert at_odds in errors
    lines = Path("one/split.csv").read_text().splitlines()
    side = {line.split(",")[0]: line.split(",")[2] for line in lines}
    assert lines[0] == "path,label,split"
    assert [side[f"a/copy {number}.jpg"] == side[f"b/{number}.png"] for number in (0, 1)] == [True, True]


@pytest.mark.skipif(not CLIPART.is_dir(), reason="the clip art is not there")
def test_the_grey_around_pictures_is_no_likeness(tmp_path):
    """Next to it, thin drawings have little contrast: what is found is what is without it, eight drawings twice."""
    paths = pictures_below(CLIPART)
    samples = Samples(CLIPART, paths, np.zeros(len(paths), np.int64), ["all"])
    for fit in ("pad", "squash"):
        dataset = read_all(samples, Square(64, fit), Cache(tmp_path / "cache"))
        assert len(find_twins(dataset)) == 8


def test_padding_by_hand():
    picture = np.full((8, 8, 3), 128, np.uint8)
    assert without_padding(picture).shape == (8, 8, 3)  # which is all that there is
    picture[:, 2:5] = 7
    picture[3, 3] = 128
    assert np.array_equal(without_padding(picture), picture[:, 2:5])
    picture[0, 0, 0] = picture[0, 7, 0] = 127
    assert without_padding(picture) is picture
