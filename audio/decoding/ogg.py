"""The links of an Ogg file: streams that follow one another, each with its own header, rate and channels."""

from dataclasses import dataclass, field

from .sections import Range, Window

_PAGE = b"OggS"
_HEADER_BYTES = 27
_BEGIN, _END = 2, 4
_CODECS = {b"\x01vorbis": "Vorbis", b"OpusHead": "Opus", b"\x7fFLAC": "FLAC", b"Speex   ": "Speex"}
_NO_SOUND = (bytes(8), b"\xff" * 8)
_MAX_HEADER_BYTES = 1 << 25
_MAX_RANGES = 100_000


@dataclass
class OggLink:
    """The first audio stream of a link: its pages, what it was encoded with, and whether its last page says so."""

    codec: str
    ranges: list[Range] = field(default_factory=list)
    ended: bool = False
    header_bytes: int = 0
    sounding: bool = False  # a page that ends with sound was met


def ogg_links(window: Window, start: int) -> list[OggLink]:
    """Return the links of the Ogg file that begins at `start`; those without audio are left out.

    Raises ValueError if a page is damaged, more stretches of a stream lie between others than can be kept in memory,
    or its header, which libsndfile takes in whole, is too large.
    """
    links: list[OggLink] = []
    link, serial, position, opening = OggLink(""), b"", start, False
    while position < window.end:
        header = window.at(position, _HEADER_BYTES + 255)
        if header[:4] != _PAGE or len(header) < _HEADER_BYTES:
            position = _next_page(window, position + 1)
            continue
        lengths = header[_HEADER_BYTES : _HEADER_BYTES + header[26]]
        body = position + _HEADER_BYTES + header[26]
        behind = body + sum(lengths)
        inside = min(behind, window.end)
        if inside != behind or window.at(behind, 4) != _PAGE:
            _check_body(window, position + 1, inside)
        if len(lengths) < header[26] or behind > window.end:
            break
        flags, page_serial = header[5], header[14:18]
        if flags & _BEGIN:
            if not opening:
                link, serial = OggLink(""), b""
            opening = True
            codec = next((name for mark, name in _CODECS.items() if window.at(body, 8).startswith(mark)), None)
            if codec is not None and not link.codec:
                link, serial = OggLink(codec), page_serial
                links.append(link)
        else:
            opening = False
        if link.codec and page_serial == serial:
            _append(link.ranges, position, behind)
            _measure_header(link, header[6:14], behind - position)
            link.ended = link.ended or bool(flags & _END)
        position = behind
    return links


def _check_body(window: Window, start: int, end: int) -> None:
    """Raise ValueError if another page begins inside one that no page follows."""
    if _next_page(window, start) < end:
        raise ValueError("a page that is cut off or damaged")


def _measure_header(link: OggLink, granule: bytes, page_bytes: int) -> None:
    link.sounding = link.sounding or granule not in _NO_SOUND
    link.header_bytes += 0 if link.sounding else page_bytes
    if link.header_bytes > _MAX_HEADER_BYTES:
        raise ValueError(f"more than {_MAX_HEADER_BYTES >> 20} MiB before the first sound, such as a picture")


def _append(ranges: list[Range], start: int, end: int) -> None:
    if ranges and ranges[-1][1] == start:
        ranges[-1] = (ranges[-1][0], end)
    elif len(ranges) == _MAX_RANGES:
        raise ValueError(f"more than {_MAX_RANGES} stretches of pages")
    else:
        ranges.append((start, end))


def _next_page(window: Window, position: int) -> int:
    while piece := window.piece(position):
        if (found := piece.find(_PAGE)) >= 0:
            return position + found
        position += max(1, len(piece) - len(_PAGE) + 1)
    return window.end
