"""`make fuzz`: damaged images through a confined child, damaged records through the parser; a report as JSON, exit 1
where anything was found. `--images`, `--records`, `--first` and `--seed` choose which: the same give the same.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import typer

from tests.fuzz.images import ROOT, fuzz
from tests.fuzz.mutants import mutant
from tests.fuzz.records import fuzz_records

CHILDREN = 2
FOUND = ROOT / ".assay" / "fuzz"


def main(images: int = 100_000, records: int = 10_000, first: int = 0, seed: int = 0) -> None:
    """Damaged images through a confined child, damaged records through the parser."""
    each = -(-images // CHILDREN)
    with ThreadPoolExecutor(CHILDREN) as pool:
        parts = [pool.submit(fuzz, first + n * each, each, seed) for n in range(CHILDREN)]
        fuzzed = [part.result() for part in parts]
    parsed = fuzz_records(records, seed)
    findings = [finding for found in fuzzed for finding in found.findings]
    _keep(findings, seed)
    print(json.dumps({"images": [found.report() for found in fuzzed], "records": parsed}, indent=2))
    raise typer.Exit(1 if findings or parsed["findings"] else 0)


def _keep(findings: list[dict[str, object]], seed: int) -> None:
    """What was found, as files to look at."""
    FOUND.mkdir(parents=True, exist_ok=True)
    for finding in findings:
        number = int(str(finding["image"]))
        (Path(FOUND) / f"{seed}-{number}").write_bytes(mutant(number, seed))


if __name__ == "__main__":
    typer.run(main)
