"""Files of a data set as the hub lists them: fetched, and compared in size and digest.

`huggingface_hub` takes a file for whole when it has as many bytes as its server announced for the
answer, and the JSON reader of `datasets` passes over a last line that is cut off. A proxy that cuts
files short would so take text away without a word. Price: each file is hashed once, 1 GB/s.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llm_trainer.exceptions import DataError


def fetch_files(name: str, commit: str, places: Iterable[str]) -> None:
    """Fetch the files of the data set `name` into the cache of `huggingface_hub`, and check them.

    Args:
        commit: the 40 digits.
        places: what `datasets` calls them, `hf://datasets/<name>@<commit>/<path>`; others are left.

    Raises:
        DataError: a file is not what the hub lists; it is taken out of the cache again.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.hf_api import RepoFile

    own = re.compile(rf"(?:.*::)?hf://datasets/{re.escape(name)}@[^/]+/(.+)")
    paths = sorted({match[1] for place in places if (match := own.fullmatch(place))})
    for start in range(0, len(paths), 100):
        wanted = paths[start : start + 100]
        listed = HfApi().get_paths_info(name, wanted, repo_type="dataset", revision=commit)
        for entry in listed:
            if isinstance(entry, RepoFile):
                local = hf_hub_download(name, entry.path, repo_type="dataset", revision=commit)
                _check(Path(local), f"{name}/{entry.path}", entry)


def _check(local: Path, shown: str, entry: Any) -> None:
    size = local.stat().st_size
    problem = f"{size:,} bytes, but the hub lists {entry.size:,}" if size != entry.size else None
    known = entry.blob_id if entry.lfs is None else entry.lfs.sha256
    if problem is None and _digest(local, entry) != known:
        problem = "other content than the hub lists"
    if problem is not None:
        local.resolve().unlink()
        local.unlink(missing_ok=True)
        raise DataError(
            f"{shown}: {problem}; it was cut off or changed on the way here, and is out of the "
            f"cache again: give the same command again, and look for a proxy if that does not help"
        )


def _digest(local: Path, entry: Any) -> str:
    """What the hub has: the sha256 of a large file, git's name of a small one."""
    if entry.lfs is not None:
        with open(local, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha1(b"blob %d\0" % local.stat().st_size, usedforsecurity=False)
    digest.update(local.read_bytes())
    return digest.hexdigest()
