"""The lock between processes."""

from __future__ import annotations

import threading

from worker.local.locks import exclusive


def test_a_second_holder_waits_and_is_told_so(tmp_path):
    """While one holds the lock, another waits, says so once, and gets it afterwards."""
    path, order, waiting = tmp_path / "deep" / "lock", [], threading.Event()

    def second():
        with exclusive(path, waiting.set):
            order.append("second")

    with exclusive(path, lambda: order.append("waited")):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(30)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]


def test_whoever_waited_for_a_deleted_lock_takes_the_new_one(tmp_path):
    """A holder may delete the lock file (a purge does): the waiting process still excludes all others."""
    path, waiting, inside, done = tmp_path / "lock", threading.Event(), threading.Event(), threading.Event()

    def second():
        with exclusive(path, waiting.set):
            inside.set()
            assert done.wait(30)

    with exclusive(path, lambda: None):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(30)
        path.unlink()
    assert inside.wait(30)
    third_waits = threading.Event()

    def third():
        with exclusive(path, third_waits.set):
            pass

    other = threading.Thread(target=third)
    other.start()
    assert third_waits.wait(30)
    done.set()
    thread.join(30)
    other.join(30)
