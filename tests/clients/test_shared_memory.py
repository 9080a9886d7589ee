"""Regions of shared memory outlive nobody who made them, and promise no memory that is not there."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from worker.clients.shared_memory import Region, remove_leftovers

_MAKER = """
import sys
from pathlib import Path
from worker.clients.shared_memory import Region
region = Region(4096, Path(sys.argv[1]))
print(region.name, flush=True)
sys.stdin.read()
"""


def test_pixels_are_written_to_the_named_file(tmp_path: Path) -> None:
    """What `fill` copies is what another process finds under the region's name."""
    region = Region(8192, tmp_path)
    pixels = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    region.fill(pixels)
    data = (tmp_path / region.name).read_bytes()
    assert data[: pixels.nbytes] == pixels.tobytes()
    assert len(data) == 8192
    region.unlink()
    assert list(tmp_path.iterdir()) == []


def test_only_the_regions_of_the_dead_are_removed(tmp_path: Path) -> None:
    """A region goes when its maker was killed, whatever process id that had; those of living makers and other files
    stay.
    """
    other = tmp_path / "assay_other"
    other.touch()
    mine = Region(4096, tmp_path)
    maker = subprocess.Popen(
        [sys.executable, "-c", _MAKER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with maker:
        assert maker.stdout is not None
        theirs = maker.stdout.readline().strip()
        remove_leftovers(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {other.name, mine.name, theirs}
        maker.send_signal(signal.SIGKILL)
    (tmp_path / "assay-1-7f0a-0").touch()  # nobody holds it
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {other.name, mine.name}


def test_memory_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    """Where the bytes cannot be had the region is an OSError that leaves no file, not a SIGBUS when the pixels come."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            Region(2 << 20, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
