"""Really builds the Dockerfiles, and really runs what they hold: buildah on a Debian base, then a mount namespace and
chroot.

No registry and no container engine is needed, but root is. What runs is as restricted as in the chart: user 10001, no
capabilities, a root file system that is read-only.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.deploy import tools
from worker.local import paths

DOCKER = paths.CHECKOUT / "deploy" / "docker"
CERTIFICATES = "/etc/ssl/certs"
# Stand-ins for the bases in the Dockerfiles: Python with venv for slim images, Python with pip for NVIDIA's.
BASES = {
    "debian-base": "FROM scratch\nADD base.tar /\n",
    "pip-base": "FROM localhost/debian-base\nRUN python3 -m venv /opt/python\nENV PATH=/opt/python/bin:$PATH\n",
}


class Builder:
    """Builds in `tools.HOME`; `work` holds what buildah, pip and uv must be told of this machine."""

    def __init__(self, work: Path, base: Path) -> None:
        self._work, self._context = work, base.parent
        (work / "policy.json").write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
        (work / "registries.conf").write_text("unqualified-search-registries=[]\n")
        # Inside the build pip and uv trust what this machine trusts.
        (work / "pip.conf").write_text(f"[global]\ncert = {CERTIFICATES}/ca-certificates.crt\n")
        (work / "uv.toml").write_text("system-certs = true\n")
        storage = tools.HOME / "buildah"
        self._buildah = [
            "nice",
            "-n",
            "10",
            "buildah",
            "--root",
            str(storage / "root"),
            "--runroot",
            str(storage / "run"),
            "--storage-driver",
            "vfs",
        ]

    @contextmanager
    def built(self, name: str, base: str) -> Iterator[Path]:
        """The root file system of `<name>.Dockerfile` on one of BASES, mounted. Raises AssertionError with the end of
        the log.
        """
        for known, text in BASES.items():
            (self._work / known).write_text(text)
            self._bud("-t", f"localhost/{known}", "-f", self._work / known, self._context)
        ignore = ["--ignorefile", DOCKER / f"{name}.Dockerfile.dockerignore"]
        image = f"localhost/assay-{name}"
        self._bud(
            "--pull-never",
            "--build-arg",
            f"BASE=localhost/{base}",
            *ignore,
            "-t",
            image,
            "-f",
            DOCKER / f"{name}.Dockerfile",
            ".",
        )
        container = self._run("from", "--pull-never", "--signature-policy", self._work / "policy.json", image)
        try:
            yield Path(self._run("mount", container))
        finally:
            self._run("rm", container)
            self._run("rmi", image)

    def _bud(self, *arguments: str | Path) -> None:
        places = {
            CERTIFICATES: CERTIFICATES,
            self._work / "pip.conf": "/etc/pip.conf",
            self._work / "uv.toml": "/etc/uv/uv.toml",
        }
        mounts = [option for here, there in places.items() for option in ("--volume", f"{here}:{there}:ro")]
        self._run(
            "bud",
            "--isolation",
            "chroot",
            "--format",
            "docker",
            "--signature-policy",
            self._work / "policy.json",
            *mounts,
            *arguments,
        )

    def _run(self, *arguments: str | Path) -> str:
        command = [*self._buildah, *map(str, arguments)]
        environment = os.environ | {"CONTAINERS_REGISTRIES_CONF": str(self._work / "registries.conf")}
        done = subprocess.run(command, cwd=paths.CHECKOUT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
        return done.stdout.strip()


def inside(image: Path, *command: str, binds: Sequence[tuple[Path, str]] = ()) -> list[str]:
    """A command that runs in the image: own mounts, read-only root, fresh /tmp, user 10001, no capabilities, the host's
    network.

    `binds`: (folder here, folder there) that it may write to, as a volume.
    """
    drop = "setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs --bounding-set=-all"
    volumes = "".join(f'mount --bind "{here}" "{image}{there}"; ' for here, there in binds)
    script = (
        f'set -e; mount --bind "{image}" "{image}"; mount -t proc proc "{image}/proc"; mount -t tmpfs tmpfs '
        f'"{image}/tmp";'
        f' mount --rbind /dev "{image}/dev"; {volumes}mount -o remount,bind,ro "{image}"; exec '
        f'/usr/sbin/chroot "{image}" {drop} "$@"'
    )
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *command]
