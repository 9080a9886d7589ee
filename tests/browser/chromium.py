"""A Chromium for the tests: the one on PATH, else Debian's packages unpacked below `.assay/tools`, without root.

    .venv/bin/python -m tests.browser.chromium     # install it ahead of the tests (`make setup-all` does), 1 minute

Packages that the machine has already are not unpacked again.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.deploy.tools import HOME, Missing, _install, _run

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FOLDER = "chromium-debian"
INSTALL = "install it: sudo apt-get install chromium"
_PACKAGE = re.compile(r"^Inst (\S+) ", re.MULTILINE)


def chromium() -> tuple[Path, dict[str, str]]:
    """(the program, variables that it needs). Raises Missing."""
    for name in NAMES:
        if (found := shutil.which(name)) and _runs(Path(found), {}):
            return Path(found), {}
    home = _install(FOLDER, _unpack)
    program = home / "usr" / "lib" / "chromium" / "chromium"
    variables = {
        "LD_LIBRARY_PATH": ":".join(sorted({str(library.parent) for library in home.rglob("*.so*")})),
        "XDG_DATA_DIRS": str(home / "usr" / "share"),
        "FONTCONFIG_FILE": str(home / "fonts.conf"),
    }
    if not _runs(program, variables):
        raise Missing(f"{program} does not start; {INSTALL}")
    return program, variables


def _runs(program: Path, variables: dict[str, str]) -> bool:
    try:
        done = subprocess.run(
            [program, "--version"], env={**os.environ, **variables}, capture_output=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _unpack(out: Path) -> None:
    """Every package that apt would install for chromium and that is not here yet, unpacked into `out`."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise Missing(f"there is no Chromium on PATH, and no apt-get that could bring one; {INSTALL}")
    with tempfile.TemporaryDirectory() as work:
        # Lists of its own: those of the system may be missing or old, and only root may renew them.
        for folder in ("lists/partial", "cache/archives/partial"):
            (Path(work) / folder).mkdir(parents=True)
        own = [
            "-o",
            f"Dir::State::lists={work}/lists",
            "-o",
            f"Dir::Cache={work}/cache",
            "-o",
            "Debug::NoLocking=1",
            "-o",
            "APT::Sandbox::User=",
        ]
        _run(["apt-get", *own, "-q", "update"])
        wanted = _run(
            ["apt-get", *own, "-s", "-q", "--no-install-recommends", "install", "chromium", "fonts-dejavu-core"]
        )
        packages = _PACKAGE.findall(wanted)
        if "chromium" not in packages:
            raise Missing(f"apt has no Chromium that could be unpacked here; {INSTALL}")
        _run(["apt-get", *own, "-q", "download", *packages], cwd=Path(work))
        for package in sorted(Path(work).glob("*.deb")):
            _run(["dpkg", "-x", str(package), str(out)])
    fonts = f"<dir>{HOME / FOLDER}/usr/share/fonts</dir><dir>/usr/share/fonts</dir>"
    (out / "fonts.conf").write_text(
        f'<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd"><fontconfig>{fonts}</fontconfig>\n'
    )


def main() -> int:
    """Install it; exit 0 also where that cannot be: the test that needs it is skipped then, with the reason."""
    try:
        program, _ = chromium()
    except Missing as error:
        print(f"setup: the report is not opened in a browser by the tests: {error}")
    else:
        print(f"setup: browser for the tests: {program}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
