"""What the pixels of a PNG or a JPEG need of its file: metadata is left out before a decoder meets it.

Pillow refuses a sound image for its metadata: text of over a megabyte, a profile that is short, a wrong checksum of
what no pixel depends on. Here metadata is passed over by its length, so that its size costs nothing and what it would
inflate to never exists. Kept are transparency and what tells the orientation.
"""

import re
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, count
from typing import BinaryIO

MAX_METADATA = 2**20  # bytes of EXIF or XMP, inflated, in which an orientation is looked for
MAX_CHUNKS = 2**20  # of a PNG, or segments of a JPEG; more are no image, and take seconds to pass over
PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
JPEG2000 = b"\xff\x4f\xff\x51"  # of its codestream, which a JP2 has in a box
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"  # how an APP1 of either begins
_APP0, _APP1, _APP14, _END, _SCAN = b"\xe0", b"\xe1", b"\xee", b"\xd9", b"\xda"  # markers of JPEG
_METADATA = {bytes([kind]) for kind in (*range(0xE0, 0xF0), 0xFE)}  # APP0 to APP15, and comments
_FRAMES = {bytes([kind]) for kind in range(0xC0, 0xD0)} - {b"\xc4", b"\xc8", b"\xcc"}  # what has sides and colours
_SEGMENTS = {bytes([kind]) for kind in (*range(0xC0, 0xD0), *range(0xDA, 0xF0), 0xFE)}
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # those with a length, and the end


class Parts:
    """Parts of a file, read as one.

    Args:
        file: open for reading.
        spans: (start, stop) of each part, in bytes.
    """

    def __init__(self, file: BinaryIO, spans: Sequence[tuple[int, int]]) -> None:
        self._file, self._spans, self._place = file, spans, 0
        self._ends = list(accumulate(stop - start for start, stop in spans))

    def read(self, size: int = -1) -> bytes:
        """Return the next `size` bytes, or as many as there are."""
        left, found = (self._ends[-1] if size is None or size < 0 else size), []
        for number in range(bisect_right(self._ends, self._place), len(self._spans)):
            self._file.seek(self._spans[number][1] - self._ends[number] + self._place)
            found.append(self._file.read(min(left, self._ends[number] - self._place)))
            self._place += len(found[-1])
            left -= len(found[-1])
            if not left or self._place < self._ends[number]:
                break
        return b"".join(found)

    def seek(self, place: int, whence: int = 0) -> int:
        """Go to a place, and return it."""
        self._place = max(place + (0, self._place, self._ends[-1])[whence], 0)
        return self._place

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._place

    def close(self) -> None:
        """Do nothing: whoever opened the file closes it."""


def png(file: BinaryIO, size: int) -> tuple[Parts, bytes, str]:
    """Return the chunks of a PNG that its pixels need, its EXIF, and its XMP.

    As libpng does, transparency and EXIF whose checksum is wrong are passed over. Those of the pixels are for the
    decoder to judge: of IHDR and PLTE it is the chunk's, of IDAT that of zlib, which covers all pixels.

    Args:
        size: of the file, in bytes.

    Raises:
        ValueError: more chunks than any image has.
    """
    spans, exif, xmp = [(0, len(PNG))], b"", ""
    file.seek(len(PNG) + 17)
    length = {b"\0": (2,), b"\2": (6,)}.get(file.read(1), range(1, 257))  # of tRNS, by what IHDR says of the colours
    for number, (kind, start, stop) in enumerate(_chunks(file, size)):
        if number > MAX_CHUNKS:
            raise ValueError(f"a PNG of more than {MAX_CHUNKS} chunks")
        if not kind[0] & 0x20 or kind == b"tRNS" and len(_content(file, start, stop)) in length:
            _add(spans, start, stop)
        elif kind == b"eXIf" and not exif:
            exif = _EXIF + _content(file, start, stop)
        elif kind in (b"tEXt", b"zTXt", b"iTXt") and not (exif and xmp):
            key, text = _text(kind, _content(file, start, stop))
            if key == b"XML:com.adobe.xmp":
                xmp = xmp or text.decode(errors="replace")
            elif key == b"Raw profile type exif":
                exif = exif or _from_hex(b"".join(text.split(b"\n")[3:]))
    return Parts(file, spans), exif, xmp


def _add(spans: list[tuple[int, int]], start: int, stop: int) -> None:
    if spans[-1][1] == start:
        spans[-1] = spans[-1][0], stop
    else:
        spans.append((start, stop))


def _chunks(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, start, stop) of the chunks of a PNG; what is none is the last one, up to the end of the file."""
    start = len(PNG)
    while start < size:
        file.seek(start)
        head = file.read(8)
        kind = head[4:]
        if len(kind) < 4 or not kind.isalpha() or kind == b"IEND":
            yield b"IEND", start, size
            return
        stop = start + 12 + int.from_bytes(head[:4], "big")
        yield kind, start, min(stop, size)
        start = stop


def _content(file: BinaryIO, start: int, stop: int) -> bytes:
    """Return what is in a chunk; nothing, if it is long or its checksum wrong."""
    if stop - start > MAX_METADATA:
        return b""
    file.seek(start + 4)
    data = file.read(stop - start - 8)
    file.seek(stop - 4)
    return data[4:] if zlib.crc32(data) == int.from_bytes(file.read(4), "big") else b""


def _text(kind: bytes, content: bytes) -> tuple[bytes, bytes]:
    """Return key and text of a chunk; no text where it is broken or long."""
    key, _, text = content.partition(b"\0")
    if key not in (b"XML:com.adobe.xmp", b"Raw profile type exif"):
        return key, b""
    zipped = kind == b"zTXt" or kind == b"iTXt" and text[:1] == b"\1"
    text = text[1:] if kind == b"zTXt" else text[2:].split(b"\0", 2)[-1] if kind == b"iTXt" else text
    try:
        return key, zlib.decompressobj().decompress(text, MAX_METADATA) if zipped else text
    except zlib.error:
        return key, b""


def _from_hex(text: bytes) -> bytes:
    try:
        return bytes.fromhex(text.decode("ascii"))
    except ValueError:
        return b""


def jpeg(file: BinaryIO, size: int) -> tuple[Parts, bool]:
    """Return what a JPEG's pixels need, and whether its first scan has all of its colours.

    Of metadata, kept are JFIF's and Adobe's segments where they are whole, as they say what the colours are, and EXIF
    and XMP, up to a megabyte.

    Args:
        size: of the file, in bytes.

    Raises:
        ValueError: more segments than any image has.
    """
    spans, start, colours, whole, left = [(0, 2)], 2, b"", True, MAX_METADATA
    for number in count():
        if number > MAX_CHUNKS:
            raise ValueError(f"a JPEG of more than {MAX_CHUNKS} segments")
        file.seek(start)
        head = file.read(4)
        if head.startswith(b"\xff\xff"):
            start = _past_fill(file, start)
            continue
        kind, length = head[1:2], int.from_bytes(head[2:], "big")
        if head[:1] != b"\xff" or length < 2 or kind not in _SEGMENTS:  # the decoder will judge
            break
        if kind == _SCAN:
            whole = file.read(1) == colours
            break
        if kind in _FRAMES:
            colours = file.read(6)[5:]
        stop = min(start + 2 + length, size)
        left -= length * (kind == _APP1)
        if kind not in _METADATA or _telling(kind, file.read(29), length) and (kind != _APP1 or left >= 0):
            _add(spans, start, stop)
        start = stop
    _add(spans, start, size)
    return Parts(file, spans), whole


def _past_fill(file: BinaryIO, start: int) -> int:
    """Return the place of the last of a run of 0xFF, any number of which may come before a marker."""
    file.seek(start)
    size = 64
    while block := file.read(size):
        if rest := block.lstrip(b"\xff"):
            return start + len(block) - len(rest) - 1
        start, size = start + len(block), min(2 * size, 2**16)
    return start


def _telling(kind: bytes, begin: bytes, length: int) -> bool:
    """Whether a segment says something of the pixels, and is whole by libjpeg's measure."""
    return (kind == _APP0 and begin.startswith(b"JFIF\0") and length >= 16
            or kind == _APP14 and begin.startswith(b"Adobe") and length >= 14
            or kind == _APP1 and begin.startswith((_EXIF, _XMP)))


def scans(data: bytes) -> int:
    """Count the scans of a JPEG up to its end; a film or a second image may follow."""
    place = number = 0
    while found := _MARKER.search(data, place):
        kind, place = found[0][1:], found.end()
        if kind == _END:
            break
        number += kind == _SCAN
        place += max(int.from_bytes(data[place:place + 2], "big"), 2)
    return number


def codestream(file: BinaryIO, size: int) -> tuple[int, int]:
    """Return (start, stop) of what a JPEG 2000 file decodes, in bytes.

    Pillow fetches a box of any length at once, so all before it must lie within the file.

    Args:
        size: of the file, in bytes.

    Raises:
        ValueError: there is none, or a box goes past the end of the file.
    """
    place = 0
    for _ in range(100):  # usual are five boxes
        file.seek(place)
        head = file.read(16)
        if head.startswith(JPEG2000):
            return place, size
        length, start = int.from_bytes(head[:4], "big"), 8
        if length == 1:
            length, start = int.from_bytes(head[8:], "big"), 16
        stop = place + length if length else size
        if len(head) < 8 or stop < place + start or stop > size:
            raise ValueError("a JPEG 2000 with a box past its end")
        if head[4:8] == b"jp2c":
            return place + start, stop
        place = stop
    raise ValueError("a JPEG 2000 without a codestream")
