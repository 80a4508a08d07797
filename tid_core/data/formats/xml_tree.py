"""XML from strangers: parsed without document types, so without entities that grow or that name other files."""

from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

MAX_BYTES = 16 << 20


class XmlError(Exception):
    """Not XML that is read here; the text continues a sentence that began with the file's name."""


def read_xml(path: Path) -> Element:
    """The root element of the file.

    Raises:
        XmlError: it is no XML, declares a document type, or is too large.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise XmlError(f"is larger than {MAX_BYTES >> 20} MiB")
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _refuse
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, LookupError) as error:  # the latter two: unknown encodings
        raise XmlError(f"is not XML: {error}") from error
    return builder.close()


def _refuse(*_: Any) -> None:
    raise XmlError("declares a document type, which may hold entities; remove the DOCTYPE")
