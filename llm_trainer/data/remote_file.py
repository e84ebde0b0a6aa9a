"""Files in object stores and on web servers, through fsspec: found by glob, read in ranges.

s3:// needs the extra `s3`, gs:// the package gcsfs, abfs:// the package adlfs, https:// the package
aiohttp (http:// is read from this machine only: anyone on the way could change it). Credentials
come from where each package finds them (AWS_*, AWS_ENDPOINT_URL, ~/.aws; FSSPEC_S3_ANON=true for
public buckets), never from an address.

Every answer must have as many bytes as were asked for: a short one, like any passing fault, is
asked for again, TRIES times in all. Each answer must be of the content that was found first, by
its ETag: S3 is asked for just that, of other stores the ETag is looked at after each answer.
Price: one question a file for its size, and one a range (two where the store is not S3).
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple, cast
from urllib.parse import urlsplit

from llm_trainer.config.secrets import strip_secrets
from llm_trainer.exceptions import DataError, LLMTrainerError, MissingDependencyError

logger = logging.getLogger(__name__)

SCHEMES = {
    "s3": ("s3fs", "pip install -e '.[s3]'"),
    "gs": ("gcsfs", "pip install gcsfs"),
    "abfs": ("adlfs", "pip install adlfs"),
    "https": ("aiohttp", "pip install aiohttp"),
    "http": ("aiohttp", "pip install aiohttp"),
}
"""Scheme -> package and how to install it."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")
BLOCK_BYTES = 8 * 2**20
"""Text is fetched in blocks of this size."""
TRIES = 5
_REFUSALS = ("401,", "403,")  # how a web server's error begins
FIRST_PAUSE = 0.3
"""Seconds before the second try; each later pause is twice as long."""
_TAGS = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime")


class Found(NamedTuple):
    """A file at an address."""

    address: str
    size: int
    tag: str | None


def find_remote(entry: str) -> list[Found]:
    """The files of an address, a glob or, with a slash at its end or without, a folder; sorted.

    Raises:
        DataError: nothing is there, or it cannot be reached; of an unknown or unsafe scheme.
        MissingDependencyError: the package for the scheme is not installed.
    """
    system = _system(entry)
    with _explained(entry):
        if entry.startswith("http"):
            return [_found(entry, _info(system, entry))]  # a web server lists nothing
        scheme = urlsplit(entry).scheme
        if any(mark in entry for mark in "*?["):
            listed = system.glob(entry, detail=True)
        elif not entry.endswith("/") and (info := _file_info(system, entry)) is not None:
            return [_found(entry, info)]
        else:
            listed = system.find(entry, detail=True)
        return [
            _found(f"{scheme}://{path}", info)
            for path, info in sorted(listed.items())
            if info.get("type") == "file" and not _is_hidden(path, entry, scheme)
        ]


def open_remote(address: str, size: int, tag: str | None, least: int = 0) -> BinaryIO:
    """Open a file that `find_remote` found; see `InputFile.open`."""
    system, expected = _system(address), Found(address, size, tag)
    _check_same(system, expected)
    return cast(BinaryIO, _Ranges(system, expected, least or BLOCK_BYTES))


class _Ranges(io.RawIOBase):
    """The bytes of a remote file, fetched range by range; a read is short at the end only."""

    def __init__(self, system: Any, expected: Found, least: int) -> None:
        self._system = system
        self._expected = expected
        self._address, self._size = expected.address, expected.size
        self._least = least
        self._position = 0
        self._file: Any = None
        self._block = b""
        self._block_start = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        wanted, done = memoryview(buffer), 0
        while done < len(wanted) and self._position < self._size:
            at = self._position - self._block_start
            if not 0 <= at < len(self._block):
                stop = self._position + max(len(wanted) - done, self._least)
                self._block = self._fetch(self._position, min(self._size, stop))
                self._block_start, at = self._position, 0
            data = self._block[at : at + len(wanted) - done]
            wanted[done : done + len(data)] = data
            self._position += len(data)
            done += len(data)
        return done

    def close(self) -> None:
        if not self.closed and self._file is not None:
            self._file.close()
        super().close()

    def _fetch(self, start: int, stop: int) -> bytes:
        problem = ""
        for number in range(1, TRIES + 1):
            try:
                with _explained(self._address):
                    data = self._ask(start, stop)
                if len(data) == stop - start:
                    if not self._address.startswith("s3:"):
                        _check_same(self._system, self._expected)
                    return data
                if len(data) > stop - start:
                    raise _no_parts(self._address)
                problem = f"{len(data):,} bytes instead of {stop - start:,}"
            except _Unreachable as error:
                problem = error.problem
            if number < TRIES:
                pause = FIRST_PAUSE * 2 ** (number - 1)
                logger.info("%s: %s; asked again in %.1f s", self._address, problem, pause)
                time.sleep(pause)
        raise DataError(
            f"{self._address}: bytes {start:,} to {stop:,} could not be read in {TRIES} tries "
            f"(the last: {problem}); check the network and the store, then give the same command "
            f"again"
        )

    def _ask(self, start: int, stop: int) -> bytes:
        if self._file is None:
            self._file = self._system.open(self._address, "rb", cache_type="none")
        self._file.seek(start)
        data: bytes = self._file.read(stop - start)
        return data


# --------------------------------------------------------------------------- stores


def check_address(address: str) -> None:
    """Refuse an address of an unknown scheme, one with a secret in it, and the clear.

    Raises:
        DataError: says which, without the secret.
    """
    shown = strip_secrets(address)
    parts = urlsplit(address)
    if shown != address:
        raise DataError(
            f"{shown}: holds a password, token or signature, which would end up in files and logs; "
            f"leave it out and use the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            f"AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS)"
        )
    if parts.scheme not in SCHEMES or "::" in address:
        raise DataError(
            f"{shown}: addresses of this kind are not read; use one of "
            f"{', '.join(f'{scheme}://' for scheme in SCHEMES)} or a path on this machine"
        )
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise DataError(
            f"{shown}: would be read without encryption, where anyone on the way can change it; "
            f"use https://"
        )


def _system(address: str) -> Any:
    check_address(address)
    scheme = urlsplit(address).scheme
    package, install = SCHEMES[scheme]
    try:
        import fsspec

        # a listing that is kept would hide that a file has changed
        settings: dict[str, Any] = {"use_listings_cache": False}
        if scheme in ("http", "https"):
            settings["get_client"] = _web_client
        return fsspec.filesystem(scheme, **settings)
    except ImportError as error:
        raise MissingDependencyError(
            f"{scheme}:// addresses need the package {package} ({error}); `{install}`"
        ) from error


async def _web_client(**settings: Any) -> Any:
    """A client that follows no redirect into the clear."""
    import aiohttp

    async def check(_session: Any, _context: Any, params: Any) -> None:
        target = urlsplit(params.response.headers.get("Location", ""))
        if target.scheme == "http" and target.hostname not in LOOPBACK:
            raise DataError(f"{params.url}: redirects to {target.hostname} without encryption")

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(check)
    return aiohttp.ClientSession(trace_configs=[trace], **settings)


def _info(system: Any, address: str) -> dict[str, Any]:
    system.invalidate_cache()
    info: dict[str, Any] = system.info(address)
    return info


def _check_same(system: Any, expected: Found) -> None:
    with _explained(expected.address):
        found = _found(expected.address, _info(system, expected.address))
        if found != expected:
            raise _changed(
                expected.address,
                f"{expected.size:,} bytes, {expected.tag}",
                f"{found.size:,} bytes, {found.tag}",
            )


def _file_info(system: Any, address: str) -> dict[str, Any] | None:
    try:
        info = _info(system, address)
    except FileNotFoundError:
        return None
    return info if info["type"] == "file" else None


def _found(address: str, info: dict[str, Any]) -> Found:
    size = info.get("size")
    if not isinstance(size, int):
        raise DataError(
            f"{address}: the server does not tell its size, so that a part of it could not be told "
            f"from all of it; fetch it to a file first"
        )
    tags = [str(info[key]).strip('"') for key in _TAGS if info.get(key) is not None]
    return Found(address, size, tags[0] if tags else None)


def _is_hidden(path: str, entry: str, scheme: str) -> bool:
    # below what was named: s3 keeps a folder as an empty object, and tools leave _SUCCESS files
    base = entry.removeprefix(f"{scheme}://").partition("*")[0]
    below = path[len(base) :] if path.startswith(base) else path
    return path.endswith("/") or any(part.startswith(".") for part in below.split("/"))


# --------------------------------------------------------------------------- errors


class _Unreachable(DataError):
    """A fault that may be gone at the next try."""

    def __init__(self, address: str, problem: str) -> None:
        super().__init__(
            f"{address}: cannot be read ({problem}); check the network and "
            f"{_endpoint_remedy(address)}"
        )
        self.problem = problem


def _changed(address: str, before: str, now: str) -> DataError:
    return DataError(
        f"{address}: changed while it was read (was {before}; is {now}); give the command again "
        f"when nothing writes to it"
    )


def _no_parts(address: str) -> DataError:
    return DataError(f"{address}: the server cannot send parts of a file; fetch it to a file first")


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Turn what the stores' packages raise into errors that name the address and the remedy."""
    try:
        yield
    except LLMTrainerError:
        raise
    except Exception as error:
        cause = error
        if address.startswith("http") and isinstance(error, FileNotFoundError):
            while isinstance(cause.__cause__, Exception):  # fsspec calls all that goes wrong so
                cause = cause.__cause__
        explained = _explain(address, cause)
        if explained is None:
            raise
        raise explained from error


def _explain(address: str, error: Exception) -> LLMTrainerError | None:
    message = strip_secrets(" ".join(str(error).split())) or type(error).__name__
    kind = type(error).__name__
    if isinstance(error, LLMTrainerError):
        return error
    if isinstance(error, FileNotFoundError) or message.startswith("404,"):
        return DataError(f"{address}: no such file, bucket or folder ({message})")
    if isinstance(error, PermissionError) or "Credentials" in kind or message[:4] in _REFUSALS:
        return DataError(f"{address}: access was refused ({message}); {_access_remedy(address)}")
    if "PreconditionFailed" in message or kind == "FileExpired":
        return _changed(address, "one version", "another")
    if isinstance(error, ValueError) and "range requests" in message:
        return _no_parts(address)
    if isinstance(error, ValueError) and "Invalid pattern" in message:
        return DataError(
            f"{address}: ** stands for folders and must be alone between two slashes, as in "
            f"s3://bucket/**/*.jsonl"
        )
    if isinstance(error, ConnectionError | TimeoutError | OSError) or _is_network(error):
        return _Unreachable(address, f"{kind}: {message}")
    return None


def _is_network(error: Exception) -> bool:
    module = type(error).__module__.partition(".")[0]
    return module in ("aiohttp", "botocore", "aiobotocore", "gcsfs", "google", "azure")


def _access_remedy(address: str) -> str:
    if address.startswith("s3:"):
        return (
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, of someone who may "
            "read it, or FSSPEC_S3_ANON=true for a public bucket"
        )
    if address.startswith("gs:"):
        return "set GOOGLE_APPLICATION_CREDENTIALS to the key file of someone who may read it"
    if address.startswith("abfs:"):
        return "set AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY of it"
    return "only what anyone may read can be fetched from a web server"


def _endpoint_remedy(address: str) -> str:
    if address.startswith("s3:"):
        return "AWS_ENDPOINT_URL (for a store that is not Amazon's) and AWS_REGION"
    return "the address"
