"""Where files are looked for, and downloads from a server of the test's own."""

import functools
import hashlib
import http.server
import threading

import pytest

from decoupled import DataError
from decoupled.data import published
from decoupled.data.find import Source, find_or_download

CONTENT = b"some data"


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """Address of a folder served on the loopback, with one file in it."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "file.gz").write_bytes(CONTENT)
    handler = functools.partial(QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache" / "decoupled" / "things"


def source(url="http://127.0.0.1:1/", digest=None, folders=()):
    digest = digest or hashlib.sha256(CONTENT).hexdigest()
    return Source("things", url, {"file.gz": digest}, folders, "Try something else.")


def find(from_source, **options):
    return find_or_download(from_source, [("file.gz", "file")], **options)


def test_the_data_folder_comes_before_the_systems(tmp_path, cache):
    for name in ("data/things", "system"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_bytes(CONTENT)
    here = source(folders=(str(tmp_path / "system"),))
    assert find(here, data_dir=str(tmp_path / "data")) == [tmp_path / "data/things/file"]
    assert find(here) == [tmp_path / "system/file"]


def test_download_into_the_cache_and_use_it_again(server, cache):
    assert find(source(server)) == [cache / "file.gz"]
    assert (cache / "file.gz").read_bytes() == CONTENT
    assert find(source()) == [cache / "file.gz"]


def test_a_wrong_sha256_leaves_nothing_behind(server, cache):
    with pytest.raises(DataError, match="gave no good copy"):
        find(source(server, digest="0" * 64))
    assert not list(cache.glob("*"))


def test_unreachable_and_switched_off(cache, tmp_path):
    with pytest.raises(DataError) as caught:
        find(source(folders=("/nowhere",)), data_dir=str(tmp_path))
    message = str(caught.value)
    for part in ("things is missing", "file.gz", "/nowhere", str(tmp_path), str(cache), "Try something"):
        assert part in message
    assert "\n" not in message
    with pytest.raises(DataError, match=r"switched off \(config.download\)"):
        find(source(), download=False)


def test_published_sources_are_https_with_sha256():
    for entry in (published.MNIST, published.FASHION_MNIST, published.CIFAR10, published.CIFAR100):
        assert entry.url.startswith("https://")
        assert entry.sha256
        for digest in entry.sha256.values():
            assert len(bytes.fromhex(digest)) == 32
