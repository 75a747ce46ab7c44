"""The built-in data set: a folder of invented birds, drawn by code as in a field guide; nothing is downloaded."""

import multiprocessing
import signal
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from plumage.birds.portrait import Species, draw_picture
from plumage.birds.species import species_list
from plumage.errors import UserError
from plumage.files import folder_written_whole

DRAWING = 1  # part of the folder's name: raise it whenever the same seed would draw other pictures
# what --data birds:... may ask for: default, least, most
OPTIONS = {"species": (200, 2, 2000), "pictures": (30, 2, 1000), "seed": (0, 0, 2**63 - 1)}


def draw_species(bird: Species, folder: Path, pictures: int, seed: int) -> None:
    (folder / bird.name).mkdir()
    for picture in range(pictures):
        draw_picture(bird, picture, seed).save(folder / bird.name / f"{picture:04d}.jpg", quality=90)


def parse_birds(data: str) -> dict[str, int]:
    """Read the species, pictures and seed that ``--data birds:species=800,seed=1`` means, with defaults."""
    _, colon, listed = data.partition(":")
    given: dict[str, int] = {}
    for option in listed.split(",") if colon else ():
        name, _, value = option.partition("=")
        with suppress(KeyError, ValueError):
            _, least, most = OPTIONS[name]
            if name not in given and least <= int(value) <= most:
                given[name] = int(value)
                continue
        ranges = ", ".join(f"{name}={least}..{most}" for name, (_, least, most) in OPTIONS.items())
        way_out = "give each once, as in birds:species=800,seed=1"
        raise UserError(f"--data {data}: '{option}' is not among {ranges}; {way_out}")
    return {name: given.get(name, default) for name, (default, _, _) in OPTIONS.items()}


def birds_folder(options: dict[str, int]) -> str:
    """Name the folder of what ``parse_birds`` returns: ``birds-v1``, ``birds-v1-species800-seed1``."""
    unusual = [f"{name}{value}" for name, value in options.items() if value != OPTIONS[name][0]]
    return "-".join([f"birds-v{DRAWING}", *unusual])


def draw_birds(folder: Path, species: int, pictures: int, seed: int = 0, workers: int = 1) -> None:
    """Draw ``folder``/<species name>/<0000>.jpg, ``pictures`` of each species, 500x375; same seed, same bytes.

    The folder appears whole or not at all. Workers are spawned: a script needs an ``if __name__ == "__main__"``.
    """
    with folder_written_whole(folder) as draft:
        # fork would copy the locks of threads that torch may have running. Ctrl-C reaches the workers too.
        spawn, ignore_interrupt = multiprocessing.get_context("spawn"), (signal.SIGINT, signal.SIG_IGN)
        pool = ProcessPoolExecutor(workers, spawn, signal.signal, ignore_interrupt)
        try:
            tasks = [pool.submit(draw_species, bird, draft, pictures, seed) for bird in species_list(species, seed)]
            with tqdm(desc="drawing birds", total=species * pictures, unit="img", disable=None, leave=False) as bar:
                for task in as_completed(tasks):
                    task.result()
                    bar.update(pictures)
        finally:
            pool.shutdown(cancel_futures=True)
