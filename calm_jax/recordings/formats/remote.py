"""NWB files read where they lie: `https://...nwb` and `dandi://DANDISET[@VERSION]/PATH`.

Only the parts of a file that are asked for travel (HTTP ranges, through remfile): `info`
on a file of many GB reads its headers. Needs remfile (`pip install calm_jax[dandi]`).
"""

from __future__ import annotations

import io
import os
import re
import urllib.parse
from pathlib import Path, PurePosixPath
from typing import Any

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats import nwb
from calm_jax.recordings.formats.located import located
from calm_jax.recordings.formats.peek import Peek
from calm_jax.recordings.session import Session

API = "https://api.dandiarchive.org/api"
API_VARIABLE = "CALM_JAX_DANDI_API"
CONNECT, SILENCE = 10.0, 60.0  # seconds to wait for a connection, for the next bytes
OPTIONS = nwb.OPTIONS | {
    "api": f"address of the DANDI API; default: ${API_VARIABLE} or that of the DANDI archive"
}
_SCHEMES = ("http:", "https:", "dandi:")
_DANDI = re.compile(r"dandi://(?P<set>[^/@]+)(?:@(?P<version>[^/]+))?/(?P<path>.+)")


def is_url(path: str | Path) -> bool:
    """True for an http(s) or dandi address, also where `Path` has taken a slash from it."""
    return str(path).replace("\\", "/").startswith(tuple(s + "/" for s in _SCHEMES))


def url_of(path: str | Path) -> str:
    """The address in a `Path`, which writes `https:/host` for `https://host`."""
    scheme, _, rest = str(path).replace("\\", "/").partition(":")
    return f"{scheme}://{rest.lstrip('/')}"


def recognises(path: str | Path) -> bool:
    """True for addresses; nothing is asked of the network."""
    return is_url(path)


def read_remote(path: str | Path, *, api: str | None = None, **options: Any) -> Session:
    """Reads an NWB 2 file at an address; options as for files.

    Args:
      api: address of the DANDI API; default: the variable CALM_JAX_DANDI_API, else DANDI's.

    Raises:
      RecordingError: when nothing answers or nothing is there, the server does not send
        ranges, remfile is missing, or as `read_nwb`.
    """
    url = url_of(path)
    with _opened(url, api) as file:
        return nwb.read_from(file, url, _stem(url), **options)


def peek_remote(path: str | Path, *, api: str | None = None, **options: Any) -> Peek:
    """What an NWB 2 file at an address holds; its traces stay there.

    Raises:
      RecordingError: as `read_remote`.
    """
    url = url_of(path)
    with _opened(url, api) as file:
        return nwb.peek_from(file, url, _stem(url), **options)


def _stem(url: str) -> str:
    return PurePosixPath(urllib.parse.urlsplit(url).path).stem or "unknown"


def dandi_asset(url: str, api: str | None = None) -> str:
    """The download address of `dandi://DANDISET[@VERSION]/PATH`; default version: draft.

    Raises:
      RecordingError: when the address is incomplete, or DANDI knows no such file.
    """
    match = _DANDI.fullmatch(url)
    if match is None:
        raise RecordingError(
            "not an address of a file",
            where=url,
            expected="dandi://DANDISET/PATH or dandi://DANDISET@VERSION/PATH",
        )
    base = (api or os.environ.get(API_VARIABLE) or API).rstrip("/")
    dandiset, path = match["set"], urllib.parse.unquote(match["path"])
    version = match["version"] or "draft"
    quote = urllib.parse.quote
    assets = f"{base}/dandisets/{quote(dandiset)}/versions/{quote(version)}/assets/"
    # A prefix of the path may match many; those asked for come first in order of path.
    found: list[str] = []
    address: str | None = f"{assets}?{urllib.parse.urlencode({'path': path, 'order': 'path'})}"
    for _ in range(20):
        with _get(address) as answer:
            try:
                page = answer.json()
                rows = [(str(x["path"]), str(x["asset_id"])) for x in page["results"]]
                address = page.get("next")
            except (ValueError, KeyError, TypeError, AttributeError) as e:
                raise RecordingError(
                    "an answer that is not DANDI's", where=base, found=str(e)[:200]
                ) from e
        for name, asset in rows:
            if name == path:
                return f"{assets}{quote(asset)}/download/"
            found.append(name)
        if not address:
            break
    raise RecordingError(
        f"dandiset {dandiset} ({version}) has no such file",
        where=url,
        found=", ".join(found[:5]) or "nothing of that name",
        remedy="Check the path on the page of the dandiset.",
    )


def _opened(url: str, api: str | None) -> _Remote:
    """The file at an address, ready to be read at any place."""
    try:
        import remfile
        import requests
    except ImportError as e:
        raise RecordingError(
            "reading over the network needs remfile",
            where=url,
            found=str(e),
            remedy="pip install 'calm_jax[dandi]'",
        ) from e

    class Session(requests.Session):
        """Requests that end: remfile sets no limits of its own."""

        def request(self, *args: Any, **kwargs: Any) -> Any:
            return super().request(*args, **{"timeout": (CONNECT, SILENCE)} | kwargs)

    with located(url):
        address = dandi_asset(url, api) if url.startswith("dandi:") else url
        with _get(address, {"Range": "bytes=0-7"}) as answer:
            total = answer.headers.get("Content-Range", "").rpartition("/")[2]
            # Where DANDI forwards to: it is asked once, not for every part of the file.
            address = answer.url
        if answer.status_code != 206 or not total.isdigit():
            raise RecordingError(
                "the server does not send parts of files",
                found=f"HTTP status {answer.status_code} to a request for a range",
                remedy="Download the file and name it here.",
            )
        file = remfile.File(address, _size=int(total), _use_session=False)
        file.session = Session()
        return _Remote(file, url, int(total))


def _get(address: str, headers: dict[str, str] | None = None) -> Any:
    """One answer of a server, its body not yet read."""
    import requests

    host = urllib.parse.urlsplit(address).netloc
    try:
        answer = requests.get(address, headers=headers, timeout=(CONNECT, SILENCE), stream=True)
    except requests.exceptions.RequestException as e:
        kind = "no answer in time" if isinstance(e, requests.Timeout) else "no connection"
        raise RecordingError(
            kind, where=host or address, found=type(e).__name__,
            remedy="Check the address and the network.",
        ) from e  # fmt: skip
    if answer.status_code == 416:  # an empty file has no first bytes
        answer.close()
        raise RecordingError("the file is empty", where=address)
    if answer.status_code not in (200, 206):
        answer.close()
        said = {404: "nothing is there", 401: "not public", 403: "not public"}
        raise RecordingError(
            said.get(answer.status_code, "the server refuses"),
            where=address,
            found=f"HTTP status {answer.status_code} {answer.reason}",
            remedy="Check the address." if answer.status_code == 404 else None,
        )
    return answer


class _Remote(io.RawIOBase):
    """A remote file for h5py; failures of the network are told as such, not as damage."""

    def __init__(self, file: Any, url: str, size: int) -> None:
        self._file, self._url, self._size, self._at = file, url, size, 0
        self._failed: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        size = max(0, min(len(view), self._size - self._at))
        if size:
            try:
                self._file.seek(self._at)
                data = self._file.read(size)
                if len(data) != size:
                    raise OSError(f"{len(data)} bytes came of {size}")
            except Exception as e:  # whatever remfile and requests raise
                self._failed = e
                raise OSError(str(e)) from e
            view[:size] = data
        self._at += size
        return size

    def __exit__(self, kind: Any, e: BaseException | None, trace: Any) -> None:
        session, self._file.session = self._file.session, None
        session.close()
        super().__exit__(kind, e, trace)
        if e is not None and self._failed is not None:
            raise RecordingError(
                "the file could not be read over the network",
                where=self._url,
                found=str(self._failed)[:300] or type(self._failed).__name__,
                remedy="Try again, or download the file.",
            ) from self._failed
