"""A local web server of photographs that misbehaves in every way, and tables of links to it."""

import io
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from train.data.download import Downloader, DownloadLimits
from train.data.synthetic import synthetic_record

LIMITS = DownloadLimits(
    concurrency=4, timeout_s=30, attempts=2, backoff_s=0.01, max_bytes=200_000, max_redirects=2, allow_private=True
)


BAD_REDIRECTS = {
    "far": "http://127.0.0.1:99999/ok/1",
    "spaced": "http://a b/ok/1",
    "split": "http://[::1/ok/1",
    "ftp": "ftp://x/ok/1",
    "nowhere": "",
}


class Server(ThreadingHTTPServer):
    """Serves /ok/<n>, and under other paths what goes wrong on the web; counts the requests by path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: dict[str, int] = {}
        self.hosts: list[str] = []
        self.ended = threading.Event()
        self.down = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.hosts.append(self.headers["host"])
        self.server.asked[self.path] = self.server.asked.get(self.path, 0) + 1
        kind = self.path.split("/")[1]
        image = synthetic_record(int(self.path.rsplit("/", maxsplit=1)[1])).images["real"]
        if self.server.down:
            self.close_connection = True  # without a word, as where a link is cut
        elif kind == "slow":
            self.server.ended.wait(60)
        elif kind == "moved":
            self.answer(302, b"", location=self.path.replace("moved", "ok"))
        elif kind == "away":
            self.answer(302, b"", location=f"http://inside.example:{self.server.server_port}/ok/1")
        elif kind in BAD_REDIRECTS:
            self.answer(302, b"", location=BAD_REDIRECTS[kind])
        elif kind == "loop":
            self.answer(302, b"", location=self.path)
        elif kind == "gone":
            self.answer(404, b"not found")
        elif kind == "busy":
            self.answer(503 if self.server.asked[self.path] == 1 else 200, image)
        elif kind == "html":
            self.answer(200, b"<html>sorry</html>")
        elif kind == "huge":
            self.answer(200, b"x" * 300_000)
        elif kind == "cut":
            self.send_response(200)
            self.send_header("content-length", str(len(image)))
            self.end_headers()
            self.wfile.write(image[: len(image) // 2])
        elif kind == "pixel":
            self.answer(200, synthetic_record(1, size=8).images["real"])
        elif kind == "halfimage":
            self.answer(200, image[: len(image) // 2])
        else:
            self.answer(200, image)

    def answer(self, status: int, body: bytes, location: str | None = None) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        if location is not None:
            self.send_header("location", location)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


KINDS = ["ok", "moved", "gone", "busy", "html", "huge", "cut", "halfimage", "gone", "loop", "ok", "ok"]


def write_rows(path: Path, urls: list[str], first: int = 0) -> None:
    """Parquet in D3's schema: four PNG or GIF fakes a row, no image column for the real; ids count from `first`."""
    rows = []
    for index, url in enumerate(urls, start=first):
        record = synthetic_record(index, size=32)
        row = {
            "id": f"{index:04d}",
            "original_prompt": f"prompt {index}",
            "positive_prompt": "p",
            "negative_prompt": "n",
            "url": url,
        }
        for k in range(4):
            data = record.images[f"gen_{k}"]
            if k == 3:
                buffer = io.BytesIO()
                Image.open(io.BytesIO(data)).save(buffer, "GIF")
                data = buffer.getvalue()
            row |= {
                f"model_gen{k}": f"m{k}",
                f"width_gen{k}": 32,
                f"height_gen{k}": 32,
                f"num_inference_steps_gen{k}": 50,
                f"filepath_gen{k}": "f",
            }
            row[f"image_gen{k}"] = {"bytes": data, "path": None}
        rows.append(row)
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)


def download_all(urls: list[str], limits: DownloadLimits, **options: object) -> list[bytes | str]:
    """What each URL ends as, in order."""
    results: dict[int, bytes | str] = {}
    with Downloader(limits, **options) as downloader:
        for future in [downloader.submit(url, partial(results.__setitem__, index)) for index, url in enumerate(urls)]:
            future.result()
    return [results[index] for index in range(len(urls))]
