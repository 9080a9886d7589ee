"""`make fuzz`: damaged images through a confined child, damaged records through the parser; a report as JSON, exit 1
where anything was found. `--images`, `--records`, `--first` and `--seed` choose which: the same give the same.
"""

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.images import ROOT, Found, fuzz
from tests.fuzz.mutants import mutant
from tests.fuzz.records import fuzz_records

CHILDREN = 2
FOUND = ROOT / ".assay" / "fuzz"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    each = -(-args.images // CHILDREN)
    with ThreadPoolExecutor(CHILDREN) as pool:
        parts = [pool.submit(fuzz, args.first + n * each, each, args.seed) for n in range(CHILDREN)]
        images = [part.result() for part in parts]
    records = fuzz_records(args.records, args.seed)
    findings = [finding for found in images for finding in found.findings]
    _keep(findings, args.seed)
    print(json.dumps({"images": [_told(found) for found in images], "records": records}, indent=2))
    return 1 if findings or records["findings"] else 0


def _told(found: Found) -> dict[str, object]:
    return found.report()


def _keep(findings: list[dict[str, object]], seed: int) -> None:
    """What was found, as files to look at."""
    FOUND.mkdir(parents=True, exist_ok=True)
    for finding in findings:
        number = int(str(finding["image"]))
        (Path(FOUND) / f"{seed}-{number}").write_bytes(mutant(number, seed))


if __name__ == "__main__":
    sys.exit(main())
