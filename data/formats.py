"""Which files are pictures, by their names and first bytes; what Pillow may read of them; what to do about the rest."""

from collections.abc import Callable
from contextlib import suppress

from PIL import Image

Image.init()
with suppress(ImportError):  # an extra
    from pi_heif import register_heif_opener

    register_heif_opener()

# Named, so that no file is handed to a plug-in that starts another program (EPS does), whatever its suffix says.
NAMES = {"JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "HEIF"}
FORMATS = sorted(NAMES & Image.OPEN.keys())
# Its header says nothing that other files could not say too: read only where the name says it.
UNMARKED = {".tga": "TGA"}

READABLE = (
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .avif .gif .bmp .dib .tif .tiff .ppm .pgm .pbm .pnm .pfm .jp2 .j2k "
    ".j2c .jpc .jpf .jpx .tga .heic .heif .heics .heifs .hif"
)
HEIC = 'is HEIC, as phones save it: pip install -e ".[heic]" makes it readable'
JXL, RAW = "is JPEG XL, which Pillow does not read: save it as PNG", "is a camera's raw file: save it as JPEG or TIFF"
UNKNOWN = "is damaged, or no picture of a kind that is read here: save it as PNG"
# Pictures to whoever has them, so that none is left out without a word.
UNREADABLE = {
    HEIC: ".heic .heif .heics .heifs .hif",
    JXL: ".jxl",
    RAW: ".dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .srw .orf .rw2 .raf .pef .x3f .3fr .iiq .erf .kdc .dcr .mrw "
    ".rwl .mos .mef .fff",
    "is DICOM: save it as PNG or TIFF, of 16 bits where it has as many": ".dcm .dicom",
    "is a microscope's own file: save it as TIFF": ".czi .nd2 .lif .lsm .svs .ndpi .mrxs .vsi .oib .oif",
    "is a drawing or a page, not pixels: save it as PNG": ".svg .svgz .eps .ai .wmf .emf",
    "is of a kind that is not read here: save it as PNG": ".psd .psb .xcf .kra .ico .icns .cur .pcx .dds .sgi .qoi "
    ".xpm .xbm .exr .hdr .fits .djvu .jxr .wdp .bpg",
}
REASONS = {suffix: reason for reason, suffixes in UNREADABLE.items() for suffix in suffixes.split()}
SUFFIXES = {*READABLE.split(), *REASONS}
# Nothing but their beginning tells what is inside: most are TIFFs, with a small preview as the first page.
NOT_BY_TIFF = {suffix for suffix in REASONS if REASONS[suffix] == RAW} | {".lsm", ".svs", ".ndpi"}
MAX_JPEG2000 = 50_000_000  # pixels
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SUBFILE_KIND, SUB_PAGES, DNG_VERSION = 254, 330, 50706


def suffix_of(name: str) -> str:
    return name[name.rfind(".") :].lower()


def is_picture(name: str) -> bool:
    """Return whether a file of this name is a picture to whoever has it, readable here or not."""
    return suffix_of(name) in SUFFIXES


def formats_of(name: str) -> list[str]:
    """Return what Pillow may take a file of this name for. Its content decides among these."""
    return [*FORMATS, *(form for suffix, form in UNMARKED.items() if suffix == suffix_of(name))]


def why_unreadable(name: str, head: bytes) -> str:
    """Say what to do about a file that is none of ``formats_of``, by its first bytes or its name."""
    if "HEIF" not in FORMATS and head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS:
        return HEIC
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return JXL
    reason = REASONS.get(suffix_of(name))
    if reason == HEIC and "HEIF" in FORMATS:  # damaged, or empty
        return UNKNOWN
    if not reason and head.startswith(TIFF_MARKS):
        return "is a TIFF of a kind that Pillow does not read: save it as grey or RGB of 8 or 16 bits"
    return reason or UNKNOWN


def check_kind(opened: Image.Image, name: str, read_head: Callable[[], bytes]) -> None:
    """Raise ValueError where Pillow would decode less than the picture: a small preview of it, or its upper bits."""
    tags = getattr(opened, "tag_v2", {})
    if opened.format == "TIFF" and suffix_of(name) in NOT_BY_TIFF:
        raise ValueError(REASONS[suffix_of(name)])
    if opened.format == "TIFF" and (DNG_VERSION in tags or (SUB_PAGES in tags and tags.get(SUBFILE_KIND) == 1)):
        raise ValueError(RAW)
    if opened.format == "JPEG2000":
        head = read_head()
        place = head.find(b"ihdr") + 14 if b"ihdr" in head else 42  # of a codestream without boxes
        if opened.mode != "I;16" and (head[place : place + 1] or b"\xff")[0] & 127 >= 8:
            raise ValueError("has colours of more than 8 bits in JPEG 2000: save it as PNG or TIFF of 16 bits")
        if opened.width * opened.height > MAX_JPEG2000:  # takes 16 bytes a pixel
            raise ValueError(f"has more than {MAX_JPEG2000 // 10**6} megapixels in JPEG 2000: save it as PNG or TIFF")
