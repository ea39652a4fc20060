"""Where files are looked for, and downloads over a transport of the test's own."""

import hashlib
import io

import pytest
import requests

from decoupled import DataError
from decoupled.data import find as find_module
from decoupled.data import published
from decoupled.data.find import Source, find_or_download

CONTENT = b"some data"
SITE = "https://things.example/"


class Network:
    """Answers requests from a table; remembers which addresses were asked.

    Attributes:
      answers: by address, (status, headers, body).
    """

    def __init__(self):
        self.answers = {f"{SITE}file.gz": (200, {}, CONTENT)}
        self.asked = []

    def send(self, adapter, request, **options):
        self.asked.append(request.url)
        assert options["verify"]  # the server's certificate
        if request.url not in self.answers:
            raise requests.ConnectionError("a long history")
        answer = requests.Response()
        answer.status_code, headers, body = self.answers[request.url]
        answer.url, answer.request = request.url, request
        answer.headers.update(headers)
        answer.raw = io.BytesIO(body)
        return answer


@pytest.fixture
def network(monkeypatch):
    made = Network()
    monkeypatch.setattr(
        "requests.adapters.HTTPAdapter.send", lambda *given, **options: made.send(*given, **options)
    )
    return made


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache" / "decoupled" / "things"


def source(url=SITE, digest=None, folders=()):
    digest = digest or hashlib.sha256(CONTENT).hexdigest()
    return Source("things", url, {"file.gz": digest}, folders, "Try something else.")


def find(from_source, **options):
    return find_or_download(from_source, [("file.gz", "file")], **options)


def test_a_folder_that_is_named_is_used_or_refused(network, tmp_path, cache):
    (tmp_path / "system").mkdir()
    for name in ("file", "labels"):
        (tmp_path / "system" / name).write_bytes(CONTENT)
    here = source(folders=(str(tmp_path / "system"),))
    names = [("file.gz", "file"), ("labels.gz", "labels")]
    assert find_or_download(here, names) == [tmp_path / "system/file", tmp_path / "system/labels"]
    given = tmp_path / "data"
    (given / "things").mkdir(parents=True)
    (given / "things" / "labels").write_bytes(CONTENT)
    message = (
        f"things is missing: no file.gz, labels.gz in {given}; no file.gz in {given / 'things'}: name a"
        " folder that holds it, or leave config.data_dir out to find it elsewhere. Try something else."
    )
    for folder in (str(given), given):
        with pytest.raises(DataError) as caught:
            find_or_download(here, names, data_dir=folder)
        assert str(caught.value) == message
    assert not network.asked


def test_the_data_folder_comes_before_the_systems(tmp_path, cache):
    for name in ("data/things", "system"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_bytes(CONTENT)
    here = source(folders=(str(tmp_path / "system"),))
    assert find(here, data_dir=str(tmp_path / "data")) == [tmp_path / "data/things/file"]
    assert find(here) == [tmp_path / "system/file"]


def test_download_into_the_cache_and_use_it_again(network, cache):
    assert find(source()) == [cache / "file.gz"]
    assert (cache / "file.gz").read_bytes() == CONTENT
    assert find(source()) == [cache / "file.gz"]
    assert network.asked == [f"{SITE}file.gz"]


def test_a_wrong_sha256_leaves_nothing_behind(network, cache):
    with pytest.raises(DataError, match="gave no good copy"):
        find(source(digest="0" * 64))
    assert not list(cache.glob("*"))


def test_redirects_are_followed_over_https_only(network, cache):
    network.answers[f"{SITE}file.gz"] = (302, {"location": "https://other.example/file"}, b"")
    for end in ("http://other.example/file", "ftp://other.example/file", "file:///etc/hostname"):
        network.answers["https://other.example/file"] = (301, {"location": end}, b"")
        with pytest.raises(DataError, match=r"https://things.example/ gave no good copy \(.* not https\)"):
            find(source())
    assert all(address.startswith("https://") for address in network.asked)
    assert not list(cache.glob("*"))
    network.answers["https://other.example/file"] = (200, {}, CONTENT)
    assert find(source()) == [cache / "file.gz"]


def test_http_is_not_even_asked(network, cache):
    with pytest.raises(DataError, match="one that is not https"):
        find(source("http://things.example/"))
    assert not network.asked


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((404, {}, b""), "404"),
        ((200, {"content-length": "many"}, CONTENT), "invalid literal"),
        ((200, {}, CONTENT * 9), "longer than 64 bytes"),
    ],
)
def test_bad_answers(network, cache, monkeypatch, answer, message):
    monkeypatch.setattr(find_module, "_MOST_BYTES", 64)
    network.answers[f"{SITE}file.gz"] = answer
    with pytest.raises(DataError, match=message) as caught:
        find(source())
    assert "\n" not in str(caught.value)
    assert not list(cache.glob("*"))


def test_unreachable_and_switched_off(network, cache, tmp_path):
    network.answers.clear()
    with pytest.raises(DataError) as caught:
        find(source(folders=("/nowhere",)))
    message = str(caught.value)
    for part in ("things is missing", "file.gz", "/nowhere", str(cache), "Try something"):
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
