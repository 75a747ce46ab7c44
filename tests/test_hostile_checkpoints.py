"""Hostile checkpoints: code in pickles, tensors that lie, zip bombs, safetensors."""

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hostile import damaged, fuzzed, read_or_refused
from hypothesis import given
from hypothesis import strategies as st

from plumage.errors import UserError
from plumage.models.resnet import build_model
from plumage.models.weights import load_file, load_state, pretrained_weights, state_dict_of, trained_model


def as_zip(pickled: bytes, compression: int = zipfile.ZIP_STORED, **records: bytes) -> bytes:
    """Return what torch.save writes around a pickle and the storages of its tensors."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression, compresslevel=1) as archive:
        for name, content in {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n", **records}.items():
            archive.writestr(f"archive/{name}", content)
    return stream.getvalue()


def as_legacy(pickled: bytes) -> bytes:
    """Return what torch.save wrote before version 1.6."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    return b"".join(pickle.dumps(one, 2) for one in head) + pickled + pickle.dumps([], 2)


def short(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def integer(number: int) -> bytes:
    if -(2**31) <= number < 2**31:
        return b"J" + struct.pack("<i", number)
    return b"\x8a\x09" + number.to_bytes(9, "little", signed=True)


def integers(*numbers: int) -> bytes:
    return b"(" + b"".join(map(integer, numbers)) + b"t"


def tensor(shape=(64,), stride=(1,), offset=0, elements=64, key="0") -> bytes:
    """Return the pickle of {"bn1.bias": a tensor that claims these properties}."""
    storage = (
        b"(" + short("storage") + b"ctorch\nFloatStorage\n" + short(key) + short("cpu") + integer(elements) + b"tQ"
    )
    about = (
        b"(" + storage + integer(offset) + integers(*shape) + integers(*stride) + b"\x89ccollections\nOrderedDict\n)Rt"
    )
    return b"\x80\x02}" + short("bn1.bias") + b"ctorch._utils\n_rebuild_tensor_v2\n" + about + b"Rs."


def reduced(function: bytes, *arguments: bytes) -> bytes:
    """Return the pickle of {"bn1.bias": function(*arguments)}."""
    return b"\x80\x02}" + short("bn1.bias") + b"c" + function + b"\n(" + b"".join(arguments) + b"tRs."


TOUCH = "open('executed', 'w').close()"
CODE = {
    "system": reduced(b"os\nsystem", short("touch executed")),
    "posix": reduced(b"posix\nsystem", short("touch executed")),
    "eval": reduced(b"builtins\neval", short(TOUCH)),
    "exec of Python 2": reduced(b"__builtin__\neval", short(TOUCH)),
    "subprocess": reduced(b"subprocess\ncheck_output", b"(lp0\n" + short("touch") + b"a" + short("executed") + b"a"),
    "torch's own": reduced(b"torch.serialization\nos.system", short("touch executed")),
    "torch.load": reduced(b"torch.serialization\nload", short("inner.pt"), b"NN\x89"),
    "an attribute": b"\x80\x04" + short("os") + short("system") + b"\x93(" + short("touch executed") + b"tR.",
    "INST": b"(" + short("touch executed") + b"ios\nsystem\n.",
    "OBJ": b"(cos\nsystem\n" + short("touch executed") + b"o.",
    "NEWOBJ": b"\x80\x02cos\nsystem\n(" + short("touch executed") + b"t\x81.",
    "a persistent id": b"\x80\x02}"
    + short("a")
    + b"("
    + short("storage")
    + b"cos\nsystem\n"
    + short("0") * 2
    + b"J\1\0\0\0tQs.",
    "BUILD": b"\x80\x02ctorch\nTensor\n)\x81}" + short("__setstate__") + b"cos\nsystem\nsb.",
}
TENSORS = {
    "a negative shape": {"shape": (-64,)},
    "a huge shape": {"shape": (2**62,)},
    "shapes whose product is too large": {"shape": (2**40, 2**40), "stride": (1, 1)},
    "a negative stride": {"stride": (-1,)},
    "a huge stride": {"stride": (2**62,)},
    "a negative offset": {"offset": -1},
    "a huge offset": {"offset": 2**62},
    "fewer strides": {"shape": (8, 8)},
    "more elements than there are": {"elements": 2**40},
    "a negative number of elements": {"elements": -1},
    "no such storage": {"key": "1"},
    "a storage outside": {"key": "../../0"},
    "one value as many": {"shape": (2**40,), "stride": (0,)},
}
# These stay within the bytes that are there, so torch 2.9 and older read them, false claim and all.
WITHIN = {"one value as many", "more elements than there are"}


def chained(number: int) -> bytes:
    """Return the pickle of a list in a list in a list …"""
    return b"\x80\x02}" + short("model") + b"]" * number + b"a" * (number - 1) + b"s."


def torch_saved(content, **options) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def self_containing(content):
    content["model"] = content
    return content


def hiding_its_methods() -> bytes:
    hidden = short("items") + b"Ns" + short("get") + b"Ns" + short("keys") + b"Ns"
    ordered = b"ccollections\nOrderedDict\n)R}" + hidden + b"b"
    return b"\x80\x02" + ordered + short("model") + ordered + b"s" + short("recipe") + ordered + b"s."


def checkpoints() -> dict[str, bytes]:
    storage = {"data/0": b"\0" * 256}
    files = {f"{name}, {form}": pack(code) for name, code in CODE.items() for form, pack in PACKINGS.items()}
    files |= {name: as_zip(tensor(**about), **storage) for name, about in TENSORS.items()}
    plain = {"bn1.bias": torch.zeros(64)}
    return files | {
        "a zip bomb": as_zip(
            tensor(elements=10**8, shape=(10**8,)), zipfile.ZIP_DEFLATED, **{"data/0": bytes(4 * 10**8)}
        ),
        "an empty zip": as_zip(b""),
        "no pickle": as_zip(b"\x80\x02."),
        "too few values": reduced(b"torch._utils\n_rebuild_tensor_v2", integer(1)),
        "a parameter of a word": as_zip(reduced(b"torch.nn.parameter\nParameter", short("word"))),
        "a huge tensor": as_zip(reduced(b"torch\nTensor", integer(2**60))),
        "deep lists": as_zip(chained(100_000)),
        "hidden methods": as_zip(hiding_its_methods()),
        "words for tensors": torch_saved({"bn1.bias": "zeros", "conv1.weight": ["a"]}),
        "numbers for keys": torch_saved({1: 2, 3.5: 4, None: 5, (1, (2,)): 6, b"\xff": 7, -(2**600): 8}),
        "tensors for keys": torch_saved({torch.zeros(3): 1, torch.zeros(0): torch.zeros(1)}),
        "itself": torch_saved(self_containing({**plain})),
        "models in models": torch_saved({"model": {"model": {"model": plain}}, "state_dict": {"state_dict": {}}}),
        "nothing": torch_saved({}),
        "an empty model": torch_saved({"model": {}, "classes": [], "recipe": []}),
        "a number of classes": torch_saved({"model": plain, "classes": 7}),
        "no classes": torch_saved({"model": plain, "classes": None}),
        "a tensor of classes": torch_saved({"model": plain, "classes": torch.zeros(())}),
        "classes of classes": torch_saved({"model": plain, "classes": [["a"], {"b": 1}, torch.zeros(2)]}),
        "a network of lists": torch_saved({"model": plain, "recipe": {"model": ["resnet18"]}}),
        "an unknown network": torch_saved({"model": plain, "recipe": {"model": "resnet18\n" * 99}}),
        "another network": torch_saved({"model": plain, "recipe": {"model": "vit_b_16"}}),
    }


PACKINGS = {"bare": bytes, "legacy": as_legacy, "zip": as_zip}
HEADERS = {
    "a length beyond the file": struct.pack("<Q", 2**40),
    "the largest length": b"\xff" * 8,
    "no length": struct.pack("<Q", 0),
    "no JSON": struct.pack("<Q", 4) + b"{{{{",
    "a list": struct.pack("<Q", 2) + b"[]",
}
ABOUT = {
    "an unknown type": {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]},
    "a huge shape": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 16]},
    "a negative shape": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]},
    "offsets beyond the file": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
    "offsets the wrong way round": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]},
    "another size": {"dtype": "F32", "shape": [3], "data_offsets": [0, 16]},
    "no shape": {"dtype": "F32", "data_offsets": [0, 16]},
    "words": {"dtype": 4, "shape": "four", "data_offsets": None},
}


def safetensors_files() -> dict[str, bytes]:
    files = dict(HEADERS)
    for name, about in ABOUT.items():
        header = json.dumps({"bn1.bias": about}).encode()
        files[name] = struct.pack("<Q", len(header)) + header + b"\0" * 16
    for name, text in (
        ("deep", b"[" * 100_000),
        ("same keys", b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},' * 2),
    ):
        files[name] = struct.pack("<Q", len(text)) + text
    return files


@pytest.fixture(scope="module")
def network():
    return build_model("resnet18", 2)


def check_weights(file, network):
    """Read ``file`` as every reader does: assert that nothing in it fits the network and that no code in it runs."""
    content = read_or_refused(lambda: load_file(file), file)
    weights = read_or_refused(lambda: pretrained_weights("resnet18", str(file)), file)
    assert read_or_refused(lambda: trained_model(file, f"--checkpoint {file}", ["a", "b"]), file) is None
    if content is not None:
        assert type(content) is dict
        state = state_dict_of(content)
        assert all(isinstance(key, str) for key in state)
        assert read_or_refused(lambda: load_state(network, state, str(file)), file) is None
    if weights is not None:
        assert weights.classes is None or all(isinstance(name, str) for name in weights.classes)
    assert not Path("executed").exists()
    return content


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_hostile_checkpoints_are_refused(tmp_path, monkeypatch, network):
    monkeypatch.chdir(tmp_path)
    Path("inner.pt").write_bytes(CODE["system"])
    files = checkpoints()
    assert len(files) > 60
    for name, content in files.items():
        file = Path("w.pt")
        file.write_bytes(content)
        loaded = check_weights(file, network)
        assert loaded is None or not name.startswith((*CODE, *(set(TENSORS) - WITHIN))), name


def test_a_pickle_of_code_would_run(tmp_path, monkeypatch):
    """The pickles above would do harm: unpickled without care, each runs its code."""
    monkeypatch.chdir(tmp_path)
    for name in ("system", "eval", "exec of Python 2", "subprocess", "an attribute", "INST", "OBJ"):
        pickle.loads(CODE[name])
        Path("executed").unlink()


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", None)
    file = tmp_path / "w.pt"
    file.write_bytes(as_zip(tensor(), zipfile.ZIP_DEFLATED, **{"data/0": bytes(10**7)}))
    with pytest.raises(UserError, match=r"w\.pt is no checkpoint: it would unpack to 100\d\d\d\d\d bytes"):
        load_file(file)


def test_hostile_safetensors_are_refused(tmp_path, monkeypatch, network):
    monkeypatch.chdir(tmp_path)
    for name, content in safetensors_files().items():
        file = Path("w.safetensors")
        file.write_bytes(content)
        assert check_weights(file, network) is None, name


@pytest.mark.parametrize("kind", ["quantised", "bits", "packed"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_that_cannot_be_converted_are_refused(tmp_path, network, kind):
    one = torch.zeros((), dtype=torch.uint8)
    value = {
        "quantised": lambda: torch.quantize_per_tensor(torch.tensor(1.0), 1, 0, torch.qint8),
        "bits": lambda: one.view(torch.bits8),
        "packed": lambda: one.view(torch.bits2x4),
    }[kind]()
    torch.save({**network.state_dict(), "bn1.num_batches_tracked": value}, tmp_path / "w.pt")
    check_weights(tmp_path / "w.pt", network)


SOUND = {"bn1.bias": torch.arange(4.0), "bn1.weight": torch.ones(2, 2)}
SOUND_PICKLE = zipfile.ZipFile(io.BytesIO(torch_saved(SOUND))).read("archive/data.pkl")


@pytest.mark.parametrize(
    ("whole", "pack", "name"),
    [
        (torch_saved(SOUND), bytes, "w.pt"),
        (SOUND_PICKLE, lambda damage: as_zip(damage, **{"data/0": b"\0" * 16, "data/1": b"\0" * 16}), "w.pt"),
        (torch_saved(SOUND, _use_new_zipfile_serialization=False), bytes, "w.pt"),
        (safetensors.torch.save(SOUND), bytes, "w.safetensors"),
    ],
    ids=["a whole file", "the pickle in it", "an old file", "safetensors"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
@fuzzed
@given(draw=st.data())
def test_damaged_weights_are_read_or_refused(tmp_path, network, whole, pack, name, draw):
    (tmp_path / name).write_bytes(pack(draw.draw(damaged(whole))))
    check_weights(tmp_path / name, network)
