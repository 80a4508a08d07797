"""`python -m api.openapi > openapi.json`: the description of the API, as committed."""

import json
import sys

from api.app import create_app


def text() -> str:
    return json.dumps(create_app().openapi(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
