"""From Python: a run's model on files and Pillow's images.

from plumage import load
predictor = load("runs/birds-1")
predictor(["a.jpg", image])  # a list of Prediction: label, probability, probabilities
"""

from pathlib import Path

from engine.machine import Machine, choose_device, choose_precision
from engine.predict import Prediction, Predictor, load_predictor
from engine.runs import find_run
from errors import UserError

__all__ = ["Prediction", "Predictor", "load"]


def load(
    run: str | Path, checkpoint: str = "best", device: str = "auto", calibrated: bool = True, tta: bool = False
) -> Predictor:
    """The model of a run's folder. Its predictions are those of ``python main.py predict``.

    checkpoint: best, last or a file. device: auto, cpu, cuda or mps. calibrated: with the temperature that
    ``eval --calibrate`` fitted, where it did. tta: averaged with the mirror image. Raises ValueError where it cannot.
    """
    try:
        found, chosen = find_run(Path(run).expanduser()), choose_device(device)
        machine = Machine(chosen, choose_precision("auto", chosen, found.precision), compile=False)
        return load_predictor(found, machine, checkpoint, calibrated, tta)
    except UserError as error:  # which ends a command, and is no Exception
        raise ValueError(str(error)) from error
