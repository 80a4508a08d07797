"""Pydantic's errors as field problems: pointers into the user's own document, one voice per union."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from api.schemas import FieldProblem

Part = int | str


class _Located(NamedTuple):
    error: Mapping[str, Any]
    path: tuple[Part, ...]
    union: tuple[Part, ...] | None
    member: str


def pointer(path: Iterable[Part]) -> str:
    """JSON pointer (RFC 6901) of a path."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def field_problems(errors: Sequence[Mapping[str, Any]], body: Any = None) -> list[FieldProblem]:
    """Problems of a request or, with locations that start in `body`, of a document."""
    located = [_locate(error, body) for error in errors]
    return [_problem(item) for item in _one_member_per_union(located)]


def _locate(error: Mapping[str, Any], document: Any) -> _Located:
    """Split pydantic's location into a path of the document and the union member that was tried.

    A union puts its member's name into the location; such a part is neither key nor index of the document.
    """
    where, *rest = error["loc"]
    if where != "body" or error["type"] == "json_invalid":
        return _Located(error, tuple(rest) if where != "body" else (), None, "")
    path: list[Part] = []
    union, member, here = None, "", document
    for index, part in enumerate(rest):
        is_key = isinstance(here, Mapping) and part in here
        is_missing_key = error["type"] == "missing" and index == len(rest) - 1
        is_index = isinstance(here, list | tuple) and isinstance(part, int)
        if not (is_key or is_missing_key or is_index):
            union, member = tuple(path), str(part)
            continue
        path.append(part)
        here = _child(here, part)
    if error["type"] == "string_unicode" and isinstance(here, Mapping):
        path += [ascii(key)[1:-1] for key in here if not _is_text(key)][:1]  # the place of a key is that of its object
    return _Located(error, tuple(path), union, member)


def _is_text(key: str) -> bool:
    return key.encode(errors="replace").decode() == key


def _child(here: Any, part: Part) -> Any:
    if isinstance(here, Mapping):
        return here.get(part)
    return here[part] if isinstance(part, int) and part < len(here) else None


def _one_member_per_union(located: Sequence[_Located]) -> list[_Located]:
    """Keep, for each union, only the member that came closest: the one with the fewest errors.

    A member that failed on its type alone (a text where an object stands) is no candidate while another
    is; where all did, they are told as one problem.
    """
    unions: dict[tuple[Part, ...], dict[str, list[_Located]]] = {}
    for item in located:
        if item.union is not None:
            unions.setdefault(item.union, {}).setdefault(item.member, []).append(item)
    kept = {union: _closest(list(members.values())) for union, members in unions.items()}
    plain = [item for item in located if item.union is None]
    return plain + [item for items in kept.values() for item in items]


def _closest(members: Sequence[Sequence[_Located]]) -> Sequence[_Located]:
    best = min(members, key=lambda items: (_wrong_type(items), len(items)))
    if not _wrong_type(best) or len(members) == 1:
        return best
    messages = dict.fromkeys(_detail(items[0].error) for items in members)
    return [best[0]._replace(error={"loc": best[0].error["loc"], "type": "union", "msg": "; or ".join(messages)})]


def _wrong_type(items: Sequence[_Located]) -> bool:
    return all(item.path == item.union for item in items)


def _detail(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return "there is no such field"
    if error["type"] == "string_unicode":
        return "the text holds half of a surrogate pair, which is no character"
    if error["type"] == "json_invalid":
        return f"not JSON: {error['ctx']['error']} (character {error['loc'][-1]})"
    detail = str(error["msg"]).removeprefix("Value error, ")
    return re.sub(r"a valid dictionary or instance of (\w+)", r"an object (\1)", detail)


def _problem(item: _Located) -> FieldProblem:
    error = item.error
    in_body = error["loc"][0] == "body"
    field = pointer(item.path) if in_body else "/".join(str(part) for part in item.path)
    return FieldProblem(code=str(error["type"]), field=field, detail=_detail(error), expected=_expected(error))


def _expected(error: Mapping[str, Any]) -> str:
    context = error.get("ctx", {})
    bounds = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    for key, sign in bounds.items():
        if key in context:
            return f"{sign} {context[key]}"
    if "expected" in context:
        return str(context["expected"])
    if "pattern" in context:
        return f"a text matching {context['pattern']}"
    if isinstance(error.get("input"), bytes):  # the body was not taken for JSON
        return "a JSON object, sent with the header Content-Type: application/json"
    fixed = {
        "missing": "a value",
        "json_invalid": "a JSON document",
        "model_attributes_type": "a JSON object",
        "list_type": "a list, in [brackets]",
    }
    return fixed.get(str(error["type"]), "")
