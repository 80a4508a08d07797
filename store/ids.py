"""Identifiers: 12 hexadecimal digits, safe in a URL, a file name and a shell."""

import secrets

ID_LENGTH = 12


def new_id() -> str:
    return secrets.token_hex(ID_LENGTH // 2)
