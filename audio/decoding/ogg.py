"""The links of a chained Ogg file: successive streams, each with its own header, rate and channels."""

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
    """The first audio stream of a link: its codec, its pages, and whether its last page was found."""

    codec: str
    ranges: list[Range] = field(default_factory=list)
    ended: bool = False
    header_bytes: int = 0
    sounding: bool = False  # whether a page with sound was found


def ogg_links(window: Window, start: int) -> list[OggLink]:
    """Return the links with audio of the Ogg file that begins at `start`.

    Raises ValueError if a page is damaged, the pages of a stream are split into too many ranges, or a header, which
    libsndfile reads as a whole, is too large.
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
        end = body + sum(lengths)
        inside = min(end, window.end)
        followed = inside == end and window.at(end, 4) == _PAGE
        if not followed and _next_page(window, position + 1) < inside:  # another page begins inside this one
            raise ValueError("a truncated or damaged page")
        if len(lengths) < header[26] or end > window.end:
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
            _append(link.ranges, position, end)
            _measure_header(link, header[6:14], end - position)
            link.ended = link.ended or bool(flags & _END)
        position = end
    return links


def _measure_header(link: OggLink, granule: bytes, page_bytes: int) -> None:
    link.sounding = link.sounding or granule not in _NO_SOUND
    link.header_bytes += 0 if link.sounding else page_bytes
    if link.header_bytes > _MAX_HEADER_BYTES:
        raise ValueError(f"more than {_MAX_HEADER_BYTES >> 20} MiB before the first sound, such as a picture")


def _append(ranges: list[Range], start: int, end: int) -> None:
    if ranges and ranges[-1][1] == start:
        ranges[-1] = (ranges[-1][0], end)
    elif len(ranges) == _MAX_RANGES:
        raise ValueError(f"more than {_MAX_RANGES} ranges of pages")
    else:
        ranges.append((start, end))


def _next_page(window: Window, position: int) -> int:
    while piece := window.piece(position):
        if (found := piece.find(_PAGE)) >= 0:
            return position + found
        position += max(1, len(piece) - len(_PAGE) + 1)
    return window.end
