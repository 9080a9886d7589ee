"""The command line of what writes generated files: write them, or with --check say which are not current."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path


def main(module: str, files: Mapping[Path, str]) -> int:
    """Write `files` (path -> content), or with --check name on stderr those that are not current and return 1."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 and name the files that are not current"
    )
    if not parser.parse_args().check:
        for path, content in files.items():
            path.write_text(content)
        return 0
    stale = [path for path, content in files.items() if not path.is_file() or path.read_text() != content]
    for path in stale:
        print(f"{path.name} is not current; run python -m {module}", file=sys.stderr)
    return 1 if stale else 0
