"""file:// references on a real file system."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from worker.clients.fetch import Fetcher
from worker.contract import ImageReference
from worker.errors import Rejected, RejectReason, Unavailable
from worker.settings import LimitSettings, ReferenceSettings

LIMIT = 1000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "root" / "a b.jpg").write_bytes(b"image")
    (tmp_path / "secret").write_bytes(b"secret")
    return tmp_path / "root"


def fetcher(*roots: Path) -> Fetcher:
    return Fetcher(
        ReferenceSettings(schemes=["file"], file_roots=[str(root) for root in roots]),
        LimitSettings(max_image_bytes=LIMIT),
    )


def fetch(uri: str, *roots: Path, sha256: str | None = None) -> bytes:
    return fetcher(*roots).fetch(ImageReference(uri=uri, sha256=sha256))


def refusal(uri: str, *roots: Path, sha256: str | None = None) -> RejectReason:
    with pytest.raises(Rejected) as caught:
        fetch(uri, *roots, sha256=sha256)
    return caught.value.reason


def test_reads_below_a_root(root: Path) -> None:
    """A file below an allowed folder is read, percent-encoding undone, its hash verified in either case."""
    digest = hashlib.sha256(b"image").hexdigest()
    assert fetch(f"file://{root}/a%20b.jpg", root, sha256=digest.upper()) == b"image"
    assert fetch(f"file://localhost{root}/sub/../a b.jpg", root.parent / "other", root) == b"image"


def test_another_hash_is_a_mismatch(root: Path) -> None:
    """Bytes that differ from the promised hash are refused."""
    assert refusal(f"file://{root}/a b.jpg", root, sha256="0" * 64) is RejectReason.HASH_MISMATCH


@pytest.mark.parametrize(
    "path", ["../secret", "sub/../../secret", "%2e%2e/secret", "../nothing", "link", "dir/secret", "dangling", ""]
)
def test_nothing_outside_of_the_roots_is_read(root: Path, path: str) -> None:
    """Dots and links that lead outside are denied, whether or not there is something to find; so is the root itself."""
    (root / "link").symlink_to(root.parent / "secret")
    (root / "dir").symlink_to(root.parent)
    (root / "dangling").symlink_to(root.parent / "nothing")
    assert refusal(f"file://{root}/{path}".removesuffix("/"), root) is RejectReason.FETCH_DENIED


def test_a_sibling_with_the_same_beginning_is_outside(root: Path) -> None:
    """/x/root-2 is not below /x/root."""
    other = root.with_name("root-2")
    other.mkdir()
    (other / "a").write_bytes(b"x")
    assert refusal(f"file://{other}/a", root) is RejectReason.FETCH_DENIED


def test_links_inside_and_a_linked_root_are_fine(root: Path) -> None:
    """Links are resolved on both sides before they are compared."""
    (root / "sub" / "link").symlink_to(root / "a b.jpg")
    alias = root.with_name("alias")
    alias.symlink_to(root)
    assert fetch(f"file://{alias}/sub/link", alias) == b"image"
    assert fetch(f"file://{root}/sub/link", alias) == b"image"


def test_a_link_swapped_during_the_fetch_reads_nothing_else(root: Path) -> None:
    """While another thread swaps a file for a link to a secret, only the file's bytes or a refusal come out."""
    stop = threading.Event()
    path = root / "swap"

    def swap() -> None:
        spare = root / "spare"
        while not stop.is_set():
            spare.write_bytes(b"image")
            spare.replace(path)
            spare.symlink_to(root.parent / "secret")
            spare.replace(path)

    path.write_bytes(b"image")
    thread = threading.Thread(target=swap)
    thread.start()
    reader = fetcher(root)
    seen = set()
    try:
        for _ in range(2000):
            try:
                seen.add(reader.fetch(ImageReference(uri=f"file://{path}")))
            except Rejected as rejected:
                seen.add(rejected.reason)
    finally:
        stop.set()
        thread.join()
    assert seen <= {b"image", RejectReason.FETCH_DENIED, RejectReason.EMPTY}
    assert b"secret" not in seen


@pytest.mark.parametrize("name", ["missing", "sub", "fifo", "a b.jpg/x", "loop", "x" * 300])
def test_what_is_no_readable_regular_file_fails(root: Path, name: str) -> None:
    """A missing file, a folder, a FIFO (without waiting for its writer), a loop and an impossible name fail."""
    os.mkfifo(root / "fifo")
    (root / "loop").symlink_to(root / "loop")
    assert refusal(f"file://{root}/{name}", root) is RejectReason.FETCH_FAILED


def test_a_device_fails() -> None:
    """A device is looked at, not opened."""
    assert refusal("file:///dev/null", Path("/dev")) is RejectReason.FETCH_FAILED


def test_size_limit_and_empty_file(root: Path) -> None:
    """The limit itself is allowed, one byte more is not; nothing at all is `empty`."""
    for size in (0, LIMIT, LIMIT + 1):
        (root / str(size)).write_bytes(b"x" * size)
    assert len(fetch(f"file://{root}/{LIMIT}", root)) == LIMIT
    assert refusal(f"file://{root}/{LIMIT + 1}", root) is RejectReason.TOO_LARGE
    assert refusal(f"file://{root}/0", root) is RejectReason.EMPTY


def test_a_file_larger_than_it_says_is_cut_off() -> None:
    """A file of the proc kind declares 0 bytes: the limit holds while reading too."""
    settings = ReferenceSettings(schemes=["file"], file_roots=["/proc"])
    with pytest.raises(Rejected) as caught:
        Fetcher(settings, LimitSettings(max_image_bytes=3)).fetch(ImageReference(uri="file:///proc/version"))
    assert caught.value.reason is RejectReason.TOO_LARGE


def test_a_root_that_is_gone_is_waited_for(root: Path) -> None:
    """An allowed folder that is not mounted is the system's fault, not the image's."""
    with pytest.raises(Unavailable, match="gone is not there"):
        fetch(f"file://{root}/gone/a.jpg", root / "gone")


def test_no_descriptor_is_left_open(root: Path) -> None:
    """Reads and refusals alike give their descriptors back."""
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    for name in ("a b.jpg", "missing", "sub", "../secret"):
        for _ in range(5):
            try:
                fetch(f"file://{root}/{name}", root)
            except Rejected:
                continue
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before
