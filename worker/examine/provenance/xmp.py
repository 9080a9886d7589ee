"""The few XMP properties that say where an image comes from (ISO 16684-1), by a parser that hostile XML cannot hurt.

No document type, so neither entities nor anything from elsewhere; depth and number of elements are bounded. A property
counts where it stands: as an attribute, as an element with text, or as an element that names a resource.
"""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree.ElementTree import ParseError  # nosec - the exception alone

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

MAX_DEPTH = 48
MAX_ELEMENTS = 20_000
MAX_TEXT_CHARS = 1 << 18

_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_TC260 = "http://www.tc260.org.cn/ns/AIGC/1.0/"
_NAMES = {
    f"{{{_IPTC}}}DigitalSourceType": "source_type",
    f"{{{_IPTC}}}DigitalSourcefileType": "source_type",  # its name until 2010
    f"{{{_TC260}}}AIGC": "aigc",
    "{http://ns.adobe.com/xap/1.0/}CreatorTool": "creator_tool",
    "{http://ns.adobe.com/photoshop/1.0/}Credit": "credit",
    "{http://purl.org/dc/elements/1.1/}description": "description",
    "{http://ns.adobe.com/exif/1.0/}UserComment": "user_comment",
    "{http://ns.adobe.com/tiff/1.0/}Software": "software",
}
_RESOURCE = f"{{{_RDF}}}resource"


class _TooMuch(Exception):
    """Deeper or longer than any real packet."""


class _Collector:
    """What the parser calls: keeps the text of the wanted properties, first value first, and builds no tree."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self._open: list[str | None] = []  # per open element: the property it is, or is inside of
        self._elements = 0
        self._chars = 0

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self._elements += 1
        if len(self._open) >= MAX_DEPTH or self._elements > MAX_ELEMENTS:
            raise _TooMuch
        name = _NAMES.get(tag) or (self._open[-1] if self._open else None)
        self._open.append(name)
        for key, value in attributes.items():
            wanted = _NAMES.get(key) or (name if key == _RESOURCE else None)
            if wanted:
                self._keep(wanted, value)

    def data(self, text: str) -> None:
        name = self._open[-1] if self._open else None
        if name and not text.isspace():
            self._keep(name, text)

    def _keep(self, name: str, text: str) -> None:
        """The parser hands a long text over in pieces."""
        self._chars += len(text)
        if self._chars > MAX_TEXT_CHARS:
            raise _TooMuch
        self.found[name] = self.found.get(name, "") + text

    def end(self, _tag: str) -> None:
        self._open.pop()

    def close(self) -> dict[str, str]:
        return self.found

    def texts(self) -> dict[str, str]:
        """Those with a text, so far."""
        return {name: text.strip() for name, text in self.found.items() if text.strip()}


def properties(packet: bytes) -> dict[str, str]:
    """The properties above that are there; those before any damage, and none of a packet that is hostile."""
    collector = _Collector()
    parser = DefusedXMLParser(target=collector, forbid_dtd=True, forbid_entities=True, forbid_external=True)
    try:
        parser.feed(packet.strip(b"\0 \t\r\n"))
        parser.close()
    except (_TooMuch, DefusedXmlException):
        return {}
    except (ParseError, ValueError, LookupError):
        return collector.texts()  # it breaks off there; what stood before counts
    return collector.texts()


def last_segment(value: str) -> str:
    """`trainedAlgorithmicMedia` of http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia."""
    return value.strip().rstrip("/").rpartition("/")[2].rpartition(":")[2][:256]
