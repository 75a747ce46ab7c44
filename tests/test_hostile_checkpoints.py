"""Hostile checkpoints: code in pickles, tensors that lie, zip bombs, safetensors."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import ROOT
from hostile import damaged, fuzzed, read_or_refused
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from plumage.engine.checkpoint import is_whole
from plumage.engine.resume import look
from plumage.errors import UserError
from plumage.models.resnet import build_model
from plumage.models.weights import load_file, load_state, pretrained_weights, state_dict_of, trained_model
from plumage.recipe import Recipe


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


def appended(archive: bytes, *more: bytes) -> bytes:
    return b"".join((archive, *more))


def in_a_list(*parts: bytes) -> bytes:
    return b"\x80\x02}" + short("model") + b"](" + b"".join(parts) + b"es."


def called_again(function: bytes, arguments: bytes, times: int) -> bytes:
    """Return the pickle of a list of what ``function(*arguments)`` returns, so many times: three bytes and two each."""
    return in_a_list(b"c" + function + b"\nq\x00" + arguments + b"q\x01R", b"h\x00h\x01R" * times)


def one_tensor(**about) -> bytes:
    """Return the operations that make a tensor, as ``tensor`` has them."""
    return tensor(**about).removeprefix(b"\x80\x02}" + short("bn1.bias")).removesuffix(b"s.")


def two_archives() -> bytes:
    """Return a sound archive behind which another begins, that only some readers find."""
    first, second = as_zip(tensor(), **{"data/0": b"\0" * 256}), as_zip(b"\x80\x02}.")
    return first + second


def with_two_ends() -> bytes:
    whole = torch_saved({"bn1.bias": torch.zeros(64)})
    end = whole.index(b"PK\6\6")
    return whole[:end] + whole[end:].replace(whole[end + 48 : end + 56], struct.pack("<Q", 4), 1)


def named_twice(first: str, second: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, content in ((first, tensor()), (second, b"\x80\x02}."), ("archive/data/0", b"\0" * 256)):
            archive.writestr(name, content)
    return stream.getvalue()


def as_tar() -> bytes:
    """Return what is an old checkpoint by its first bytes, and a tar archive too, which torch reads otherwise."""
    about = tarfile.TarInfo("x")
    block = bytearray(about.tobuf(tarfile.USTAR_FORMAT))
    block[:15] = as_legacy(b"")[:15]
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:512]) + 8 * 32)
    return bytes(block) + bytes(1024)


def greedy() -> dict[str, bytes]:
    """Return files that would take much more memory than they have bytes, or show two readers two things."""
    storage = {"data/0": b"\0" * 256}
    bomb = as_zip(tensor(elements=10**8, shape=(10**8,)), zipfile.ZIP_DEFLATED, **{"data/0": bytes(4 * 10**8)})
    ordered = b"ccollections\nOrderedDict\n"
    many = b"}(" + b"".join(integer(number) + b"N" for number in range(50_000)) + b"u\x85"
    numbers = b"](" + b"".join(map(integer, range(50_000))) + b"e\x85"
    shape = b"(" + integer(1) * 1000 + b"t"
    storage_0 = b"(" + short("storage") + b"ctorch\nFloatStorage\n" + short("0") + short("cpu") + integer(64) + b"tQ"
    wide = b"(" + storage_0 + integer(0) + shape + shape + b"\x89" + ordered + b")Rt"
    return {
        "a bomb": bomb,
        "a bomb behind a signature": appended(bomb, b"PK\5\6"),
        "a bomb behind an empty end": appended(bomb, b"PK\5\6", bytes(18)),
        "a bomb behind a comment": appended(bomb[:-2], b"\4\0", b"PK\5\6"),
        "two archives": two_archives(),
        "an archive behind bytes": appended(b"PK\3\4", as_zip(tensor(), **storage)),
        "two ends": with_two_ends(),
        "a name twice": named_twice("archive/data.pkl", "archive/data.pkl"),
        "a name in capitals": named_twice("archive/DATA.pkl", "archive/data.pkl"),
        "a storage by many names": as_zip(in_a_list(*(one_tensor(key=f"0\0{n}") for n in range(9))), **storage),
        "a storage in capitals": as_zip(in_a_list(one_tensor(key="A"), one_tensor(key="a")), **{"data/a": b"\0" * 256}),
        "a storage that is a number": as_zip(tensor().replace(short("0"), integer(0)), **storage),
        "more elements than there are": as_zip(tensor(elements=2**28, shape=(2**28,)), **storage),
        "a bytearray": as_zip(reduced(b"builtins\nbytearray", integer(2**31 - 1))),
        "copies of a set": as_zip(called_again(b"__builtin__\nset", numbers, 5000)),
        "bytes that double": as_zip(
            b"\x80\x02" + b"c_codecs\nencode\n" * 31 + b"U\1a" + (short("hex") + b"\x86R") * 31 + b"."
        ),
        "a storage of no file": as_zip(reduced(b"torch.storage\nUntypedStorage", integer(2**31 - 1))),
        "a copy that is another type": as_zip(reduced(b"torch._utils\n_rebuild_device_tensor_from_cpu_tensor", b"N")),
        "copies of a dictionary": as_zip(called_again(b"collections\nOrderedDict", many, 5000)),
        "attributes copied": as_zip(in_a_list(ordered + b")R" + many[:-1] + b"b")),
        "a thousand dimensions": as_zip(called_again(b"torch._utils\n_rebuild_tensor_v2", wide, 1000), **storage),
        "too many objects": as_zip(in_a_list(b"}" * 1_100_000)),
        "a far place in the memo": as_zip(in_a_list(b"}r" + b"\xff\xff\xff\x7f")),
        "a large version": as_zip(tensor(), **{"data/0": b"\0" * 256, "more": bytes(33_000_000)}),
        "old, of many objects": as_legacy(in_a_list(b"}" * 1_100_000)),
        "old, of tensors larger than it": as_legacy(tensor(elements=10**9).replace(b"tQ", b"NtQ")),
        "old, and a tar": as_tar(),
        "a list of records that is too long": b"PK\3\4"
        + bytes(9_000_000)
        + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, 9_000_000, 4, 0),
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


def test_files_that_take_more_than_they_have_are_refused_before_they_are_loaded(tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(torch, "load", lambda *args, **options: loaded.append(args))
    monkeypatch.setattr(safetensors.torch, "load_file", loaded.append)
    for name, content in greedy().items():
        file = tmp_path / "w.pt"
        file.write_bytes(content)
        assert read_or_refused(lambda file=file: load_file(file), file) is None, name
        assert not is_whole(file), name
        assert look(file, Recipe(), 2) is None, name
        assert not loaded, name
    for name, size, says in (
        ("w.pt", 5 * 10**9, "it has 5,000,000,000 bytes, and the limit is 1,100,000,000; save its weights alone"),
        ("w.safetensors", 5 * 10**9, "the limit is"),
        ("long.safetensors", 10**8, "its header is too long"),
    ):
        with (tmp_path / name).open("wb") as handle:
            handle.write(struct.pack("<Q", 90_000_000))
            handle.truncate(size)
        with pytest.raises(UserError, match=says):
            load_file(tmp_path / name)
    assert not loaded


def test_the_limit_leaves_room_for_a_head_of_many_classes(tmp_path):
    with (tmp_path / "w.pt").open("wb") as handle:
        handle.truncate(3 * 10**9)
    with pytest.raises(UserError, match=r"the limit is 1,427,680,000"):
        load_file(tmp_path / "w.pt", 10_000)
    with pytest.raises(UserError, match=r"it is not what torch\.save writes"):
        load_file(tmp_path / "w.pt", 100_000)


def test_what_would_never_end_is_refused(tmp_path):
    os.mkfifo(tmp_path / "w.pt")
    for file in (tmp_path / "w.pt", tmp_path, Path(os.devnull), tmp_path / "none.pt"):
        with pytest.raises(UserError, match="does not exist, or is no file"):
            load_file(file)
        assert not is_whole(file)
        assert look(file, Recipe(), 2) is None


def test_all_that_hostile_files_take_is_below_2_gb(tmp_path):
    """Also where they are loaded, as far as they may be: the most objects, of each kind, that a pickle may have."""
    again = called_again(
        b"torch._utils\n_rebuild_tensor_v2", one_tensor()[len(b"ctorch._utils\n_rebuild_tensor_v2\n") : -1], 9
    )
    assert load_file_of(tmp_path, as_zip(again, **{"data/0": b"\0" * 256})) is not None
    for number, content in enumerate(greedy().values()):
        (tmp_path / f"{number}.pt").write_bytes(content)
    (tmp_path / "dictionaries.pt").write_bytes(as_zip(in_a_list(b"}" * 450_000)))
    code = (
        "import sys; from pathlib import Path; from plumage.models.weights import load_file\n"
        "for name in sys.argv[1:]:\n"
        "    try: load_file(Path(name))\n"
        "    except Exception as error: assert type(error).__name__ == 'UserError', error\n"
        # getrusage's would be at least the peak of the process that started this one.
        "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, tmp_path.glob("*.pt"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2_000_000  # KiB


def load_file_of(folder, content):
    (folder / "w.pt").write_bytes(content)
    return load_file(folder / "w.pt")


def test_what_torch_saves_is_sound(tmp_path):
    """In every form that there is of it, so that no guard refuses it."""
    state = {"bn1.bias": torch.arange(4.0), "half": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor(3)}
    state |= {"shared": state["bn1.bias"][1:], "none": torch.zeros(0), "parameter": torch.nn.Parameter(torch.ones(2))}
    model = build_model("resnet18", 2)
    for content in (
        {"model": state, "texts": ["ü", ""], "numbers": [1, -(2**40), 2.5, None, True]},
        model.state_dict(),
    ):
        for options in ({}, {"_use_new_zipfile_serialization": False}):
            (tmp_path / "w.pt").write_bytes(torch_saved(content, **options))
            assert repr(load_file(tmp_path / "w.pt")) == repr(dict(content))
            torch.save(content, tmp_path / "wörter.pt", **options)
            assert repr(load_file(tmp_path / "wörter.pt")) == repr(dict(content))


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
    with pytest.raises(
        UserError, match=r"w\.pt is no checkpoint, or a damaged one: it would unpack to 100\d\d\d\d\d bytes"
    ):
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


def test_what_checkpoints_have_beside_their_tensors_is_read(tmp_path):
    model = nn.Linear(2, 2)
    schedule = torch.optim.lr_scheduler.MultiStepLR(torch.optim.SGD(model.parameters(), 0.1), [30, 30, 60])
    beside = {"lr_scheduler": schedule.state_dict(), "losses": [0.5] * 400_000}
    beside |= {
        "devices": [torch.device("cpu"), torch.device("cuda", 1)],
        "size": torch.Size((2, 3)),
        "names": {"a", "b"},
        "bytes": b"\0\xff",
    }
    for version in (True, False):
        torch.save({"model": model.state_dict(), **beside}, tmp_path / "w.pt", _use_new_zipfile_serialization=version)
        content = load_file(tmp_path / "w.pt")
        assert torch.equal(content.pop("model")["weight"], model.weight)
        assert content == beside
