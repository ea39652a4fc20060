"""Finds the files of a published data set on disk, or downloads them, checked, into a cache folder."""

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from decoupled.data.files import opened
from decoupled.errors import DataError
from decoupled.extras import extra
from decoupled.telling import tell

with extra("train"):
    import pooch
    import requests
    from tqdm import tqdm

_CONNECT_SECONDS = 15
# CIFAR-10, the largest published file, has 163 MiB.
_MOST_BYTES = 1 << 28


class Source(NamedTuple):
    """A published data set's files.

    Attributes:
      name: of the data set, and of its folder under a data directory.
      url: https address of the folder that holds the files; no other kind is fetched from.
      sha256: of each file, by name, as published.
      system_folders: where operating systems install it.
      hint: what a person without a network can do.
    """

    name: str
    url: str
    sha256: Mapping[str, str]
    system_folders: Sequence[str]
    hint: str


def find_or_download(
    source: Source,
    candidates: Sequence[Sequence[str]],
    data_dir: str | os.PathLike[str] = "",
    download: bool = True,
) -> list[Path]:
    """The path of one candidate from each list, all in the same folder.

    Args:
      source: where the files come from.
      candidates: for each file needed, the names it may have, the published one first.
      data_dir: the files must lie in it, or in its subfolder `source.name`; empty to look for them where
        systems put them, then in the cache.
      download: whether to fetch what is found nowhere, and no `data_dir` is given for.

    Raises:
      DataError: nothing is there and nothing could be fetched; says where it was looked for.
    """
    cache = Path(pooch.os_cache("decoupled")) / source.name
    folders = [*map(Path, source.system_folders), cache]
    try:
        if data_dir:
            given = Path(data_dir).expanduser()
            folders = [given, given / source.name]
        missing = []
        for folder in folders:
            paths = [_first_existing(folder, names) for names in candidates]
            found = [path for path in paths if path is not None]
            if len(found) == len(candidates):
                return found
            absent = [names[0] for names, path in zip(candidates, paths, strict=True) if path is None]
            missing.append(f"no {', '.join(absent)} in {folder}")
    except (OSError, RuntimeError) as error:
        raise DataError(f"cannot look for {source.name} in {data_dir or 'its folders'}: {error}") from error
    if data_dir:
        raise DataError(
            f"{source.name} is missing: {'; '.join(missing)}: name a folder that holds it, or leave"
            f" config.data_dir out to find it elsewhere. {source.hint}"
        )
    problem = "downloading is switched off (config.download)"
    if download:
        try:
            return [_download(source, names[0], cache) for names in candidates]
        except (OSError, ValueError) as error:
            problem = f"{source.url} gave no good copy ({_reason(error)})"
    raise DataError(f"{source.name} is missing: {'; '.join(missing)}; {problem}. {source.hint}")


def _reason(error: OSError | ValueError) -> str:
    """Why a download failed, in a few words; connection errors spell out their whole history."""
    if isinstance(error, requests.exceptions.InvalidSchema):
        return "its address is, or leads to, one that is not https"
    if isinstance(error, requests.RequestException) and not isinstance(error, requests.HTTPError):
        return type(error).__name__
    return " ".join(str(error).split())


def _first_existing(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).exists()), None)


def _download(source: Source, name: str, cache: Path) -> Path:
    """Fetches one file; it appears in the cache only once its sha256 is right."""
    path = cache / name
    if path.exists() and sha256_of(path) == source.sha256[name]:
        return path
    tell(f"downloading {source.url + name}")
    pooch.get_logger().setLevel("WARNING")
    fetch: Any = _fetch
    pooch.retrieve(source.url + name, f"sha256:{source.sha256[name]}", name, cache, downloader=fetch)
    return path


def _fetch(url: str, output_file: str, _: object) -> None:
    """What pooch calls to download: over https only, wherever redirects lead, and no endless file.

    Raises:
      requests.RequestException, ValueError: it is not to be had.
    """
    with requests.Session() as session, open(output_file, "wb") as file:
        del session.adapters["http://"]  # It can now speak https alone.
        with session.get(url, timeout=_CONNECT_SECONDS, stream=True) as response:
            response.raise_for_status()
            total = int(response.headers.get("content-length", 0)) or None
            with tqdm(total=total, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as progress:
                for piece in response.iter_content(1 << 16):
                    progress.update(file.write(piece))
                    if file.tell() > _MOST_BYTES:
                        raise ValueError(f"it is longer than {_MOST_BYTES} bytes")


def sha256_of(path: Path) -> str:
    """Of a file's bytes, hexadecimal.

    Raises:
      DataError: it is no regular file, or cannot be read.
    """
    with opened(path) as file:
        content: Any = file
        return hashlib.file_digest(content, "sha256").hexdigest()
