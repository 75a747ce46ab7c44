"""A run's model for other programs: ONNX, safetensors, TorchScript or torch.export, each compared before it is kept."""

import json
import logging
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from plumage.data.augment import MEAN, STD, Transform, center_crop
from plumage.data.decode import decode_or_reason
from plumage.data.sources import list_pictures, locate
from plumage.data.split import read_split
from plumage.data.store import Cache
from plumage.engine.evaluate import model_of
from plumage.errors import UserError, first_line
from plumage.files import check_output, written_beside
from plumage.inference.calibration import temperature_for
from plumage.models.resnet import build_model
from plumage.models.weights import fingerprint, load_state
from plumage.rundir.folder import RunDir

log = logging.getLogger("plumage")

OPSET = 18
PICTURES, BATCH, TOLERANCE = 128, 32, 1e-3
SUFFIXES = {"onnx": ".onnx", "safetensors": ".safetensors", "torchscript": ".torchscript", "pt2": ".pt2"}
Logits = Callable[[Tensor], Tensor]


class Network(nn.Module):
    """What is exported: pictures → (b, K) logits, with the run's preprocessing after decoding, resizing and cropping.

    Pictures are (b, crop, crop, 3) uint8, or with normalised_input (b, 3, crop, crop) float32.
    """

    def __init__(self, model: nn.Module, crop: int, normalised_input: bool):
        super().__init__()
        self.model, self.view = model, None if normalised_input else Transform(crop)

    def forward(self, pictures: Tensor) -> Tensor:
        images = self.view.normalise(pictures).permute(0, 3, 1, 2) if self.view else pictures
        logits: Tensor = self.model(images)
        return logits


@dataclass(frozen=True)
class Export:
    """What came of it. difference: the largest between logits of the file and the model's, of ``n`` pictures.

    same: how many of them have the same most probable class.
    """

    file: Path
    about: str
    n: int
    difference: float
    same: int


def choose_format(form: str | None, output: Path | None) -> str:
    """``form``, else what the output's name says, else onnx."""
    if form is None and output is not None:
        form = next((name for name, suffix in SUFFIXES.items() if output.suffix == suffix), None)
        if form is None:
            raise UserError(f"--output {output}: give --format, or a name in {', '.join(SUFFIXES.values())}")
    return form or "onnx"


def export(
    run: RunDir,
    cache: Cache,
    form: str,
    output: Path | None = None,
    force: bool = False,
    checkpoint: str = "best",
    normalised_input: bool = False,
    pictures: Path | None = None,
) -> Export:
    """Write the model of a checkpoint, in float32, and compare it with itself on real pictures before it gets its name.

    form: one of SUFFIXES. pictures: a folder to compare on, instead of the run's validation pictures.
    Raises UserError where the file's logits differ from the model's by more than TOLERANCE.
    """
    file, recipe, classes = output or run.path / f"model{SUFFIXES[form]}", run.recipe, run.classes
    check_output(file, force)
    check_packages(form)
    if normalised_input and form == "safetensors":
        raise UserError("--normalised-input: safetensors holds weights alone, which have no input; leave it out")
    model = model_of(run, checkpoint).eval()
    stored = read_examples(example_files(run, cache, pictures), recipe.resize, cache.workers)
    network = Network(model, recipe.crop, normalised_input).eval()
    views = center_crop(stored, recipe.crop).contiguous()
    if normalised_input:
        views = Transform(recipe.crop).center(views).contiguous()

    metadata = describe(run, model, form, normalised_input)
    writers = {"onnx": write_onnx, "pt2": write_pt2, "torchscript": write_torchscript, "safetensors": write_safetensors}
    readers: dict[str, Callable[[Path], Logits]] = {
        "onnx": read_onnx,
        "pt2": read_pt2,
        "torchscript": read_torchscript,
        "safetensors": partial(read_safetensors, network, recipe.model, classes),
    }
    with written_beside(file) as draft:
        try:
            writers[form](network, views[:2], draft, metadata)
            theirs = in_batches(readers[form](draft), views)
        except OSError:
            raise
        except Exception as error:  # exporters raise nearly anything where releases do not go together
            problem = f"--format {form}: torch {torch.__version__} cannot write or read it here: {first_line(error)}"
            way_out = 'pip install --upgrade -e ".[export]", or take another --format'
            raise UserError(f"{problem}; {way_out}") from error
        ours = in_batches(network, views)
        difference = largest_difference(ours, theirs, form)
    same = int((ours.argmax(dim=1) == theirs.argmax(dim=1)).sum())
    about = f"ONNX opset {OPSET}" if form == "onnx" else form
    return Export(file, about, len(views), difference, same)


def largest_difference(ours: Tensor, theirs: Tensor, form: str) -> float:
    """Raises UserError where it is above TOLERANCE, or no number."""
    difference = float((ours - theirs).abs().max())
    if not difference <= TOLERANCE:
        raise UserError(
            f"--format {form}: logits differ by {difference:.3g} from the model's on {len(ours)} pictures, more than "
            f"{TOLERANCE}: nothing is written; take another --format"
        )
    return difference


def check_packages(form: str) -> None:
    needed = ("onnx", "onnxscript", "onnxruntime") if form == "onnx" else ()
    if absent := [name for name in needed if find_spec(name) is None]:
        raise UserError(f'--format {form}: needs {", ".join(absent)}: pip install -e ".[export]"')


def example_files(run: RunDir, cache: Cache, pictures: Path | None) -> list[Path]:
    """Up to PICTURES files, evenly from the sorted list."""
    if pictures is None:
        try:
            samples = read_split(run.split, locate(run.recipe.data, cache), run.classes)
        except UserError as error:
            raise UserError(f"{error}; or give other pictures to compare on, --pictures FOLDER") from error
        assert samples.split is not None
        found = [samples.root / samples.paths[row] for row in np.flatnonzero(samples.split == "val")]
    else:
        found = [Path(path) for path in list_pictures([str(pictures)])]
    chosen = np.linspace(0, len(found) - 1, min(PICTURES, len(found))).round().astype(int)
    return [found[row] for row in chosen]


def read_examples(files: list[Path], size: int, workers: int) -> Tensor:
    """(n, size, size, 3) uint8 of those that can be read. Raises UserError where none can."""
    with ThreadPoolExecutor(workers) as pool:
        read = list(pool.map(partial(decode_or_reason, size=size), files))
    stored = [picture for picture in read if not isinstance(picture, str)]
    if not stored:
        raise UserError(f"none of {len(files)} pictures to compare on can be read: {files[0]}; give --pictures FOLDER")
    return torch.from_numpy(np.stack(stored))


@torch.inference_mode()
def in_batches(logits: Logits, views: Tensor) -> Tensor:
    """(n, K): of one picture first, then of batches, of which the last may be smaller: any size has to do."""
    return torch.cat([logits(part) for part in (views[:1], *views[1:].split(BATCH)) if len(part)])


def describe(run: RunDir, model: nn.Module, form: str, normalised_input: bool) -> dict[str, str]:
    """What goes with the weights, as JSON by key: classes, recipe, normalisation, input, temperature."""
    recipe = run.recipe
    picture = f"resized to {recipe.resize} by {recipe.resize} with an antialiased bilinear filter, its centre cropped"
    shape = f"(b, 3, {recipe.crop}, {recipe.crop}) float32 RGB, (x / 255 - mean) / std"
    if form != "safetensors" and not normalised_input:
        shape = f"(b, {recipe.crop}, {recipe.crop}, 3) uint8 RGB"
    about: dict[str, Any] = {
        "classes": run.classes,
        "recipe": asdict(recipe),
        "normalisation": {"mean": MEAN, "std": STD},
        "input": f"{shape}: the whole picture, {picture}",
        "temperature": temperature_for(run, fingerprint(model)),
    }
    return {key: json.dumps(value) for key, value in about.items()}


def write_onnx(network: Network, example: Tensor, file: Path, metadata: dict[str, str]) -> None:
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        input_names=["pictures"],
        output_names=["logits"],
        dynamic_shapes={"pictures": {0: torch.export.Dim("batch")}},
    )
    assert program is not None
    program.model.metadata_props.update(metadata)
    program.save(str(file))


def read_onnx(file: Path) -> Logits:
    import onnxruntime  # noqa: PLC0415 (an extra)

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda views: torch.from_numpy(session.run(None, {"pictures": views.numpy()})[0])


def write_pt2(network: Network, example: Tensor, file: Path, metadata: dict[str, str]) -> None:
    program = torch.export.export(network, (example,), dynamic_shapes={"pictures": {0: torch.export.Dim("batch")}})
    with warnings.catch_warnings(), file.open("wb") as handle:
        warnings.simplefilter("ignore")  # some releases of torch warn of weights in channels-last
        torch.export.save(program, handle, extra_files=metadata)


def read_pt2(file: Path) -> Logits:
    with file.open("rb") as handle:
        return torch.export.load(handle).module()


def write_torchscript(network: Network, example: Tensor, file: Path, metadata: dict[str, str]) -> None:
    with warnings.catch_warnings(), file.open("wb") as handle:
        warnings.simplefilter("ignore")  # torch recommends torch.export: --format pt2 is that
        torch.jit.save(torch.jit.trace(network, example), handle, _extra_files=metadata)


def read_torchscript(file: Path) -> Logits:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(file)


def write_safetensors(network: Network, example: Tensor, file: Path, metadata: dict[str, str]) -> None:
    state = {key: value.contiguous() for key, value in network.model.state_dict().items()}
    file.write_bytes(safetensors.torch.save(state, metadata))


def read_safetensors(network: Network, name: str, classes: list[str], file: Path) -> Logits:
    model = build_model(name, len(classes))
    load_state(model, safetensors.torch.load_file(file), str(file))
    return Network(model, network.view.crop if network.view else 0, network.view is None).eval()
