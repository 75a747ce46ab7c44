"""A look at a file of weights before it is loaded, so that it takes no more memory than it has bytes.

torch.load runs no code of a file, but it believes its numbers: a few bytes can make tensors of gigabytes, a second name
of a record makes a second copy of it, and two readers can see two archives in one file. What torch.save writes does
none of this. Sources: PKWARE's APPNOTE.TXT on zip, Python's pickletools, and torch/serialization.py.
"""

import io
import pickle
import pickletools
import struct
import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

from plumage.errors import UserError

MOST_BYTES = 1_100_000_000  # a ResNet-152 with its average and the two moments of Adam has 963 million
BYTES_PER_CLASS = 4 * 2048 * 4  # the same of a head: floats, features, times
MOST_BESIDE = 32_000_000  # bytes of what is no tensor, such as class names
MOST_OPERATIONS = 1_000_000  # of a pickle: a ResNet-152 has 70,000, a class name 2; each makes up to 230 bytes
MOST_DIRECTORY = 8_000_000  # bytes of a zip archive's list of records, or of the header of safetensors
MOST_DIMENSIONS = 64

Records = dict[bytes, tuple[int, int]]

LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # what torch.save began with before version 1.6
RECORD, LOCAL, END = struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s5H3I2H"), struct.Struct("<4s4H2IH")
LOCATOR, END64 = struct.Struct("<4sIQI"), struct.Struct("<4sQ2H2I4Q")
SIZES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "ComplexDouble": 16, "ComplexFloat": 8}
SIZES |= {"Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1}
TYPES = {"float64", "float32", "float16", "bfloat16", "complex128", "complex64"}
TYPES |= {"int64", "int32", "int16", "int8", "uint8", "bool"}
NAMES = {"collections.OrderedDict", *(f"torch.{name}Storage" for name in SIZES), *(f"torch.{name}" for name in TYPES)}
NAMES |= {f"torch._utils._rebuild_{kind}" for kind in ("tensor_v2", "parameter", "meta_tensor_no_storage")}
# What checkpoints have beside tensors: a schedule's milestones, sizes and devices, bytes.
NAMES |= {"collections.Counter", "torch.Size", "torch.device", "__builtin__.set", "_codecs.encode"}
# As pickletools names them.
OPERATIONS = {"PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1"}
OPERATIONS |= {"BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE", "TUPLE"}
OPERATIONS |= {"TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "GLOBAL", "REDUCE", "BUILD"}
OPERATIONS |= {"BINPERSID", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"}


def check_file(path: Path, classes: int = 0) -> None:
    """Raise UserError where it is no file, or too large; and other errors where it is not as its writer makes it.

    classes: how many the network is known to have.
    """
    if not path.is_file():  # nor anything that could be waited for
        raise UserError(f"{path} does not exist, or is no file")
    size, most = path.stat().st_size, MOST_BYTES + classes * BYTES_PER_CLASS
    if size > most:
        way_out = "save its weights alone, torch.save(model.state_dict(), FILE)"
        raise UserError(f"{path} is no checkpoint: it has {size:,} bytes, and the limit is {most:,}; {way_out}")
    with path.open("rb") as file:
        start = file.read(512)
        if path.suffix == ".safetensors":
            if int.from_bytes(start[:8], "little") > MOST_DIRECTORY:
                raise ValueError("its header is too long")
        elif start.startswith(b"PK\3\4"):
            archive, records = read_directory(file, size)
            _look(io.BytesIO(_read_record(file, *records[archive + b"data.pkl"])), archive, records)
        elif start.startswith(LEGACY) and not _is_tar(start):
            stream = io.BytesIO(start + file.read(MOST_BESIDE))
            # A number, a version, the machine, the content, and which of its storages follow.
            if sum(_look(stream) for _ in range(5)) > size:
                raise ValueError("its tensors are larger than the file")
        else:
            raise ValueError("it is not what torch.save writes")


def read_directory(file: IO[bytes], size: int) -> tuple[bytes, Records]:
    """Return the folder of a zip archive, and each record's place and size by its name, both in small letters.

    torch tells capitals from small letters no more than this does. Raises ValueError, or struct.error, where some
    reader could see another archive, or one that unpacks to more than its bytes.
    """
    file.seek(max(size - END64.size - LOCATOR.size - END.size, 0))
    tail = file.read()
    signature, *_, count, length, start, comment = END.unpack(tail[-END.size :])
    end = size - END.size
    if tail[-END.size - LOCATOR.size :].startswith(b"PK\6\7"):
        end -= LOCATOR.size + END64.size
        _, _, place, _ = LOCATOR.unpack(tail[-END.size - LOCATOR.size : -END.size])
        signature64, *_, count64, length64, start64 = END64.unpack(tail[: END64.size])
        if (signature64, place, count64, length64, start64) != (b"PK\6\6", end, count, length, start):
            raise ValueError("its zip archive ends twice")
    if signature != b"PK\5\6" or comment or start + length != end or length > MOST_DIRECTORY:
        raise ValueError("its zip archive does not end as torch.save ends one")
    file.seek(start)
    directory = io.BytesIO(file.read(length))
    archive, records, unpacked, odd = b"", Records(), 0, False
    for _ in range(count):
        about = RECORD.unpack(directory.read(RECORD.size))
        signature, flags, method, packed, bytes_, name_length, place = (about[i] for i in (0, 3, 4, 8, 9, 10, 16))
        name = directory.read(name_length).lower()
        directory.seek(about[11] + about[12], io.SEEK_CUR)
        archive = archive or name.partition(b"/")[0] + b"/"
        beside = not name.startswith(archive + b"data/")
        if signature != b"PK\1\2" or name in records or b"\0" in name:
            raise ValueError(f"it has {name[:50]!r} twice")
        records[name] = place, bytes_
        unpacked += bytes_
        odd |= bool(method or flags & 1) or packed != bytes_ or (beside and bytes_ > MOST_BESIDE)
    if odd or directory.read(1) or unpacked > size:
        raise ValueError(f"it would unpack to {unpacked} bytes; save it with torch.save")
    return archive, records


def _read_record(file: IO[bytes], place: int, size: int) -> bytes:
    file.seek(place)
    *_, name_length, extra_length = LOCAL.unpack(file.read(LOCAL.size))
    file.seek(name_length + extra_length, io.SEEK_CUR)
    return file.read(size)


def _is_tar(start: bytes) -> bool:
    """Return whether torch would take it for an archive of version 0.1.1, with readers of its own."""
    try:
        tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _look(stream: io.BytesIO, archive: bytes = b"", records: Records | None = None) -> int:
    """Go through a pickle as torch will. Return how many bytes its tensors claim; raise where it is no plain one."""
    start = stream.tell()
    for number, (operation, argument, _) in enumerate(pickletools.genops(stream)):
        if operation.name not in OPERATIONS:
            raise pickle.UnpicklingError(f"its pickle has the operation {operation.name}")
        if number > MOST_OPERATIONS or (operation.name == "LONG_BINPUT" and int(argument or 0) > MOST_OPERATIONS):
            raise ValueError(f"its pickle has more than {MOST_OPERATIONS:,} operations")
    stream.seek(start)
    look = _Look(stream, archive, records)
    look.load()
    return sum(look.storages.values())


class _Storage:
    __slots__ = ()


class _Tensor:
    __slots__ = ()


class _Ordered(OrderedDict[Any, Any]):
    def __setstate__(self, attributes: Any) -> None:
        """A state dict has one, its ``_metadata``. They are copied, which a few bytes can ask for again and again."""
        if len(attributes) > 1:
            raise ValueError("an OrderedDict has many attributes")


def _device(kind: str, number: int = 0) -> str:
    return kind


class _Look(pickle.Unpickler):
    """Makes stand-ins of all that torch would make, and checks what they are made of."""

    def __init__(self, stream: io.BytesIO, archive: bytes, records: Records | None):
        super().__init__(stream, encoding="latin-1")
        self.archive, self.records = archive, records
        self.storages: dict[str, int] = {}
        self.copied = 0

    def find_class(self, module: str, name: str) -> Any:
        makers: dict[str, Any] = dict.fromkeys(("Counter", "Size", "set"), self.copy)
        makers |= {"OrderedDict": self.ordered, "device": _device, "encode": self.encode}
        makers |= {"_rebuild_tensor_v2": self.tensor, "_rebuild_parameter": self.parameter}
        makers["_rebuild_meta_tensor_no_storage"] = self.without_storage
        if f"{module}.{name}" not in NAMES:
            raise pickle.UnpicklingError(f"its pickle names {module[:40]}.{name[:40]}")
        return makers.get(name, name)

    def persistent_load(self, claim: Any) -> _Storage:
        """Check a storage: it lies in a record of its own, and is as long as that."""
        word, kind, key, _, count, *view = claim
        if (word, type(key), type(count), view) not in [("storage", str, int, []), ("storage", str, int, [None])]:
            raise ValueError("a tensor has no storage")
        if not (key.isascii() and key.isdecimal()) or count < 0:
            raise ValueError(f"a tensor lies in {key[:50]!r}")
        self.storages[key] = count * SIZES[kind.removesuffix("Storage")]
        if self.records is not None and self.records[self.archive + b"data/" + key.encode()][1] != self.storages[key]:
            raise ValueError(f"the tensor in {key[:50]} is not as long as it says")
        return _Storage()

    def tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, *about: Any) -> _Tensor:
        if type(storage) is not _Storage:
            raise ValueError("a tensor has no storage")
        return self.without_storage(None, shape, stride)

    def without_storage(self, kind: Any, *places: Any) -> _Tensor:
        if any(type(place) is not tuple or len(place) > MOST_DIMENSIONS for place in places[:2]):
            raise ValueError("a tensor has no shape")
        return _Tensor()

    def parameter(self, tensor: Any, *about: Any) -> _Tensor:
        if type(tensor) is not _Tensor:
            raise ValueError("a parameter is not made of a tensor")
        return _Tensor()

    def ordered(self, entries: Any = ()) -> _Ordered:
        """Take what it is made of, as Python 2 wrote it; which is copied too."""
        return _Ordered(self.copy(entries))

    def encode(self, text: Any, codec: Any) -> bytes:
        """Make bytes as Python 3 writes them for protocol 2: of other codecs, some make more than they take."""
        if type(text) is not str or codec != "latin1":
            raise ValueError("a text is encoded otherwise")
        return self.copy(text).encode(codec)

    def copy(self, content: Any = ()) -> Any:
        self.copied += len(content)
        if self.copied > MOST_OPERATIONS:
            raise ValueError("its pickle copies more than it holds")
        return content
