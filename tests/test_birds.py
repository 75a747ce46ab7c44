import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import as_completed
from itertools import combinations
from time import time

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import plumage.birds.folder
from plumage.birds.folder import birds_folder, draw_birds, parse_birds
from plumage.birds.portrait import COLOURS, Species, draw_picture
from plumage.birds.species import GENUS_SIZE, legible, species_list, unlike
from plumage.data.sources import list_samples
from plumage.errors import UserError
from plumage.files import folder_written_whole


def pixels(bird, picture=0, seed=0):
    return np.asarray(draw_picture(bird, picture, seed), int)


def test_a_folder_of_classes_like_anybodys(tmp_path):
    draw_birds(tmp_path / "cache" / "birds", species=3, pictures=2, workers=2)
    samples = list_samples(tmp_path / "cache" / "birds")
    birds = species_list(3, seed=0)
    assert samples.classes == sorted(bird.name for bird in birds)
    assert Counter(samples.labels.tolist()) == {0: 2, 1: 2, 2: 2}
    draw_picture(birds[1], 1, 0).save(tmp_path / "again.jpg", quality=90)
    drawn = tmp_path / "cache" / "birds" / birds[1].name / "0001.jpg"
    assert drawn.read_bytes() == (tmp_path / "again.jpg").read_bytes()
    assert Image.open(drawn).size == (500, 375)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["birds"]


def test_a_folder_that_came_first_stays(tmp_path):
    (tmp_path / "birds" / "robin").mkdir(parents=True)
    draw_birds(tmp_path / "birds", species=1, pictures=1, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["birds"]
    assert [path.name for path in (tmp_path / "birds").iterdir()] == ["robin"]


def test_what_cannot_be_drawn_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="workers"):
        draw_birds(tmp_path / "birds", species=1, pictures=1, workers=-1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="nobody knows there whether a draft is held")
def test_workers_end_with_a_killed_parent_and_its_draft_goes_with_the_next_drawing(tmp_path):
    cache, pipe = tmp_path / "cache", subprocess.PIPE
    code = "import sys; from pathlib import Path; from plumage.birds.folder import draw_birds\n"
    code += "draw_birds(Path(sys.argv[1]), species=40, pictures=200, workers=2)"
    command = [sys.executable, "-c", code, cache / "birds"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe)
    while not list(cache.glob(".draft-*/*/*.jpg")):
        assert process.poll() is None
    process.kill()
    process.communicate(timeout=60)  # the end of streams that the workers have too
    [draft] = cache.iterdir()
    for path in (draft, *draft.iterdir()):
        os.utime(path, (time() - 10, time() - 10))
    with folder_written_whole(cache / "another"):
        draw_birds(cache / "birds", species=1, pictures=1)
        assert len(list(cache.glob(".draft-*"))) == 1  # which is at work
    assert sorted(path.name for path in cache.iterdir()) == ["another", "birds"]


def test_a_worker_that_is_killed_is_one_line(tmp_path, monkeypatch):
    """As by a kernel that needs its memory."""

    def killing(tasks):
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        return as_completed(tasks)

    monkeypatch.setattr(plumage.birds.folder, "as_completed", killing)
    with pytest.raises(UserError, match="birds: a process that drew it was killed"):
        draw_birds(tmp_path / "birds", species=4, pictures=50)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("count", "seed"), [(200, 0), (800, 1), (1000, 0), (2000, 7), (2000, 2**63 - 1)])
def test_names_are_unique_and_the_list_grows_at_its_end(count, seed):
    birds = species_list(count, seed)
    assert len({bird.name.lower() for bird in birds}) == len(birds) == count
    assert [bird.index for bird in birds] == list(range(count))
    assert birds[:200] == species_list(200, seed)


def test_the_usual_birds_stay_what_they_are():
    birds = species_list(200, seed=0)
    known = repr([(bird.name, bird.build, sorted(bird.look.items())) for bird in birds])
    assert hashlib.md5(known.encode()).hexdigest() == "e570922ccc9fab15dbac8af4a07c3c6e"


@pytest.mark.parametrize(
    ("data", "asked", "folder"),
    [
        ("birds", (200, 30, 0), "birds-v1"),
        ("birds:seed=0,species=200,pictures=30", (200, 30, 0), "birds-v1"),
        ("birds:species=800,seed=1", (800, 30, 1), "birds-v1-species800-seed1"),
        ("birds:seed=1,pictures=30,species=800", (800, 30, 1), "birds-v1-species800-seed1"),
        ("birds:pictures=1000", (200, 1000, 0), "birds-v1-pictures1000"),
        ("birds:species=2,pictures=2", (2, 2, 0), "birds-v1-species2-pictures2"),
    ],
)
def test_what_data_asks_of_the_birds(data, asked, folder):
    parsed = parse_birds(data)
    assert (parsed["species"], parsed["pictures"], parsed["seed"]) == asked
    assert birds_folder(parsed) == folder


@pytest.mark.parametrize(
    "listed",
    [
        *("", "foo=1", "species", "species=", "species=x", "species=1", "species=2001", "pictures=1", "pictures=1001"),
        *("seed=-1", f"seed={2**63}", "seed=1.5", "seed=1,", "seed=1;species=3", "seed=1,seed=1", "seed=1,seed=2"),
    ],
)
def test_what_cannot_be_asked_of_the_birds(listed):
    with pytest.raises(UserError) as error:
        parse_birds(f"birds:{listed}")
    message = str(error.value)
    assert "\n" not in message
    for part in (f"--data birds:{listed}: ", "species=2..2000", "pictures=2..1000", "seed=0..", "birds:species=800"):
        assert part in message


def test_a_genus_shares_its_build_and_most_of_its_look():
    birds = species_list(200, seed=0)
    genera = [birds[first : first + GENUS_SIZE] for first in range(0, 200, GENUS_SIZE)]
    assert len({genus[0].build.noun for genus in genera}) == 20
    for genus in genera:
        assert len({bird.build for bird in genus}) == 1
        assert len({bird.name.split()[-1] for bird in genus}) == 1
        gaps = [unlike(one.look, other.look) for one, other in combinations(genus, 2)]
        assert min(gaps) == 1  # sisters
        assert all(legible(bird.look) for bird in genus)


def test_each_trait_shows_in_the_small():
    """In the same pose, place and light, of which four are tried, birds of a genus differ where the network looks."""
    birds = species_list(200, seed=0)
    for first in range(0, 200, GENUS_SIZE):
        small = []
        for bird in birds[first : first + GENUS_SIZE]:
            twin = Species(bird.name, first, bird.build, bird.look)
            pictures = [draw_picture(twin, picture, 0).resize((64, 64)) for picture in range(4)]
            small.append(np.stack([np.asarray(picture, int) for picture in pictures]))
        for one, other in combinations(small, 2):
            visible = (np.abs(one - other).max(-1) > 40).sum((1, 2))
            assert visible.max() >= 20


def test_pictures_of_a_species_differ_and_each_is_a_function_of_its_numbers():
    bird, other = species_list(2, seed=0)
    one = pixels(bird)
    for different in (pixels(bird, picture=1), pixels(bird, seed=1), pixels(other)):
        assert np.abs(one - different).mean() > 5
    assert np.array_equal(one, pixels(bird))


def test_another_seed_is_another_world():
    """Whoever has learnt the birds of one seed has seen none of another's: of the same build, three traits differ."""
    usual, others = species_list(200, 0), species_list(800, 1)
    gaps = [
        sum(bird.look.get(trait) != other.look.get(trait) for trait in {**bird.look, **other.look})
        for bird in usual
        for other in others
        if bird.build == other.build
    ]
    assert min(gaps) >= 3
    assert {colour for bird in others for colour in bird.look.values()} <= set(COLOURS)
