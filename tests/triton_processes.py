"""The processes in which Triton runs the copies of a model, for tests that stop or kill one."""

from pathlib import Path


def model_processes(triton_pid: int, model: str = "code") -> list[int]:
    """Process ids of the copies of `model` that this server runs in its Python backend."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes()
        except (OSError, IndexError):
            continue
        if parent == triton_pid and b"python_backend_stub" in command and f"/{model}/".encode() in command:
            found.append(int(folder.name))
    return found
