import hashlib

import pytest

from minivit.data.download import fetch, provide

CONTENT = bytes(range(256)) * 1000
CHECKSUM = "md5:" + hashlib.md5(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def the_file(server):
    server.files["file.gz"] = CONTENT


@pytest.mark.parametrize("path", ["good", "unannounced"])
@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_a_file_arrives_whole_in_a_new_folder(server, tmp_path, path, algorithm):
    target = tmp_path / "new" / "folder" / "file.gz"
    checksum = f"{algorithm}:{hashlib.new(algorithm, CONTENT).hexdigest()}"
    assert fetch([f"{server.url}/{path}/file.gz"], target, checksum) == target
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


def test_a_file_that_is_there_is_used_as_it_is(server, tmp_path):
    target = tmp_path / "file.gz"
    target.write_bytes(b"packed by hand")
    assert fetch([f"{server.url}/good/file.gz"], target, CHECKSUM).read_bytes() == b"packed by hand"
    assert not server.asked


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("cut", "cut off after 128000 of 256000 bytes"),
        ("corrupt", "the md5 checksum is .*, it should be"),
        ("unannounced-cut", "the md5 checksum is .*, it should be"),
    ],
)
def test_a_failed_transfer_leaves_nothing_and_says_what_to_do(server, tmp_path, path, reason):
    url = f"{server.url}/{path}/file.gz"
    with pytest.raises(ConnectionError, match=reason) as caught:
        fetch([url], tmp_path / "file.gz", CHECKSUM)
    sentence = str(caught.value)
    assert sentence.startswith("file.gz could not be downloaded")
    assert url in sentence and f"put it into the folder {tmp_path}" in sentence
    assert not list(tmp_path.iterdir())


def test_offline_the_sentence_names_file_address_and_folder(closed_port, tmp_path):
    with pytest.raises(ConnectionError) as caught:
        fetch([f"{closed_port}/file.gz"], tmp_path / "mnist" / "file.gz", CHECKSUM, timeout=5)
    for part in ("file.gz", f"{closed_port}/file.gz", str(tmp_path / "mnist")):
        assert part in str(caught.value)
    assert not list((tmp_path / "mnist").iterdir())


def test_mirrors_are_tried_in_turn(server, closed_port, tmp_path):
    paths = ["/good/missing.gz", "/cut/file.gz", "/corrupt/file.gz", "/good/file.gz", "/unannounced/file.gz"]
    urls = [closed_port, *(server.url + path for path in paths)]
    assert fetch(urls, tmp_path / "file.gz", CHECKSUM, timeout=5).read_bytes() == CONTENT
    assert server.asked == paths[:4]


def test_all_reasons_are_told(server, tmp_path):
    urls = [server.url + path for path in ("/good/missing.gz", "/cut/file.gz", "/corrupt/file.gz")]
    reasons = r"(?s)missing.gz: .*404.*cut/file.gz: .*cut off.*corrupt/file.gz: .*checksum"
    with pytest.raises(ConnectionError, match=reasons):
        fetch(urls, tmp_path / "file.gz", CHECKSUM)


def test_an_interrupted_transfer_leaves_nothing(server, tmp_path, monkeypatch):
    class Interrupted:
        def __init__(self, **options):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def update(self, count):
            raise KeyboardInterrupt

    monkeypatch.setattr("minivit.data.download.tqdm", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch([f"{server.url}/good/file.gz"], tmp_path / "file.gz", CHECKSUM)
    assert not list(tmp_path.iterdir())


def test_the_first_existing_place_is_used_and_otherwise_the_file_is_downloaded(server, tmp_path):
    path, places = tmp_path / "file.gz", [tmp_path / "file.gz", tmp_path / "file"]
    assert provide(path, places, [f"{server.url}/good/file.gz"], CHECKSUM) == path
    path.rename(tmp_path / "file")
    assert provide(path, places, [f"{server.url}/good/file.gz"], CHECKSUM) == tmp_path / "file"
    assert len(server.asked) == 1
