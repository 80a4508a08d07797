"""What S3 answers instead of doing it, as an OSError that says how to mend it, and never a secret."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from obstore.exceptions import BaseError

_STATUS: Final = re.compile(r"status code: (\d{3})")
_CODE: Final = re.compile(r"<Code>([A-Za-z0-9.]{1,80})</Code>")
_MESSAGE: Final = re.compile(r"<Message>([^<]{1,200})")
_FULL: Final = ("QuotaExceeded", "QuotaExceededException", "XMinioStorageFull", "InsufficientStorage", "507")
_ROLES: Final = ("169.254.169.254", "169.254.170.2", "AssumeRole")
"""Where AWS gives machines their keys: what fails there is not the bucket."""
_REMEDIES: Final = {
    "SignatureDoesNotMatch": "TID_S3_SECRET_ACCESS_KEY must be the secret of TID_S3_ACCESS_KEY_ID",
    "InvalidAccessKeyId": "TID_S3_ACCESS_KEY_ID must be a key that the server knows",
    "ExpiredToken": "renew the temporary key in AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "set the clock of this machine, or of the server: they differ too much",
    "AuthorizationHeaderMalformed": "TID_S3_REGION must be the region of the bucket",
    "PermanentRedirect": "TID_S3_REGION must be the region of the bucket",
    "301": "TID_S3_REGION must be the region of the bucket",
    "NoSuchBucket": "make the bucket {bucket}, or set TID_ARTIFACTS to one that exists",
    "404": "TID_S3_ENDPOINT must be the URL of an S3 server, and TID_ARTIFACTS name a bucket that it has",
    "401": "TID_S3_ACCESS_KEY_ID and TID_S3_SECRET_ACCESS_KEY must be a key that the server knows",
    "403": "the key must be right, and may list, read, write and delete in the bucket {bucket}",
    "5xx": "the log of the S3 server says why",
    "full": "make room, or raise the quota of the bucket {bucket}",
    "certificate": "its certificate must be good, and its authority known here: SSL_CERT_FILE names a file of that",
    "away": "TID_S3_ENDPOINT must be the URL of the server, which must run and be reachable from here",
    "credentials": "set TID_S3_ACCESS_KEY_ID and TID_S3_SECRET_ACCESS_KEY, or what AWS's own variables need",
}


class S3Error(OSError):
    """`strerror` is for people: what is wrong, and how to mend it.

    Args:
        may_pass: the same may go well in a moment; otherwise somebody has to mend something.
    """

    def __init__(self, number: int, problem: str, remedy: str, name: str, *, may_pass: bool) -> None:
        super().__init__(number, f"{problem}; {remedy}" if remedy else problem, name)
        self.problem, self.remedy, self.may_pass = problem, remedy, may_pass

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


class Where(NamedTuple):
    """What errors name."""

    endpoint: str
    bucket: str

    @contextmanager
    def telling(self, name: str) -> Iterator[None]:
        """Turn what obstore raises into an OSError about the object `name`.

        Raises:
            FileNotFoundError: there is no such object.
            S3Error: anything else.
        """
        try:
            yield
        except FileNotFoundError as error:
            if error.errno is not None:  # of a local file
                raise
            raise self._not_found(name, str(error)) from None
        except BaseError as error:
            raise self._failed(name, str(error)) from None

    def _not_found(self, name: str, text: str) -> OSError:
        # An answer to HEAD has no body; one to GET that does not say so is of something else than S3.
        if "NoSuchKey" not in text and "performing HEAD" not in text:
            return self._failed(name, text)
        return FileNotFoundError(errno.ENOENT, f"{self.endpoint} has no such object", self._named(name))

    def _failed(self, name: str, text: str) -> S3Error:
        status, code, message = (_first(pattern, text) for pattern in (_STATUS, _CODE, _MESSAGE))
        key = _kind(status, code, text)
        told = " ".join(filter(None, (status, code, f"({message})" if message else "")))
        problem = f"{self.endpoint} answers {told}" if status else f"{self.endpoint} does not answer{_why(text)}"
        if key == "credentials":
            problem = "there is no key for S3"
        number = errno.ENOSPC if key == "full" else errno.EACCES if status in ("401", "403") else errno.EIO
        remedy = _REMEDIES.get(key, "").format(bucket=self.bucket)
        may_pass = key in ("away", "full") or status.startswith("5") or status == "429"
        return S3Error(number, problem, remedy, self._named(name), may_pass=may_pass)

    def _named(self, name: str) -> str:
        return f"s3://{self.bucket}/{name}"


def _kind(status: str, code: str, text: str) -> str:
    """Which remedy helps."""
    if code in _FULL or status in _FULL:
        return "full"
    if any(sign in text for sign in _ROLES):
        return "credentials"
    if not status:
        return "certificate" if "InvalidCertificate" in text else "away"
    return code if code in _REMEDIES else status if status < "500" else "5xx"


def _first(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return match[1] if match else ""


def _why(text: str) -> str:
    """The innermost reason, which the library tells last and in quotes."""
    if "TimedOut" in text or "timed out" in text:
        return " in time"
    found = re.findall(r"InvalidCertificate\(\s*\w+|Connection refused|Connection reset|dns error", text)
    return f" ({' '.join(found[-1].replace('(', ' ').split())})" if found else ""
