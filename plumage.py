"""From Python: a run's model on files and Pillow's images.

from plumage import load
predictor = load("runs/birds-1")
predictor(["a.jpg", image])  # a list of Prediction: label, probability, probabilities
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plumage.inference.predict import Prediction, Predictor

# The folders beside this file are plumage.data, plumage.models and so on, so that none of them takes a name from the
# modules of whoever imports it. Installed, this file is the package's __init__.py, and they lie beside it too.
__path__ = [str(Path(__file__).parent)]
__all__ = ["Prediction", "Predictor", "load"]


def __getattr__(name: str) -> Any:
    """Import what needs torch, which takes seconds, only where it is used."""
    if name not in ("Prediction", "Predictor"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from plumage.inference import predict  # noqa: PLC0415

    return getattr(predict, name)


def load(
    run: str | Path, checkpoint: str = "best", device: str = "auto", calibrated: bool = True, tta: bool = False
) -> "Predictor":
    """Load the model of a run's folder. It predicts what the command ``predict`` does.

    checkpoint: best, last or a file. device: auto, cpu, cuda or mps. calibrated: use the temperature that
    was fitted to it, if any. tta: average each picture's probabilities with its mirror image's. Raises
    ValueError where there is no such run, checkpoint or device.
    """
    from plumage.errors import UserError  # noqa: PLC0415
    from plumage.files import expanded  # noqa: PLC0415
    from plumage.hardware.cores import usable_cores  # noqa: PLC0415
    from plumage.hardware.device import Machine, choose_device, choose_precision, set_up  # noqa: PLC0415
    from plumage.inference.predict import load_predictor  # noqa: PLC0415
    from plumage.rundir.choose import find_run  # noqa: PLC0415

    try:
        folder, hardware = find_run(Path(expanded(str(run)))), choose_device(device)
        set_up(hardware, usable_cores())
        machine = Machine(hardware, choose_precision("auto", hardware, folder.precision), compile=False)
        return load_predictor(folder, machine, checkpoint, calibrated, tta)
    except UserError as error:  # which is for the command line
        raise ValueError(str(error)) from error
