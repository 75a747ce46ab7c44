"""The built-in data set: a folder of invented birds, drawn by code as in a field guide; nothing is downloaded."""

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from tqdm import tqdm

from plumage.birds.portrait import Species, draw_picture
from plumage.birds.species import species_list
from plumage.errors import UserError
from plumage.files import folder_written_whole, remove_abandoned

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

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
    remove_abandoned(folder.parent)
    with folder_written_whole(folder) as draft:
        # fork would copy the locks of threads that torch may have running.
        spawn = multiprocessing.get_context("spawn")
        parent, end = spawn.Pipe(duplex=False)
        pool = ProcessPoolExecutor(workers, spawn, _serve, (parent,))
        try:
            tasks = [pool.submit(draw_species, bird, draft, pictures, seed) for bird in species_list(species, seed)]
            with tqdm(desc="drawing birds", total=species * pictures, unit="img", disable=None, leave=False) as bar:
                for task in as_completed(tasks):
                    task.result()
                    bar.update(pictures)
        except BrokenProcessPool as error:
            way_out = "it may have had too little memory; take --workers 1, or go on elsewhere"
            raise UserError(f"{folder}: a process that drew it was killed: {way_out}") from error
        finally:
            end.close()  # whatever is still drawn now is for nobody
            pool.shutdown(cancel_futures=True)
            parent.close()


def _serve(parent: "Connection") -> None:
    """Begin a worker. It ends when ``parent`` closes: the other end is in the process that drew, however that ends.

    What asks for the end, as Ctrl-C or a closed terminal, asks the worker too, and is left to that process.
    """
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):  # Windows has not all
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: "Connection") -> None:
    parent.poll(None)
    os._exit(1)
