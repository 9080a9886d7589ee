"""Where the local stack keeps its files."""

from __future__ import annotations

from worker.local import paths


def test_a_checkout_keeps_everything_below_one_ignored_folder():
    """In a checkout, run directory and servers stand below `.assay`, which git ignores."""
    assert paths.run_directory() == paths.CHECKOUT / ".assay" / "stack"
    assert paths.servers_directory().parent == paths.run_directory().parent
    assert ".assay/" in (paths.CHECKOUT / ".gitignore").read_text().split()


def test_an_installed_package_uses_the_cache(tmp_path, monkeypatch):
    """Without a writable checkout the files go to the user's cache."""
    monkeypatch.setattr(paths, "CHECKOUT", tmp_path / "site-packages")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert paths.run_directory() == tmp_path / "cache" / "assay" / "stack"


def test_what_is_set_already_beats_the_systems_authorities(monkeypatch):
    """Downloads trust the bundle that the user has set, where there is one."""
    monkeypatch.setenv("SSL_CERT_FILE", "/mine.pem")
    assert paths.environment_for_downloads()["SSL_CERT_FILE"] == "/mine.pem"
