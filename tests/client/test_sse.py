"""Streams of events as the standard writes them."""

from client.sse import RawEvent, parse


def test_fields_comments_and_many_lines_of_data() -> None:
    lines = [": heartbeat", "", "retry: 2000", "event: state", "id: 7", "data: {", "data: }", "", "data:x", ""]
    assert list(parse(lines)) == [RawEvent("state", "{\n}", "7"), RawEvent("message", "x", "7")]


def test_an_event_that_was_cut_off_is_not_an_event() -> None:
    assert list(parse(["event: state", "data: {}"])) == []
