"""Installing the parts: complete or not there, and errors that name the command that helps."""

from __future__ import annotations

import hashlib

import pytest

from worker.errors import Unavailable
from worker.local import install, interpreter, paths


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder in place of `.assay`."""
    monkeypatch.setattr(paths, "home", lambda: tmp_path)
    return tmp_path


def test_an_interrupted_install_is_done_again(home, monkeypatch):
    """What stops half-way leaves nothing behind that counts as installed; the next try goes through."""
    content = b"a jar"
    listing = home / "jars"
    listing.write_text(f"{hashlib.sha256(content).hexdigest()}  one.jar\n")
    monkeypatch.setattr(install, "JARS", listing)

    def interrupted(coordinate, work):
        (work / "half").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(install, "_resolve", interrupted)
    with pytest.raises(KeyboardInterrupt):
        install.kafka_jars()
    assert [path.name for path in (home / "servers").iterdir() if not path.name.endswith(".lock")] == []

    def resolved(coordinate, work):
        (work / "one.jar").write_bytes(content)
        return [work / "one.jar"]

    monkeypatch.setattr(install, "_resolve", resolved)
    target = install.kafka_jars()
    assert (target / "one.jar").read_bytes() == content
    monkeypatch.setattr(install, "_resolve", interrupted)
    assert install.kafka_jars() == target


def test_a_jar_with_another_content_is_refused(home, monkeypatch):
    """A jar that is not the expected one, byte for byte, is not installed."""
    listing = home / "jars"
    listing.write_text(f"{hashlib.sha256(b'expected').hexdigest()}  one.jar\n")
    monkeypatch.setattr(install, "JARS", listing)

    def resolved(coordinate, work):
        (work / "one.jar").write_bytes(b"something else")
        return [work / "one.jar"]

    monkeypatch.setattr(install, "_resolve", resolved)
    with pytest.raises(Unavailable, match=r"one\.jar"):
        install.kafka_jars()


def test_without_any_redis_the_error_names_the_command(monkeypatch):
    """No redis-server on PATH and no wheel: the message says how to install one."""
    monkeypatch.setattr(install, "find_spec", lambda name: None)
    monkeypatch.setattr(install.shutil, "which", lambda name: None)
    install.redis_server.cache_clear()
    try:
        with pytest.raises(Unavailable, match="apt-get install redis-server"):
            install.redis_server()
    finally:
        install.redis_server.cache_clear()


def test_a_redis_server_on_path_is_taken_before_the_wheel(tmp_path, monkeypatch):
    """A redis-server that runs is used; one that does not is passed over."""
    good = tmp_path / "redis-server"
    good.write_text("#!/bin/sh\nexit 0\n")
    good.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    install.redis_server.cache_clear()
    try:
        assert install.redis_server() == good
        install.redis_server.cache_clear()
        good.write_text("#!/bin/sh\nexit 1\n")
        assert install.redis_server().name == "valkey-server"
    finally:
        install.redis_server.cache_clear()


def test_without_a_fitting_python_the_error_names_what_to_install(home, monkeypatch):
    """Neither Python 3.11 nor 3.12, nor uv to fetch one: the message says which package helps."""
    monkeypatch.setattr(interpreter, "_candidates", lambda: iter(()))
    monkeypatch.setattr(interpreter, "uv", lambda: None)
    with pytest.raises(Unavailable, match=r"apt-get install libpython3\.12"):
        interpreter.find(install.quiet)


def test_the_interpreter_found_has_its_library():
    """What is found here is a Python that the server can embed."""
    found, directory = interpreter.find(install.quiet)
    assert found.version in interpreter.VERSIONS
    assert (directory / found.library).exists()


def test_a_model_repository_that_is_not_as_it_was_built_is_named(tmp_path):
    """The file that is damaged, before a server is started with it."""
    (tmp_path / "MANIFEST.json").write_text("{")
    with pytest.raises(Unavailable, match=r"MANIFEST\.json: no readable manifest"):
        install.check_models(tmp_path)
