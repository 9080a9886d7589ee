"""Confinement: each proof runs in a process of its own, which gives up what a child gives up and then tries it."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from worker.examine import confine, kernel, landlock, seccomp

ROOT = Path(__file__).parents[2]
EPERM, EACCES = 1, 13
ALLOWED, REFUSED, MISSING, KILLED = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000


def has_landlock() -> bool:
    try:
        return landlock.version() >= 1
    except OSError:
        return False


needs_landlock = pytest.mark.skipif(not has_landlock(), reason="this kernel has no Landlock, or it is switched off")


def confined(attempt: str, before: str = "") -> str:
    """What the attempt printed in a confined process; `says` prints."""
    script = f"""
        import ctypes, errno, json, os, resource, socket, sys, threading
        from worker.examine import confine, landlock, seccomp
        output = os.dup(1)
        parent = os.getppid()
        def says(*words):
            os.write(output, " ".join(map(str, words)).encode())
        {before}
        refusals = confine.confine(keep_files=[output])
        try:
            {attempt}
        except OSError as error:
            says("refused", error.errno)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        env={**os.environ, "ASSAY_REDIS__URL": "redis://:secret@host"},
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    return done.stdout


def test_nothing_is_left_open_here():
    """On this machine every measure is in force and no escape works; without Landlock what it closed is named."""
    by_landlock = {"landlock", "reads a file that is none of its own", "reads the environment of the worker"}
    assert confine.report().keys() <= (set() if has_landlock() else by_landlock)


@pytest.mark.parametrize(
    "attempt",
    [
        "os.open('/dev/null', os.O_RDWR); says('opened')",
        "os.open('new-file', os.O_WRONLY | os.O_CREAT); says('opened')",
        "os.open('README.md', os.O_RDONLY | os.O_TRUNC); says('opened')",
        "os.unlink('README.md'); says('removed')",
        "os.mkdir('new-folder'); says('made')",
        "os.rename('README.md', 'other'); says('renamed')",
        "os.chmod('README.md', 0); says('changed')",
        "socket.socket(socket.AF_INET); says('made')",
        "socket.socket(socket.AF_UNIX); says('made')",
        "os.fork(); says('forked')",
        "os.execv(sys.executable, ['python', '-V'])",
        "os.posix_spawn(sys.executable, ['python', '-V'], {}); says('spawned')",
        "os.kill(parent, 0); says('signalled')",
        "os.kill(-1, 0); says('signalled')",
    ],
)
def test_what_a_decoder_must_never_do_is_refused(attempt):
    """Files opened for writing, changes to the file system, sockets, programs and signals to others are refused."""
    assert confined(attempt) in (f"refused {EPERM}", f"refused {EACCES}")


@needs_landlock
@pytest.mark.parametrize("path", ["README.md", "/etc/passwd", "/proc/{parent}/environ", "/root", "/tmp"])
def test_files_that_are_no_libraries_cannot_be_read(path):
    """Neither the checkout nor the system's accounts nor the worker's environment can be read."""
    assert confined(f"os.open(f'{path}', os.O_RDONLY); says('opened')") in (f"refused {EACCES}", "refused 2")


def test_threads_and_memory_are_still_there():
    """A decoder may start threads, allocate, and end itself by a signal of its own."""
    attempt = "t = threading.Thread(target=lambda: says('ran')); t.start(); t.join(); os.kill(os.getpid(), 0)"
    assert confined(attempt) == "ran"


def test_open_files_do_not_come_along():
    """What was open before is closed, but for what is kept, and what libraries print leads nowhere."""
    before = "left = os.dup(os.open('README.md', os.O_RDONLY))"
    assert confined("os.write(2, b'noise'); os.fstat(left)", before) == "refused 9"


def test_limits_are_in_force():
    """No core files, no growing files, few descriptors, and the first to go when memory ends."""
    attempt = (
        "says(resource.getrlimit(resource.RLIMIT_CORE), resource.getrlimit(resource.RLIMIT_FSIZE), "
        "resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= 256, open('/proc/self/oom_score_adj').read())"
    )
    assert confined(attempt) == "(0, 0) (0, 0) True 1000\n"


def test_a_measure_that_the_kernel_lacks_is_named_and_the_others_hold():
    """Without Landlock the filter still refuses files opened for writing; the report says what is missing and why."""
    before = "landlock.version = lambda: (_ for _ in ()).throw(OSError(38, 'Function not implemented'))"
    attempt = "says(json.dumps(refusals)); os.open('new-file', os.O_WRONLY | os.O_CREAT)"
    said = confined(attempt, before)
    assert said.endswith(f"refused {EPERM}")
    assert json.loads(said.removesuffix(f"refused {EPERM}")) == {"landlock": "[Errno 38] Function not implemented"}


@pytest.mark.slow
def test_every_format_is_still_read():
    """Headers and pixels of all formats come out of a confined process, libraries loaded before or after."""
    attempt = "run()"
    before = """
        from tests.odd_images import odd_images
        from tests.examine.judged import decoded
        from worker.examine import headers
        from worker.examine.body import Body
        headers.load_plugins()
        names = ["plain.jpg", "progressive.jpg", "plain.png", "plain.webp", "plain.gif", "lzw.tiff", "plain.bmp"]
        images = [odd_images()[name].data for name in names]
        def run():
            body = Body("cpu")
            says(body.decoder, decoded(body, images)[1])
    """
    assert confined(attempt, textwrap.indent(textwrap.dedent(before), "        ").strip()) in ("cpu {}", "pillow {}")


def run_filter(steps: list[seccomp.Step], architecture: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """What the kernel's interpreter would return (bpf(4)), for the few kinds of step that are used."""
    words = {0: number, 4: architecture, **{16 + 8 * i: value & 0xFFFFFFFF for i, value in enumerate(arguments)}}
    at = held = 0
    while True:
        code, if_true, if_false, operand = steps[at]
        at += 1
        if code == 0x20:
            held = words.get(operand, 0)
        elif code == 0x06:
            return operand
        else:
            holds = {0x15: held == operand, 0x35: held >= operand, 0x45: bool(held & operand)}[code]
            at += if_true if holds else if_false


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("may_write", [True, False])
def test_the_filter_refuses_what_it_lists_on_both_machines(machine, may_write):
    """Every listed call is refused, every other is allowed, and what is judged is judged by its arguments."""
    column, architecture = (0, 0xC000003E) if machine == "x86_64" else (1, 0xC00000B7)
    steps = seccomp.filter_steps(machine, 77, may_open_for_writing=may_write)
    assert all(0 <= jump < 256 for _, *jumps, _ in steps for jump in jumps)

    def judged(name: str, *arguments: int) -> int:
        return run_filter(steps, architecture, seccomp._JUDGED[name][column], arguments)

    refused = {call[column] for call in seccomp._REFUSED.values()} | (
        set(seccomp._OLD.values()) if not column else set()
    )
    special = {numbers[column] for numbers in seccomp._JUDGED.values()}
    for number in range(500):
        if number not in special:
            assert run_filter(steps, architecture, number) == (REFUSED if number in refused else ALLOWED)
    assert judged("clone", 0x3D0F00) == ALLOWED and judged("clone", 17) == REFUSED
    assert judged("clone3") == MISSING
    assert judged("kill", 77) == ALLOWED and judged("kill", 78) == REFUSED and judged("kill", -1) == REFUSED
    assert judged("openat", -100, 0, os.O_RDONLY) == ALLOWED
    assert judged("openat", -100, 0, os.O_RDWR) == (ALLOWED if may_write else REFUSED)
    assert run_filter(steps, 0x40000003, 1) == KILLED


def test_an_unknown_machine_has_no_filter():
    """Where the numbers of the calls are not known no filter is made up."""
    with pytest.raises(OSError, match="riscv64"):
        seccomp.filter_steps("riscv64", 1, may_open_for_writing=False)


@pytest.mark.skipif(kernel.MACHINE != "x86_64", reason="the third set of calls is x86_64's")
def test_the_other_set_of_calls_is_refused():
    """x32's numbers lead to the same calls and are refused as a whole."""
    steps = seccomp.filter_steps("x86_64", 1, may_open_for_writing=False)
    assert run_filter(steps, 0xC000003E, 0x40000000 + 41) == REFUSED
