"""Server-sent events: lines in, events out (WHATWG HTML, section 9.2)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class RawEvent:
    name: str
    data: str
    id: str | None


def parse(lines: Iterable[str]) -> Iterator[RawEvent]:
    """Events of a stream; comments (heartbeats) give nothing, an event cut off at the end is dropped."""
    name, data, last_id = "message", list[str](), None
    for line in lines:
        if not line:
            if data:
                yield RawEvent(name, "\n".join(data), last_id)
            name, data = "message", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)
        elif field == "id":
            last_id = value
