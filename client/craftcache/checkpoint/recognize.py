"""The kind of a file that is no checkpoint, in words, with advice.

What stands in a checkpoint's place is seldom a damaged pickle, which is all that an unpickler can
say. It is a pointer of git-lfs, a login page, the first half of a download, another format. Both
the daemon, which inspects, and a worker, which loads its own files, look here first. Nothing here
imports torch.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

from craftcache.amounts import counted
from craftcache.errors import NotACheckpoint

from .descriptor import DescriptorFile

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Recognized", "recognize", "recognize_damage", "recognized"]

_HEAD_BYTES: Final = 4096
"""Bytes read at the beginning of a file, by which nearly all formats are recognized."""

_TAIL_BYTES: Final = 65_557
"""Bytes read at the end, where a zip archive has its directory: 22 and a comment at most."""

_MAX_NAMES: Final = 200_000
"""Records of a zip archive that are looked at."""

_SHOWN: Final = 60
"""Characters of a file that an error shows."""

_CHECKPOINTS: Final = (".bin", ".pt", ".pth", ".th")

_PUBLISHER: Final = "Ask its publisher for a file that torch.save wrote"
_DOWNLOAD: Final = "Download or copy it again, and compare its size with the original's"
_UNPACK: Final = "Unpack it, and name what was in it"
_PAGE: Final = (
    "Open the address in a browser: it may want a login or a licence to be accepted, or be the "
    "page that shows the file, not the file's own address"
)
_SAVE_AGAIN: Final = "Load it by what made it, and write it with torch.save"


class Recognized(NamedTuple):
    """What a file is.

    Attributes:
        message: In words that follow "it is".
        hint: Advice.
        is_all: Whether that is all there is to say; False where the loader's reason adds to it.
    """

    message: str
    hint: str
    is_all: bool = True

    def error(self, reason: str = "", *, source: str | None = None) -> NotACheckpoint:
        """What is raised where a checkpoint was wanted.

        Args:
            reason: Why it could not be read, as its loader says it.
            source: Named in the error.
        """
        more = f" ({reason})" if reason and not self.is_all else ""
        return NotACheckpoint(f"it is {self.message}{more}", source=source, hint=self.hint)


_MAGICS: Final[tuple[tuple[bytes, str, str], ...]] = (
    (b"\x1f\x8b", "compressed with gzip", _UNPACK),
    (b"BZh", "compressed with bzip2", _UNPACK),
    (b"\xfd7zXZ\x00", "compressed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", _UNPACK),
    (b'\x04"M\x18', "compressed with lz4", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"GGUF", "a GGUF file of llama.cpp and its kin", _PUBLISHER),
    (b"lmgg", "a GGML file of llama.cpp and its kin", _PUBLISHER),
    (b"tjgg", "a GGML file of llama.cpp and its kin", _PUBLISHER),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes its weights", _PUBLISHER),
    (b"\x93NUMPY", "a NumPy array", _SAVE_AGAIN),
    (b"PAR1", "a Parquet file", _PUBLISHER),
    (b"ARROW1", "an Arrow file", _PUBLISHER),
    (b"SQLite format 3\x00", "an SQLite database", _PUBLISHER),
    (b"\x7fELF", "a program or library", _PUBLISHER),
    (b"%PDF-", "a PDF document", _PUBLISHER),
    (b"\x89PNG\r\n\x1a\n", "a PNG image", _PUBLISHER),
    (b"\xff\xd8\xff", "a JPEG image", _PUBLISHER),
    (b"OggS", "an Ogg file", _PUBLISHER),
    (b"fLaC", "a FLAC file", _PUBLISHER),
    (b"ID3", "an MP3 file", _PUBLISHER),
)
"""Beginnings that no file of torch.save's has."""

_LFS: Final = re.compile(rb"\s*version https?://(?:git-lfs\.github\.com|hawser\.github\.com)/spec/")
_LFS_SIZE: Final = re.compile(rb"^size (\d{1,20})\s*$", re.MULTILINE)
_ANNEX: Final = re.compile(rb"/?(?:\.\./)*(?:\.git/)?/?annex/objects/\S+\s*$")
_DVC: Final = re.compile(rb"\s*(?:outs:|md5: )[\s\S]*\bmd5: [0-9a-f]{32}")
_LINK: Final = re.compile(rb"(?:\.\./)+blobs/[0-9a-f]{40,64}\s*$")
_MARKUP: Final = re.compile(
    rb"\s*(?:<\?xml\b[^>]*>\s*)?(?:<!--.{0,2000}?-->\s*)*"
    rb"<(?:!doctype\s+html|html|head|body|meta|script|title)\b",
    re.IGNORECASE | re.DOTALL,
)
_XML: Final = re.compile(rb"\s*<(?:\?xml\b|Error>)")
_TITLE: Final = re.compile(rb"<title[^>]*>([^<]{1,200})<", re.IGNORECASE)
_XML_ERROR: Final = re.compile(rb"<(?:Code|Message)>([^<]{1,200})<")
_BOM: Final = b"\xef\xbb\xbf"

_ZIP: Final = b"PK\x03\x04"
_ZIP_END: Final = b"PK\x05\x06"
_EMPTY_ZIP_BYTES: Final = 22
_PICKLE: Final = re.compile(rb"\x80[\x02-\x05]")
_LEGACY: Final = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The number that torch.save began its files with before 1.6, after the pickle's own beginning."""


def recognize(file: BinaryIO) -> Recognized | None:
    """What a file is by its beginning, where that is nothing that torch.save writes.

    Args:
        file: Seekable; its position is moved.

    Returns:
        None where it may be a checkpoint.
    """
    head, size = _head(file)
    if not size:
        return Recognized("empty", _DOWNLOAD)
    if not head.strip(b"\x00"):
        return Recognized(
            f"{counted(size, 'byte')} of which the first {len(head)} are zero: a download or copy "
            "that was interrupted, or one that a crash of the machine undid",
            _DOWNLOAD,
        )
    for mark, message, hint in _MAGICS:
        if head.startswith(mark):
            return Recognized(message, hint)
    if head[257:262] == b"ustar" and not (_may_be_saved(head) or _is_old_tar(file)):
        return Recognized("a tar archive", _UNPACK)
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return Recognized("a WAVE file", _PUBLISHER)
    return _pointer(head) or _document(head) or _safetensors(head, size)


@contextlib.contextmanager
def recognized(fd: int) -> Iterator[None]:
    """While it is entered, the file behind ``fd`` is read; if it is no checkpoint, errors say what.

    Raises:
        NotACheckpoint: It is something else, or it was raised while inside; then with what the file
            itself shows of why, beside the reason that was given.
    """
    file = io.BufferedReader(DescriptorFile(fd))
    if other := recognize(file):
        raise other.error()
    try:
        yield
    except NotACheckpoint as error:
        try:
            damage = recognize_damage(file)
        except MemoryError:  # another reader of zip archives takes more than ours
            raise error from None
        told = damage.error(error.message)
        if error.hint and not damage.is_all:
            told.hint = error.hint
        raise told from error


def recognize_damage(file: BinaryIO) -> Recognized:
    """What is wrong with a file that could not be loaded, as far as the file itself shows it.

    Args:
        file: Seekable; its position is moved.
    """
    head, size = _head(file)
    if recognized := recognize(file):
        return recognized
    if head.startswith((_ZIP, _ZIP_END)):
        return _archive(file, size)
    if _ZIP_END in _tail(file, size):
        return Recognized(
            "a zip archive that lacks its beginning, or has something before it", _DOWNLOAD
        )
    if _PICKLE.match(head):
        if _LEGACY not in head[:32]:
            return Recognized("a pickle that torch.save did not write", _SAVE_AGAIN, is_all=False)
        message = "a file of torch.save's old format, truncated or damaged"
        return Recognized(message, _DOWNLOAD, is_all=False)
    if _is_text(head):
        return Recognized(f"text, beginning with {_shown(head)}", _PUBLISHER)
    return Recognized(
        f"in no format of torch.save's: it begins with {head[:8].hex(' ')}", _PUBLISHER
    )


def _may_be_saved(head: bytes) -> bool:
    """Whether it begins as torch.save's files do: what they hold may then look like anything."""
    return head.startswith(_ZIP) or _PICKLE.match(head) is not None


def _head(file: BinaryIO) -> tuple[bytes, int]:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return file.read(_HEAD_BYTES), size


def _tail(file: BinaryIO, size: int) -> bytes:
    file.seek(max(0, size - _TAIL_BYTES))
    return file.read(_TAIL_BYTES)


def _pointer(head: bytes) -> Recognized | None:
    """What stands for a file that another program keeps elsewhere."""
    if _LFS.match(head):
        size = _LFS_SIZE.search(head)
        of = f" to a file of {counted(int(size[1]), 'byte')}" if size else ""
        return Recognized(
            f"a git-lfs pointer{of}, not the file itself",
            "Run `git lfs install` and `git lfs pull` in the clone, or download the file by itself",
        )
    if _ANNEX.match(head):
        return Recognized(
            "a git-annex pointer, not the file itself", "Run `git annex get` in the clone"
        )
    if _DVC.match(head):
        return Recognized("a DVC pointer, not the file itself", "Run `dvc pull` in the clone")
    if head.startswith(b"# xet version"):
        return Recognized(
            "a git-xet pointer, not the file itself", "Download the file by huggingface_hub"
        )
    if _LINK.match(head):
        return Recognized(
            f"the text of a link, {_shown(head)}, not what it leads to",
            "Copy the cache with its links: cp -a, rsync -a",
        )
    return None


def _document(head: bytes) -> Recognized | None:
    """What a server says in place of a file."""
    text = head.removeprefix(_BOM)
    if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = text.replace(b"\x00", b"")[2:]
    if _MARKUP.match(text):
        title = _TITLE.search(text)
        return Recognized(f"an HTML page{_titled(title[1]) if title else ''}", _PAGE)
    if _XML.match(text):
        said = _XML_ERROR.findall(text)
        return Recognized(
            f"an XML document{_titled(b': '.join(said)) if said else ''}",
            "A store says so where an address is wrong, has expired or may not be read; check it",
        )
    if text.lstrip()[:1] in (b"{", b"[") and (is_json := _is_json(text)) is not None:
        whole = "" if is_json else ", or its beginning,"
        return Recognized(f"a JSON document{whole} beginning with {_shown(text)}", _PAGE)
    return None


def _is_json(text: bytes) -> bool | None:
    """Whether it is JSON; None where it is not, False where that cannot be told of its beginning.

    A dict or a list in JSON begins with characters that no pickle of torch.save's begins with.
    """
    if not _is_text(text):
        return None
    try:
        json.loads(text)
    except ValueError:
        return False if re.match(rb"\s*[\[{]\s*[\"{\[\]}\d]", text) else None
    return True


def _safetensors(head: bytes, size: int) -> Recognized | None:
    length = int.from_bytes(head[:8], "little")
    if not 2 <= length <= 100_000_000 or head[8:9] != b"{" or head[9:10] not in (b'"', b"}", b" "):
        return None
    cut = ", and it is truncated" if 8 + length > size else ""
    return Recognized(
        f"a safetensors file{cut}, which AudioCraft does not read",
        "Load it with safetensors.torch.load_file and write an export: craftcache export make",
    )


def _is_old_tar(file: BinaryIO) -> bool:
    """Whether a tar archive is what torch.save wrote before 0.1.10."""
    file.seek(0)
    return any(name in (b"sys_info", b"./sys_info") for name in _tar_names(file))


def _tar_names(file: BinaryIO) -> Iterator[bytes]:
    """The names of the first few members."""
    at = 0
    for _ in range(8):
        file.seek(at)
        header = file.read(512)
        if len(header) < 512 or not header[0]:
            return
        yield header[:100].rstrip(b"\x00")
        digits = header[124:136].strip(b"\x00 ")
        nbytes = int(digits, 8) if re.fullmatch(rb"[0-7]+", digits) else 0
        at += 512 + -(-nbytes // 512) * 512


def _archive(file: BinaryIO, size: int) -> Recognized:
    """The damage of a zip archive, in words."""
    if _ZIP_END not in _tail(file, size):
        return Recognized(
            f"a truncated zip archive: its {counted(size, 'byte')} are only the beginning of it",
            _DOWNLOAD,
        )
    if size == _EMPTY_ZIP_BYTES:
        return Recognized("an empty zip archive", _DOWNLOAD)
    names = _zip_names(file)
    if names is None:
        return Recognized("a damaged zip archive", _DOWNLOAD, is_all=False)
    bases = {name.rpartition("/")[2] for name in names}
    if "data.pkl" in bases:
        message = "an archive of torch.save's, but what it holds cannot be read"
        return Recognized(message, _DOWNLOAD, is_all=False)
    shown = ", ".join(repr(name[:_SHOWN]) for name in names[:3])
    if inner := next((name for name in names if name.endswith(_CHECKPOINTS)), None):
        return Recognized(f"a zip archive that holds {inner[:_SHOWN]!r}", _UNPACK)
    if bases and all(name.endswith(".npy") for name in names):
        return Recognized("NumPy's .npz, an archive of arrays", _SAVE_AGAIN)
    return Recognized(
        f"a zip archive, but not torch.save's: it has no data.pkl, but {shown}", _PUBLISHER
    )


def _zip_names(file: BinaryIO) -> list[str] | None:
    """The names of a zip archive's records; None where it is damaged."""
    import zipfile  # slow to import, and seldom wanted
    import zlib

    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            return [entry.filename for entry in archive.infolist()[:_MAX_NAMES]]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, zlib.error):
        return None


def _is_text(head: bytes) -> bool:
    """Whether it reads as text, in any encoding with ASCII in it."""
    control = sum(byte < 32 and byte not in b"\t\n\r\f" for byte in head)
    return not control


def _shown(text: bytes) -> str:
    line = text.strip().split(b"\n", 1)[0].decode("utf-8", "replace").strip()
    return repr(line if len(line) <= _SHOWN else line[:_SHOWN] + "...")


def _titled(title: bytes) -> str:
    return f" with the title {' '.join(title.decode('utf-8', 'replace').split())[:_SHOWN]!r}"
