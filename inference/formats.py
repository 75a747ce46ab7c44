"""What a model can be written as for other programs, and how each file is read back to be compared."""

import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from plumage.data.augment import Transform
from plumage.models.weights import load_state

OPSET = 18
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
        return self.model(images)


@dataclass(frozen=True)
class Format:
    """A kind of file: how a network and its metadata are written to one, and read back as what computes the logits.

    write: takes the network, two pictures as an example, the file, and the metadata. read: takes the file, and the
    network for what the file lacks. packages: must be installed. holds_input: the preprocessing is in the file, which
    else has weights alone.
    """

    suffix: str
    title: str
    write: Callable[[Network, Tensor, Path, dict[str, str]], None]
    read: Callable[[Path, Network], Logits]
    packages: tuple[str, ...] = ()
    holds_input: bool = True

    @property
    def name(self) -> str:
        return self.suffix[1:]


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


def read_onnx(file: Path, network: Network) -> Logits:
    import onnxruntime  # noqa: PLC0415 (an extra)

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda views: torch.from_numpy(session.run(None, {"pictures": views.numpy()})[0])


def write_pt2(network: Network, example: Tensor, file: Path, metadata: dict[str, str]) -> None:
    program = torch.export.export(network, (example,), dynamic_shapes={"pictures": {0: torch.export.Dim("batch")}})
    with warnings.catch_warnings(), file.open("wb") as handle:
        warnings.simplefilter("ignore")  # some releases of torch warn of weights in channels-last
        torch.export.save(program, handle, extra_files=metadata)


def read_pt2(file: Path, network: Network) -> Logits:
    with file.open("rb") as handle:
        return torch.export.load(handle).module()


def write_safetensors(network: Network, example: Tensor, file: Path, metadata: dict[str, str]) -> None:
    state = {key: value.contiguous() for key, value in network.model.state_dict().items()}
    file.write_bytes(safetensors.torch.save(state, metadata))


def read_safetensors(file: Path, network: Network) -> Logits:
    other = deepcopy(network)
    load_state(other.model, safetensors.torch.load_file(file), str(file))
    return other


KINDS = (
    Format(".onnx", f"ONNX opset {OPSET}", write_onnx, read_onnx, packages=("onnx", "onnxscript", "onnxruntime")),
    Format(".safetensors", "safetensors", write_safetensors, read_safetensors, holds_input=False),
    Format(".pt2", "pt2", write_pt2, read_pt2),
)
FORMATS = {form.suffix: form for form in KINDS}
