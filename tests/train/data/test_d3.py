"""D3 from parquet with its real images from a local web server that misbehaves in every way."""

import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from tests.train.data.d3_server import KINDS, LIMITS, Server, write_rows
from train.data import commands, d3, download
from train.data.d3 import build_shards
from train.data.d3_rows import D3Rows
from train.data.images import DataError
from train.data.open import open_source
from train.data.shards import open_shards
from train.data.synthetic import synthetic_record


@pytest.fixture
def rows(server: Server, tmp_path: Path) -> Path:
    write_rows(tmp_path / "d3.parquet", [f"{server.url}/{kind}/{index}" for index, kind in enumerate(KINDS)])
    return tmp_path / "d3.parquet"


def test_one_odd_link_does_not_stop_the_build(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that there is not, and an error nobody thought of, are recorded failures of their links; the others'
    images are kept.
    """
    true_decode = download.decode_image

    def decode(data: bytes) -> Image.Image:
        if data == synthetic_record(2).images["real"]:
            raise ZeroDivisionError("in the decoder")
        return true_decode(data)

    monkeypatch.setattr(download, "decode_image", decode)
    write_rows(tmp_path / "d3.parquet", ["http://127.0.0.1:99999/ok/0", f"{server.url}/ok/1", f"{server.url}/ok/2"])
    manifest = build_shards(str(tmp_path / "d3.parquet"), tmp_path / "out", limits=LIMITS)
    assert manifest["records"] == 1
    assert manifest["failures"] == {"invalid URL": 1, "unforeseen ZeroDivisionError": 1}


def test_shards_hold_what_could_be_had_and_the_manifest_the_rest(rows: Path, tmp_path: Path) -> None:
    """Original bytes of real and fakes in blocks, with counts, hashes and the reason for every row that is missing."""
    manifest = build_shards(str(rows), tmp_path / "out", records_per_shard=5, limits=LIMITS)
    assert [entry["rows"] for entry in manifest["shards"]] == [5, 5, 2]
    assert (manifest["rows"], manifest["records"]) == (12, 5)
    assert manifest["failures"] == {
        "dead link 404": 2,
        "not an image": 2,
        "larger than 200000 bytes": 1,
        "broke off": 1,
        "too many redirects": 1,
    }
    source = open_shards(tmp_path / "out")
    assert [str(identity)[-4:] for identity in source.ids] == ["0000", "0001", "0003", "0010", "0011"]
    assert source.key(2, 0).read() == synthetic_record(3).images["real"]
    assert source.key(2, 1).read() == synthetic_record(3, size=32).images["gen_0"]
    failures = [
        json.loads(line)
        for path in sorted((tmp_path / "out").glob("*.failures.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert len(failures) == 7 and all(failure["url"].startswith("http") for failure in failures)
    assert list((tmp_path / "out" / ".staging").iterdir()) == []


def test_interrupted_run_goes_on_without_loss_or_duplicates(
    rows: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the third block and started again: the same shards as in one go, and no finished download is asked for
    again.
    """
    whole = build_shards(str(rows), tmp_path / "whole", records_per_shard=5, limits=LIMITS)
    server.asked.clear()
    true_fakes, written = d3._fakes, []

    def killed(row: dict) -> object:
        written.append(row["id"])
        if len(written) == 4:
            raise KeyboardInterrupt
        return true_fakes(row)

    with monkeypatch.context() as patch:
        patch.setattr(d3, "_fakes", killed)
        with pytest.raises(KeyboardInterrupt):
            build_shards(str(rows), tmp_path / "parts", records_per_shard=5, limits=replace(LIMITS, concurrency=1))
    before = dict(server.asked)
    # The kill came at row 10. The download of row 11 was queued or under way then, so that it may be asked for twice.
    finished = [path for path in before if not path.endswith("/11")]
    assert {f"/{kind}/{index}" for index, kind in enumerate(KINDS[:11])} <= set(finished)
    resumed = build_shards(str(rows), tmp_path / "parts", records_per_shard=5, limits=LIMITS)
    assert resumed["shards"] == whole["shards"]
    assert {path: server.asked[path] for path in finished} == {path: before[path] for path in finished}
    one, other = open_shards(tmp_path / "whole"), open_shards(tmp_path / "parts")
    assert np.array_equal(one.ids, other.ids)
    assert build_shards(str(rows), tmp_path / "parts", records_per_shard=5, limits=LIMITS)["shards"] == whole["shards"]


def test_a_failure_noted_after_a_cut_line_is_read_again(tmp_path: Path) -> None:
    """A power cut or a full disk may leave half a line: what is noted after it counts, and nothing ends in an error."""
    (tmp_path / "failed.jsonl").write_text('{"id": "a", "reas')
    d3._stage(tmp_path, "b", {}, "dead link 404")
    d3._stage(tmp_path, "c", {}, "dead link 410")
    assert d3._read_failures(tmp_path) == {"b": "dead link 404", "c": "dead link 410"}


@pytest.mark.slow
def test_a_network_outage_stops_the_run_and_costs_no_record(rows: Path, server: Server, tmp_path: Path) -> None:
    """So many failures in a row as no links have: the run says that the network is down, and ends with the same shards
    when it is up again.
    """
    whole = build_shards(str(rows), tmp_path / "whole", records_per_shard=5, limits=LIMITS)
    limits = replace(LIMITS, concurrency=1, attempts=1, max_unanswered=4)
    build_shards(str(rows), tmp_path / "parts", records_per_shard=5, limit=5, limits=LIMITS)
    server.down = True
    for _ in range(2):
        with pytest.raises(DataError, match=r"network seems to be down.*goes on") as caught:
            build_shards(str(rows), tmp_path / "parts", records_per_shard=5, limits=limits)
        assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "parts").glob("*.tar")] == ["shard-000000.tar"]
    server.down = False
    resumed = build_shards(str(rows), tmp_path / "parts", records_per_shard=5, limits=LIMITS)
    assert [entry["sha256"] for entry in resumed["shards"]] == [entry["sha256"] for entry in whole["shards"]]
    assert resumed["failures"] == whole["failures"]


@pytest.mark.slow
def test_failures_amid_successes_can_be_tried_again(rows: Path, server: Server, tmp_path: Path) -> None:
    """--retry-failed asks again for what did not answer, for nothing else, and ends with the shards of a day without
    trouble.
    """
    whole = build_shards(str(rows), tmp_path / "whole", records_per_shard=5, limits=LIMITS)
    server.asked.clear()
    before = build_shards(str(rows), tmp_path / "parts", records_per_shard=5, limits=replace(LIMITS, attempts=1))
    assert before["failures"]["server error 503"] == 1 and before["records"] == whole["records"] - 1
    asked = dict(server.asked)
    plain = build_shards(str(rows), tmp_path / "parts", records_per_shard=5, limits=LIMITS)
    assert (plain["records"], server.asked) == (before["records"], asked)
    again = build_shards(str(rows), tmp_path / "parts", records_per_shard=5, limits=LIMITS, retry_failed=True)
    assert again == whole
    assert {path for path, count in server.asked.items() if count > asked[path]} == {"/busy/3", "/cut/6"}
    source = open_shards(tmp_path / "parts")
    assert source.key(2, 0).read() == synthetic_record(3).images["real"]
    assert list((tmp_path / "parts" / ".staging").iterdir()) == []


def test_ids_that_make_no_file_names_stay_distinct(server: Server, tmp_path: Path) -> None:
    """Long ids, and ids alike once made into a name, have records of their own, also in the tar; plain ones keep their
    name.
    """
    identities = ["plain", "a/b", "a_b", "x" * 90 + "1", "x" * 90 + "2", "ä", "."]
    write_rows(tmp_path / "d3.parquet", [f"{server.url}/ok/{index}" for index in range(len(identities))])
    table = parquet.read_table(tmp_path / "d3.parquet")
    parquet.write_table(table.set_column(0, "id", pa.array(identities)), tmp_path / "d3.parquet")
    manifest = build_shards(str(tmp_path / "d3.parquet"), tmp_path / "out", split="validation", limits=LIMITS)
    assert (manifest["records"], manifest["failures"]) == (len(identities), {})
    ids = [str(identity) for identity in open_shards(tmp_path / "out").ids]
    assert ids[0] == "elsa_v2__validation__plain" and len(set(ids)) == len(identities)


def test_a_row_without_prompt_has_an_empty_caption(server: Server, tmp_path: Path) -> None:
    """Null is no prompt: the caption is empty, not the word None."""
    write_rows(tmp_path / "d3.parquet", [f"{server.url}/ok/1"])
    table = parquet.read_table(tmp_path / "d3.parquet")
    parquet.write_table(table.set_column(1, "original_prompt", pa.array([None], pa.string())), tmp_path / "d3.parquet")
    build_shards(str(tmp_path / "d3.parquet"), tmp_path / "out", limits=LIMITS)
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        assert tar.getmember("elsa_v2__train__0000.caption.txt").size == 0


@pytest.mark.parametrize("content", ["", '{"shards": [', "[]", "{}"])
def test_a_damaged_manifest_is_one_line(content: str, rows: Path, tmp_path: Path) -> None:
    """A manifest that is cut off or something else is named, with what to do, and stays as it is."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json is no whole manifest.*another folder"):
        build_shards(str(rows), tmp_path / "out", limits=LIMITS)
    assert (tmp_path / "out" / "manifest.json").read_text() == content


def test_parts_make_the_whole(server: Server, tmp_path: Path) -> None:
    """Each of two parts takes files of its own, goes on by itself where it was stopped, and the folder above both is
    one set of all records; more parts than files are a clear error.
    """
    (tmp_path / "rows").mkdir()
    for file in range(3):
        urls = [f"{server.url}/ok/{index}" for index in range(4 * file, 4 * file + 4)]
        write_rows(tmp_path / "rows" / f"{file}.parquet", urls, first=4 * file)
    source, out = str(tmp_path / "rows"), tmp_path / "out"
    build_shards(source, out / "part-001-of-002", part=(1, 2), records_per_shard=3, limit=3, limits=LIMITS)
    counts = [
        build_shards(source, out / f"part-{part:03d}-of-002", part=(part, 2), records_per_shard=3, limits=LIMITS)
        for part in (1, 2)
    ]
    assert [manifest["rows"] for manifest in counts] == [8, 4]
    ids = sorted(str(identity)[-4:] for identity in open_source(out).ids)
    assert ids == [f"{index:04d}" for index in range(12)]
    with pytest.raises(DataError, match="3 files cannot be shared by 4 parts"):
        build_shards(source, out / "other", part=(1, 4), limits=LIMITS)
    with pytest.raises(DataError, match="part '1/2', not '2/2'"):
        build_shards(source, out / "part-001-of-002", part=(2, 2), records_per_shard=3, limits=LIMITS)
    for text in ("0/2", "3/2", "2", "a/b"):
        with pytest.raises(DataError, match="expected I/N"):
            commands._part(text)


def test_a_limited_run_can_be_extended(rows: Path, tmp_path: Path) -> None:
    """A run stopped by --limit within a block goes on behind its last row."""
    build_shards(str(rows), tmp_path / "out", records_per_shard=5, limit=2, limits=LIMITS)
    manifest = build_shards(str(rows), tmp_path / "out", records_per_shard=5, limits=LIMITS)
    assert [entry["rows"] for entry in manifest["shards"]] == [2, 5, 5]
    assert [str(identity)[-4:] for identity in open_shards(tmp_path / "out").ids] == [
        "0000",
        "0001",
        "0003",
        "0010",
        "0011",
    ]


def test_wrong_sources_give_one_clear_line(rows: Path, tmp_path: Path) -> None:
    """No such file, another schema, and a folder begun with other values are DataErrors that say so."""
    with pytest.raises(DataError, match="neither"):
        D3Rows(str(tmp_path / "none.parquet"))
    parquet.write_table(pa.Table.from_pylist([{"id": "1", "url": "x"}]), tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"image_gen0.* missing"):
        D3Rows(str(tmp_path / "other.parquet"))
    numbers = dict.fromkeys(parquet.read_schema(rows).names, 1) | {"id": "1"}
    parquet.write_table(pa.Table.from_pylist([numbers]), tmp_path / "numbers.parquet")
    with pytest.raises(DataError, match=r"numbers\.parquet: .*expected the schema"):
        list(D3Rows(str(tmp_path / "numbers.parquet")))
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(DataError, match=r"pipe\.parquet is no regular file"):
        D3Rows(str(tmp_path))
    build_shards(str(rows), tmp_path / "out", records_per_shard=5, limit=5, limits=LIMITS)
    with pytest.raises(DataError, match="records_per_shard 5"):
        build_shards(str(rows), tmp_path / "out", records_per_shard=6, limits=LIMITS)
