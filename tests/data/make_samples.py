"""Chooses and cleans the sample images under tests/data/images, and writes their manifest and licences.

Kept so that anybody can see what was done to the originals: metadata is cut out of the container, the coded picture is
copied byte for byte and compared after decoding. Needs the collection the images came from (a folder with MANIFEST.csv
and LICENCES.md), which is not part of this repository: `python tests/data/make_samples.py COLLECTION`.
"""

import csv
import hashlib
import io
import struct
from pathlib import Path

import typer
from PIL import Image

HERE = Path(__file__).parent
EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
# Looked at one by one: open licences, no private person's face, no child, many generators, formats and sizes.
CHOSEN = """
real: 4ffb9275 30a55c26 96fab289 4a5afeaf 6c133157 5da555ac be7fe861 fa85b95a 09e55580 31c0dfef 37cc0146 4e178e52 5340356c c61b0928 d5c9505e
      4723c892 82790983 84a8fd93 8d0e3374 46fbcc5f c60aa027 722fa6b8 5f9da2f9 504b76cc 23f96339 7fdfef97 002c2b34 05f8087f 398e57d2 12ac4699
fake: d2a18bb2 eb1fa05e a0ba102a 7c22d7f1 40f845bb 919270eb 0eee02a8 162b43b1 3185f8ac 594b6a25 917c9c52 d8d9cbb3 849b616f fda11860 c8fc77e6
      302065ac 770381f2 1f23c633 fd105d0e 1cadbb23 431233a2 7656fefd 560ad8ad 7601b4b9 8677c841 ff5c8e08 623c971a f6ce34f7 e38b1066 597fbeff
"""


def strip_jpeg(data: bytes) -> bytes:
    """Without EXIF, XMP, IPTC, comments, maker segments, previews and what follows the end; JFIF, Adobe and ICC stay."""
    out, position = bytearray(data[:2]), 2
    while True:
        while data[position : position + 2] == b"\xff\xff":
            position += 1
        marker = data[position + 1]
        if marker == 0xD9:
            return bytes(out) + b"\xff\xd9"
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        segment = data[position:end]
        application = 0xE0 <= marker <= 0xEF
        if marker != 0xFE and (not application or segment[4:9] in (b"JFIF\0", b"Adobe") or segment[4:16] == b"ICC_PROFILE\0"):
            out += segment
        position = end
        if marker == 0xDA:  # the scan runs to the next marker that is neither stuffing nor a restart
            while not (data[end] == 0xFF and data[end + 1] != 0 and not 0xD0 <= data[end + 1] <= 0xD7):
                end += 1
            out += data[position:end]
            position = end


def strip_png(data: bytes) -> bytes:
    """Without text, time, EXIF and private chunks, and without what follows IEND."""
    out, position = bytearray(data[:8]), 8
    kept = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"bKGD", b"pHYs")
    while True:
        end = position + 12 + int.from_bytes(data[position : position + 4])
        kind = data[position + 4 : position + 8]
        if kind in kept:
            out += data[position:end]
        if kind == b"IEND":
            return bytes(out)
        position = end


def strip_webp(data: bytes) -> bytes:
    """Without the EXIF and XMP chunks, their flags cleared."""
    out, position = bytearray(b"WEBP"), 12
    limit = 8 + struct.unpack("<I", data[4:8])[0]
    while position + 8 <= limit:
        kind, size = data[position : position + 4], struct.unpack("<I", data[position + 4 : position + 8])[0]
        end = position + 8 + size + size % 2
        chunk = bytearray(data[position:end])
        if kind == b"VP8X":
            chunk[8] &= ~0x0C
        if kind not in (b"EXIF", b"XMP "):
            out += chunk
        position = end
    return b"RIFF" + struct.pack("<I", len(out)) + bytes(out)


STRIP = {"JPEG": strip_jpeg, "PNG": strip_png, "WEBP": strip_webp}


def pixels(data: bytes) -> tuple[str, str | None, tuple[int, int], bytes]:
    with Image.open(io.BytesIO(data)) as image:
        return image.mode, image.format, image.size, image.convert("RGB").tobytes()


def chosen_rows(collection: Path) -> list[dict[str, str]]:
    wanted = {(part.split()[0].rstrip(":"), prefix) for part in CHOSEN.strip().replace("fake:", "\0fake:").split("\0") for prefix in part.split()[1:]}
    with (collection / "MANIFEST.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["label"], row["sha256"][:8]) in wanted]
    missing = wanted - {(row["label"], row["sha256"][:8]) for row in rows}
    assert not missing, f"not in the collection: {missing}"
    assert all(row["may_commit"] == "yes" for row in rows), "only images with an open licence may be committed"
    return rows


def write_licences(rows: list[dict[str, str]], collection: Path) -> None:
    repositories = sorted({row["repo"] for row in rows}, key=str.lower)
    notes = {
        cells[1].strip(): cells[5].strip() for line in (collection / "LICENCES.md").read_text().splitlines() if len(cells := line.split("|")) > 6
    }
    lines = [
        "# Licences of the sample images",
        "",
        "Each image keeps the terms of the repository it came from; `MANIFEST.csv` names repository, commit and path of each. Metadata was",
        "removed from the files (`make_samples.py`), the pictures themselves are unchanged. The labels say how an image was made; they are no",
        "statement about the people or companies that published it.",
        "",
        "| repository | commit | licence | images | what it says there |",
        "|---|---|---|---|---|",
    ]
    for repository in repositories:
        own = [row for row in rows if row["repo"] == repository]
        licences = "; ".join(sorted({row["licence"] for row in own}))
        lines.append(f"| <https://github.com/{repository}> | {own[0]['commit'][:12]} | {licences} | {len(own)} | {notes[repository]} |")
    (HERE / "LICENCES.md").write_text("\n".join(lines) + "\n")


def main(collection: Path) -> None:
    """Write the samples anew from the folder COLLECTION."""
    rows = chosen_rows(collection)
    for row in rows:
        original = (collection / row["relpath"]).read_bytes()
        cleaned = STRIP[row["format"]](original)
        assert pixels(cleaned) == pixels(original), row["relpath"]
        row["original_sha256"], row["original_bytes"] = row["sha256"], row["bytes"]
        row["relpath"] = f"{row['label']}/{row['generator']}/{row['sha256'][:16]}.{EXTENSIONS[row['format']]}"
        row["sha256"], row["bytes"] = hashlib.sha256(cleaned).hexdigest(), str(len(cleaned))
        target = HERE / "images" / row["relpath"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(cleaned)
    with (HERE / "MANIFEST.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_licences(rows, collection)
    print(f"{len(rows)} images, {sum(int(row['bytes']) for row in rows) / 1e6:.1f} MB")


if __name__ == "__main__":
    typer.run(main)
