"""Concept data that are fetched, from a server on this machine: verified before they are used."""

import functools
import hashlib
import http.server
import json
import sys
import threading
import zipfile

import pytest
from concept_cases import CONCEPTS, write_mini_broden

from neurolens.data.concepts import open_concepts
from neurolens.data.fetching import fetch_broden
from neurolens.errors import DataError, MissingExtraError

pytest.importorskip("pooch", reason="the extra 'fetch' is not installed")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def served(tmp_path):
    """A folder and the address that it is served at; in it, the five images as an archive."""
    folder = tmp_path / "served"
    root = write_mini_broden(folder / "broden1_224")
    with zipfile.ZipFile(folder / "broden1_224.zip", "w") as archive:
        for path in sorted(root.rglob("*.*")):
            archive.write(path, path.relative_to(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/broden1_{{size}}.zip"
    server.shutdown()
    thread.join()
    server.server_close()


def test_fetch_broden__unpacks_verifies_and_tells_the_hash(served, tmp_path):
    folder, url = served
    archive = (folder / "broden1_224.zip").read_bytes()
    digest = hashlib.sha256(archive).hexdigest()
    root = fetch_broden(tmp_path / "data", url=url, sha256=digest, n_bytes=len(archive))
    assert root == tmp_path / "data" / "broden1_224"
    assert json.loads((root / "fetched.json").read_text()) == {
        "url": url.format(size=224),
        "bytes": len(archive),
        "sha256": digest,
    }
    assert [path.name for path in root.parent.iterdir()] == ["broden1_224"]
    assert open_concepts(tmp_path / "data").concepts == CONCEPTS


def test_fetch_broden__refuses_another_hash_or_size(served, tmp_path):
    _, url = served
    with pytest.raises(DataError, match="could not be fetched"):
        fetch_broden(tmp_path / "data", url=url, sha256="0" * 64)
    with pytest.raises(DataError, match=r"has \d+ bytes, and 7 were expected"):
        fetch_broden(tmp_path / "data", url=url, n_bytes=7)
    assert list((tmp_path / "data").iterdir()) == []


def test_fetch_broden__refuses_what_is_no_concept_set(served, tmp_path):
    folder, url = served
    with zipfile.ZipFile(folder / "broden1_227.zip", "w") as archive:
        archive.writestr("broden1_227/readme.txt", "nothing")
    (folder / "broden1_384.zip").write_bytes((folder / "broden1_224.zip").read_bytes()[:-50])
    with pytest.raises(DataError, match=r"holds no index.csv"):
        fetch_broden(tmp_path / "data", url=url, size=227)
    with pytest.raises(DataError, match=r"is damaged or no zip archive"):
        fetch_broden(tmp_path / "data", url=url, size=384)
    with pytest.raises(DataError, match=r"could not be fetched"):
        fetch_broden(tmp_path / "data", url=url, size=100)


def test_fetch_broden__an_incomplete_set_never_appears(served, tmp_path):
    folder, url = served
    with (
        zipfile.ZipFile(folder / "broden1_224.zip") as whole,
        zipfile.ZipFile(folder / "broden1_227.zip", "w") as part,
    ):
        for name in whole.namelist():
            if not name.endswith("A_part.png"):
                part.writestr(name, whole.read(name))
    with pytest.raises(DataError, match=r"label files are not in .*: mini/A_part.png"):
        fetch_broden(tmp_path / "data", url=url, size=227)
    assert not [path for path in (tmp_path / "data").iterdir() if path.is_dir()]


def test_open_concepts__fetches_only_where_it_may(served, tmp_path, monkeypatch):
    _, url = served
    monkeypatch.setattr("neurolens.data.fetching.fetch_broden", functools.partial(fetch_broden, url=url))
    with pytest.raises(DataError, match=r"download = true"):
        open_concepts(tmp_path / "data")
    assert not (tmp_path / "data").exists()
    found = open_concepts(tmp_path / "data", download=True)
    assert found.concepts == CONCEPTS
    assert open_concepts(tmp_path / "data").key == found.key


def test_fetch_broden__names_the_extra_and_the_sizes(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"comes in sizes 224, 227, 384, and 256 was asked for"):
        fetch_broden(tmp_path, size=256)
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(MissingExtraError, match=r"neurolens\[fetch\]"):
        fetch_broden(tmp_path)
