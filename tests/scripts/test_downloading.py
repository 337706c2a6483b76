"""Downloads from a local server that breaks off, changes its file, ignores ranges or lies."""

import hashlib
import http.server
import io
import re
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest

from scripts.download_pretrained import DownloadError, download, download_from_drive, unpack

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SCRIPT = Path(__file__).parents[2] / "scripts" / "download_pretrained.py"


class Server(http.server.ThreadingHTTPServer):
    """Serves ``content``; ``breaks`` of the next answers end half-way, or at once."""

    def __init__(self, content=CONTENT):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.breaks, self.ranges, self.tag, self.asked = content, 0, True, '"1"', []
        self.share = 0.5
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/pretrained.tar"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        if self.path != "/pretrained.tar":
            self.send_error(404)
            return
        match = re.fullmatch(r"bytes=(\d+)-", asked or "")
        valid = match and server.ranges and self.headers.get("If-Range") == server.tag
        start = int(match[1]) if valid else 0
        if start >= len(server.content) > 0:
            self.send_error(416)
            return
        self.send_response(206 if valid else 200)
        if valid:
            self.send_header(
                "Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}"
            )
        if server.tag:
            self.send_header("ETag", server.tag)
        body = server.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.breaks:
            server.breaks -= 1
            body = body[: int(len(body) * server.share)]
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    made = Server()
    yield made
    made.shutdown()
    made.server_close()


def test_a_download_arrives_whole_and_leaves_nothing_beside(server, tmp_path):
    assert download(server.url, tmp_path / "a" / "x.tar", size=len(CONTENT), sha256=SHA256) == SHA256
    assert (tmp_path / "a" / "x.tar").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.tar"]


def test_a_connection_that_breaks_off_is_gone_on_with_where_it_stopped(server, tmp_path):
    server.breaks = 3
    counted = []
    download(server.url, tmp_path / "x.tar", sha256=SHA256, progress=counted.append)
    assert (tmp_path / "x.tar").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=150000-", "bytes=225000-", "bytes=262500-"]


def test_a_server_that_stays_broken_is_given_up_and_another_call_goes_on(server, tmp_path):
    server.breaks = 1
    server.share = 0.5
    url = server.url
    with pytest.raises(
        DownloadError, match=r"broke off 5 times in a row .* the same command goes on"
    ) as caught:
        download_then_stop(server, url, tmp_path / "x.tar")
    assert str(tmp_path / "x.tar.part") in str(caught.value)
    assert not (tmp_path / "x.tar").exists()
    assert (tmp_path / "x.tar.part").stat().st_size == 150_000
    server.breaks, server.asked = 0, []
    download(url, tmp_path / "x.tar", sha256=SHA256)
    assert server.asked == ["bytes=150000-"]
    assert (tmp_path / "x.tar").read_bytes() == CONTENT


def download_then_stop(server, url, target):
    """Download, where every answer after the first, broken one ends at once."""

    def stop(_):
        server.breaks, server.share = 100, 0.0

    download(url, target, progress=stop)


def test_a_file_that_changed_on_the_server_is_begun_anew_not_joined(server, tmp_path):
    (tmp_path / "x.tar.part").write_bytes(b"old" * 1000)
    (tmp_path / "x.tar.part.json").write_text('"\\"0\\""')
    download(server.url, tmp_path / "x.tar", sha256=SHA256)
    assert server.asked == ["bytes=3000-"]
    assert (tmp_path / "x.tar").read_bytes() == CONTENT


@pytest.mark.parametrize("tag", [None, 'W/"1"'])
def test_without_a_mark_that_tells_versions_apart_it_is_begun_anew(server, tmp_path, tag):
    server.tag, server.breaks = tag, 1
    download(server.url, tmp_path / "x.tar", sha256=SHA256)
    assert server.asked == [None, None]


def test_a_server_that_ignores_ranges_sends_everything_again(server, tmp_path):
    server.ranges, server.breaks = False, 1
    download(server.url, tmp_path / "x.tar", sha256=SHA256)
    assert (tmp_path / "x.tar").read_bytes() == CONTENT


def test_a_part_that_is_complete_already_is_not_joined_to_anything(server, tmp_path):
    (tmp_path / "x.tar.part").write_bytes(CONTENT)
    (tmp_path / "x.tar.part.json").write_text('"\\"1\\""')
    download(server.url, tmp_path / "x.tar", sha256=SHA256)
    assert (tmp_path / "x.tar").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("options", "message"),
    [({"size": 5}, "has 300000 bytes, not 5"), ({"sha256": "0" * 64}, f"has the SHA-256 {SHA256}, not 0000")],
)
def test_another_size_or_hash_is_refused_and_what_came_is_removed(server, tmp_path, options, message):
    with pytest.raises(DownloadError, match=message):
        download(server.url, tmp_path / "x.tar", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_and_a_strange_address_are_refused_at_once(server, tmp_path):
    with pytest.raises(DownloadError, match="the server answered 404"):
        download(server.url + "x", tmp_path / "x.tar")
    assert len(server.asked) == 1
    with pytest.raises(DownloadError, match="a download's address begins with https"):
        download("ftp://x/y.tar", tmp_path / "x.tar")


def archive(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as opened:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_an_archive_is_unpacked_whole_or_not_at_all(tmp_path):
    good = archive({"task/diffusion/a/x.pkl": b"1"})
    (tmp_path / "good.tar").write_bytes(good)
    unpack(tmp_path / "good.tar", tmp_path / "out")
    assert (tmp_path / "out/task/diffusion/a/x.pkl").read_bytes() == b"1"
    for name, content in (("words", b"no archive"), ("cut", archive({"a": b"1" * 5000})[:1500])):
        (tmp_path / f"{name}.tar").write_bytes(content)
        with pytest.raises(DownloadError, match="cannot be unpacked"):
            unpack(tmp_path / f"{name}.tar", tmp_path / name)
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["../escaped.txt", "/tmp/escaped-from-the-archive.txt"])
def test_a_name_that_leads_outside_writes_nothing_there(tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/bad.tar").write_bytes(archive({name: b"1"}))
    try:
        unpack(tmp_path / "in/bad.tar", tmp_path / "in/out")
    except DownloadError:
        assert not (tmp_path / "in/out").exists()
    assert not (tmp_path / "in/escaped.txt").exists()
    assert not (tmp_path / "escaped.txt").exists()
    assert not Path("/tmp/escaped-from-the-archive.txt").exists()


def test_google_drive_without_gdown_names_the_extra_and_the_mirror(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(DownloadError, match=r"pip install 'trebi-gym\[download\]', or pass --url"):
        download_from_drive("x", tmp_path / "x.tar")


def test_the_script_downloads_over_a_broken_connection_and_says_what_comes_next(server, tmp_path):
    server.content = archive({"hopper-medium-v2/diffusion/a/state_0.pt": CONTENT})
    server.breaks = 2
    digest = hashlib.sha256(server.content).hexdigest()
    command = [
        sys.executable,
        str(SCRIPT),
        "--url",
        server.url,
        "--output",
        str(tmp_path / "pretrained"),
        "--sha256",
        digest,
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert digest in result.stdout
    assert f"next: trebi import diffuser {tmp_path / 'pretrained/hopper-medium-v2'}" in result.stdout
    assert (tmp_path / "pretrained/hopper-medium-v2/diffusion/a/state_0.pt").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["pretrained"]
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2
    assert "exists already; delete it, or choose another --output" in again.stderr


class Liar(Handler):
    """Answers a request for the rest in a way that no server should."""

    def do_GET(self):
        server = self.server
        if self.headers.get("Range") is None:
            super().do_GET()
            return
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        body, tag, said = server.answer(start)
        server.asked.append(self.headers["Range"])
        self.send_response(206)
        if said is not None:
            self.send_header("Content-Range", said)
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


OTHER = np.random.default_rng(1).bytes(len(CONTENT))


@pytest.mark.parametrize(
    "answer",
    [
        lambda start: (OTHER[start:], '"2"', f"bytes {start}-{len(OTHER) - 1}/{len(OTHER)}"),
        lambda start: (CONTENT[start:], '"1"', None),
        lambda start: (CONTENT[start + 9 :], '"1"', f"bytes {start + 9}-{len(CONTENT) - 1}/{len(CONTENT)}"),
    ],
    ids=["another file", "no range", "another place"],
)
def test_a_piece_that_is_not_the_rest_of_the_same_file_is_never_joined(server, tmp_path, answer):
    server.RequestHandlerClass, server.answer, server.breaks = Liar, answer, 1
    download(server.url, tmp_path / "x.tar", sha256=SHA256)
    assert (tmp_path / "x.tar").read_bytes() == CONTENT


def test_a_piece_that_stops_short_of_what_it_announced_is_not_taken_for_the_whole(server, tmp_path):
    server.RequestHandlerClass, server.breaks = Liar, 1
    whole = len(CONTENT)
    server.answer = lambda start: (
        CONTENT[start : start + 50_000],
        '"1"',
        f"bytes {start}-{whole - 1}/{whole}",
    )
    download(server.url, tmp_path / "x.tar", sha256=SHA256)
    assert server.asked == [None, "bytes=150000-", "bytes=200000-", "bytes=250000-"]


def test_an_archive_that_was_cut_between_two_files_is_not_unpacked(tmp_path):
    with tarfile.open(tmp_path / "whole.tar", "w") as archive:
        for name in "abc":
            info = tarfile.TarInfo(name)
            info.size = 512
            archive.addfile(info, io.BytesIO(name.encode() * 512))
    whole = (tmp_path / "whole.tar").read_bytes()
    assert [path.name for path in unpack(tmp_path / "whole.tar", tmp_path / "there")] == ["a", "b", "c"]
    (tmp_path / "cut.tar").write_bytes(whole[:1024])
    with pytest.raises(DownloadError, match="its end is missing, it was cut short"):
        unpack(tmp_path / "cut.tar", tmp_path / "not")
    assert not (tmp_path / "not").exists()
