"""export(run, …): a run's model as a file for other programs, compared with the model before it is kept."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plumage.data.augment import MEAN, STD, Transform, center_crop
from plumage.data.decode import Decoded, Square, decode_or_reason
from plumage.data.sources import list_pictures
from plumage.data.store import Cache
from plumage.engine.prepare import model_of, samples_of, square_of
from plumage.errors import UserError, first_line
from plumage.files import written_whole
from plumage.inference.calibration import temperature_for
from plumage.inference.formats import FORMATS, Format, Logits, Network
from plumage.models.weights import fingerprint
from plumage.rundir.folder import RunDir

PICTURES, BATCH, TOLERANCE = 128, 32, 1e-3
FITS = {
    "squash": "the whole of it to {0} by {0}",
    "crop": "its short side to {0}, of which the centre of {0} by {0} is taken",
    "pad": "its long side to {0}, laid on the centre of a grey (128) square of {0} by {0}",
}


def choose_format(name: str | None, output: Path | None) -> Format:
    """Return the format called ``name``, else the one that the output's name ends in, else ONNX."""
    suffix = f".{name}" if name is not None else output.suffix if output else ".onnx"
    asked = f"--output {output}" if name is None else f"--format {name}"
    if suffix == ".torchscript":
        raise UserError(f"{asked}: torch deprecates TorchScript; take --format pt2, its successor")
    if suffix not in FORMATS:
        names = ", ".join(form.name for form in FORMATS.values())
        raise UserError(f"{asked}: give --format, one of {names}, or a name in {', '.join(FORMATS)}")
    return FORMATS[suffix]


def export(
    run: RunDir, form: Format, file: Path, cache: Cache, checkpoint: str, normalised_input: bool, pictures: Path | None
) -> str:
    """Write the model of a checkpoint, in float32, compared with itself on real pictures before the file gets its name.

    checkpoint: best, last or a file. normalised_input: see Network. pictures: a folder to compare on, instead of the
    run's validation pictures. Returns how they compare. Raises UserError where logits differ by more than TOLERANCE.
    """
    if absent := [name for name in form.packages if find_spec(name) is None]:
        raise UserError(f'--format {form.name}: needs {", ".join(absent)}: pip install -e ".[export]"')
    if normalised_input and not form.holds_input:
        raise UserError(f"--normalised-input: {form.name} holds weights alone, which have no input; leave it out")
    model, recipe = model_of(run, checkpoint).eval(), run.recipe
    stored = read_examples(example_files(run, cache, pictures), square_of(recipe, run.levels), cache.workers)
    views = Transform(recipe.crop).center(stored) if normalised_input else center_crop(stored, recipe.crop)
    network = Network(model, recipe.crop, normalised_input).eval()
    metadata = describe(run, model, form, normalised_input)
    with written_whole(file) as draft:
        return write_and_compare(form, draft, network, views.contiguous(), metadata)


def write_and_compare(form: Format, file: Path, network: Network, views: Tensor, metadata: dict[str, str]) -> str:
    """Write ``file``, and say how its logits of ``views`` compare with the network's. UserError where they differ."""
    asked = f"--format {form.name}"
    try:
        form.write(network, views[:2], file, metadata)
        theirs = in_batches(form.read(file, network), views)
    except (OSError, UserError):
        raise
    except Exception as error:  # exporters raise nearly anything where releases do not go together
        failure = f"torch {torch.__version__} cannot write or read it here: {first_line(error)}"
        way_out = 'pip install --upgrade -e ".[export]", or take another --format'
        raise UserError(f"{asked}: {failure}; {way_out}") from error
    ours = in_batches(network, views)
    difference = float((ours - theirs).abs().max())
    if not difference <= TOLERANCE:  # as a difference that is no number is not
        failure = f"logits differ by {difference:.3g} from the model's, more than {TOLERANCE}"
        raise UserError(f"{asked}: {failure}: nothing is written; take another --format")
    same = int((ours.argmax(dim=1) == theirs.argmax(dim=1)).sum())
    return f"largest difference of logits {difference:.2g}, the same class for {same} of {len(views)} pictures"


def example_files(run: RunDir, cache: Cache, pictures: Path | None) -> list[Path]:
    """Return up to PICTURES files to compare on, evenly from the validation pictures or those in ``pictures``."""
    if pictures is None:
        try:
            samples = samples_of(run, run.recipe, cache)
        except UserError as error:
            raise UserError(f"{error}; or compare on other pictures, --pictures FOLDER") from error
        assert samples.split is not None
        files = [samples.root / samples.paths[row] for row in np.flatnonzero(samples.split == "val")]
    else:
        files = [Path(path) for path in list_pictures([str(pictures)])]
    chosen = np.linspace(0, len(files) - 1, min(PICTURES, len(files))).round().astype(int)
    return [files[row] for row in chosen]


def read_examples(files: list[Path], square: Square, workers: int) -> Tensor:
    """Return (n, side, side, 3) uint8, the files that can be read. Raises UserError where none can."""
    with ThreadPoolExecutor(workers) as pool:
        read = pool.map(partial(decode_or_reason, square=square), files)
        stored = [each.pixels for each in read if isinstance(each, Decoded)]
    if not stored:
        raise UserError(f"none of {len(files)} pictures to compare on can be read: {files[0]}; give --pictures FOLDER")
    return torch.from_numpy(np.stack(stored))


@torch.inference_mode()
def in_batches(logits: Logits, views: Tensor) -> Tensor:
    """Return (n, K) logits: of one picture, then of batches, of which the last may be smaller. Any size has to do."""
    return torch.cat([logits(part) for part in (views[:1], *views[1:].split(BATCH)) if len(part)])


def describe(run: RunDir, model: nn.Module, form: Format, normalised_input: bool) -> dict[str, str]:
    """Return what goes with the weights, as JSON by key: classes, recipe, normalisation, input, temperature."""
    recipe = run.recipe
    resized = f"resized with an antialiased bilinear filter, {FITS[recipe.fit].format(recipe.resize)}"
    levels = f", values from {run.levels[0]} to {run.levels[1]} brought to 0 to 255" if run.levels else ""
    shape = f"(b, 3, {recipe.crop}, {recipe.crop}) float32 RGB, (x / 255 - mean) / std"
    if form.holds_input and not normalised_input:
        shape = f"(b, {recipe.crop}, {recipe.crop}, 3) uint8 RGB"
    metadata: dict[str, Any] = {"classes": run.classes, "recipe": asdict(recipe)}
    metadata |= {
        "input": f"{shape}: the picture{levels}, in sRGB, {resized}; then its centre cropped",
        "normalisation": {"mean": MEAN, "std": STD},
    }
    metadata["temperature"] = temperature_for(run, fingerprint(model))
    return {key: json.dumps(value) for key, value in metadata.items()}
