"""Answers of a server as objects."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from client.errors import AnswerNotUnderstood
from tid_core.version import described

Answer = TypeVar("Answer", bound=BaseModel)


def understood(kind: type[Answer], content: Any) -> Answer:
    """The answer, or a part of it, from its JSON or from what that was read as.

    Raises:
        AnswerNotUnderstood: it is none of this kind, as that of a server of another version may be.
    """
    try:
        return kind.model_validate_json(content) if isinstance(content, bytes | str) else kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join([kind.__name__, *(str(part) for part in first["loc"])])
        raise AnswerNotUnderstood(f"{where}: {first['msg']}", described()) from error
