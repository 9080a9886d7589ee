"""The trust list as a setting."""

from __future__ import annotations

import pytest

from tests.examine.provenance import made
from worker.errors import SettingsError
from worker.examine.provenance.trust import load_anchors, reader_version


def test_a_list_of_authorities_is_handed_on(tmp_path):
    """Several certificates in one file, whatever stands between them."""
    path = tmp_path / "anchors.pem"
    path.write_text("# ours\n" + made.Authority().pem + "\n" + made.Authority("Other").pem)
    assert load_anchors(path).count("BEGIN CERTIFICATE") == 2
    assert load_anchors(None) is None


@pytest.mark.parametrize(
    "content",
    [None, b"", b"no certificates", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"],
)
def test_what_is_no_list_is_told_with_the_setting(tmp_path, content):
    """The operator hears of it before the first image, not from verdicts that trust nobody."""
    path = tmp_path / "anchors.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match="ASSAY_EVIDENCE__C2PA_TRUST_PATH"):
        load_anchors(path)


def test_the_version_is_that_of_reader_and_list():
    """Evidence in the cache is used again only by the same reader with the same list."""
    one, two = made.Authority().pem, made.Authority().pem
    assert len({reader_version(None), reader_version(one), reader_version(two)}) == 3
    assert reader_version(one) == reader_version(one.replace("\n", "\r\n"))
