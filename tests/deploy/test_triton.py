"""What the chart and compose.yaml tell Triton and the program that builds its models: taken by the real server and by
the program's own parser.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from tritonclient import grpc
from tritonclient.utils import InferenceServerException
from typer.main import get_command

from deploy.docker import prepare_models
from tests.deploy import chart
from tests.integration.harness import wait_until
from tests.triton_processes import model_processes
from triton_models import build
from worker.local import paths
from worker.local.server import NotServing, free_port
from worker.local.triton_server import TritonServer

pytestmark = pytest.mark.usefixtures("helm")
WEIGHTS = paths.CHECKOUT / "triton_models" / "weights" / "demo"
PROGRAM = ["python3", "/opt/assay/prepare_models.py"]
COMPOSE = yaml.safe_load((paths.CHECKOUT / "deploy" / "compose.yaml").read_text())["services"]


CPU = {"triton": {"flavour": "cpu"}, "gpu": {"enabled": False}}
KEYLESS = {"gpu": {"enabled": False}, "settings": {"redis": {"url": "redis://redis"}}}
KEYLESS_SERVICE = {"triton": {"flavour": "cpu", "mode": "service"}, **KEYLESS}


def _told(container: chart.Object, directory: Path, **variables: str) -> list[str]:
    """What the container's command hands on to tritonserver, with /dev/shm and /models/repository in `directory`; the
    key of its own that closes the model-repository API comes first.
    """
    program = directory / "bin" / "tritonserver"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    argv = [
        part.replace("/dev/shm", str(directory)).replace("/models/repository", str(directory / "repository"))
        for part in container["command"]
    ]
    environment = {"PATH": f"{program.parent}:/usr/bin:/bin", **variables}
    restricted, *handed_on = subprocess.run(
        [*argv, *container["args"]], env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert re.fullmatch(
        r"--http-restricted-api=model-repository,shared-memory,trace,logging:key=[0-9a-f]{32}", restricted
    )
    return handed_on


def _containers(text: str, name: str) -> list[chart.Object]:
    pods = [pod for _, pod in chart.pod_specs(chart.objects(text))]
    return [container for pod in pods for container in chart.containers(pod) if container["name"] == name]


def _parsed(arguments: list[str]) -> dict[str, Any]:
    """What prepare_models' own command line makes of them."""
    return get_command(prepare_models.app).make_context("prepare_models", list(arguments)).params


def test_a_control_key_closes_grpc_to_whoever_has_it_not(tmp_path: Path) -> None:
    """The server asks for the very secret that the worker reads; without one it loads nothing for anybody, or beside a
    worker, where gRPC listens on loopback, for the pod itself.
    """
    values = {**CPU, "secrets": {"values": {"redis.url": "redis://redis:6379", "triton.control_key": "hush"}}}
    container = _containers(chart.template(values=values), "triton")[0]
    reference = next(one for one in container["env"] if one["name"] == "ASSAY_TRITON__CONTROL_KEY")["valueFrom"]
    secret = next(one for one in chart.objects(chart.template(values=values)) if one["kind"] == "Secret")
    assert reference == {"secretKeyRef": {"name": secret["metadata"]["name"], "key": "triton.control_key"}}
    assert "triton.control_key" in {**secret.get("stringData", {}), **secret.get("data", {})}
    told = _told(container, tmp_path, ASSAY_TRITON__CONTROL_KEY="hush")
    restricted = "--grpc-restricted-protocol=model-repository,trace,logging:assay-control-key=hush"
    assert told == [restricted, *container["args"]]
    for mode, asked in (("service", r"--grpc-restricted-protocol=.*:assay-control-key=[0-9a-f]{32}"), ("sidecar", "")):
        (keyless,) = _containers(
            chart.template(values={"triton": {"flavour": "cpu", "mode": mode}, **KEYLESS}), "triton"
        )
        assert "ASSAY_TRITON__CONTROL_KEY" not in {one["name"] for one in keyless["env"]}
        told = _told(keyless, tmp_path / mode)
        assert told[len(told) - len(keyless["args"]) :] == keyless["args"]
        assert re.fullmatch(asked, "".join(told[: len(told) - len(keyless["args"])]))


@pytest.mark.parametrize("name", chart.NAMES)
def test_the_init_containers_arguments_are_known(name: str) -> None:
    """prepare_models' own parser takes the arguments of every values file: plans in fp16, CPU graphs in fp32, weights
    from where the values say.
    """
    for container in _containers(chart.manifest(name), "models"):
        assert container["command"] == PROGRAM
        given = _parsed(container["args"])
        assert given["precision"] == {"tensorrt": "fp16", "cpu": "fp32"}[given["flavour"]]
        assert str(given["out"]) == "/models/repository"


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_compose_builds_the_models_as_the_chart_does(profile: str) -> None:
    """The services that build the models use the serving image and its program, with arguments that it knows."""
    service = COMPOSE[f"models-{profile}"]
    assert service["command"][:2] == PROGRAM and service["image"] == COMPOSE[f"triton-{profile}"]["image"]
    given = _parsed(service["command"][2:])
    assert (given["flavour"], given["precision"]) == {"cpu": ("cpu", "fp32"), "gpu": ("tensorrt", "fp16")}[profile]


def test_a_killed_servers_shared_memory_is_cleared(tmp_path: Path) -> None:
    """The container's command removes what a Python backend left in /dev/shm, nothing else, and hands its arguments on
    to the server.
    """
    (container,) = _containers(chart.template(values=CPU), "triton")
    left, workers = tmp_path / "triton_python_backend_shm_region_5f", tmp_path / "assay-5f"
    for file in (left, workers):
        file.touch()
    assert _told(container, tmp_path) == container["args"]
    assert not left.exists() and workers.exists()


class AsDeployed(TritonServer):
    """The stack's server with the arguments of a container: only where things lie, and the ports, are this
    machine's.
    """

    def __init__(self, directory: Path, repository: Path, arguments: list[str]) -> None:
        super().__init__(directory, {name: free_port() for name in TritonServer.port_names}, repository)
        self.arguments = arguments

    def command(self) -> tuple[list[str], dict[str, str]]:
        own, environment = super().command()
        here = {
            option.split("=")[0]: option
            for option in own
            if "-port=" in option or "-address=" in option or "model-repository" in option
        }
        given = [here.pop(argument.split("=")[0], argument) for argument in self.arguments]
        backends = [option for option in own if option.startswith("--backend-")]
        return [own[0], *backends, *given, *(option for option in here.values() if "-address=" in option)], environment

    def serves(self) -> bool:
        """Does it answer? Raises AssertionError with its log when it has ended."""
        assert self.running(), self.log_tail()
        try:
            self.check()
        except NotServing:
            return False
        return True


@pytest.mark.integration
@pytest.mark.parametrize("shadow", ["", "there", "left out"])
def test_triton_starts_as_the_chart_starts_it(tmp_path: Path, shadow: str) -> None:
    """The real tritonserver takes what the CPU flavour's container hands it and answers; a shadow model is served where
    the init container left one.
    """
    values = CPU | (
        {"models": {"shadow": "/opt/assay/candidate"}, "settings": {"shadow": {"share": 0.1}}} if shadow else {}
    )
    repository = tmp_path / "repository"
    build.build(WEIGHTS, "cpu", repository)
    if shadow == "there":
        build.build(WEIGHTS, "cpu", tmp_path / "candidate")
        prepare_models.add_shadow(repository, tmp_path / "candidate")
    server = AsDeployed(
        tmp_path / "server", repository, _told(_containers(chart.template(values=values), "triton")[0], tmp_path)
    )
    server.start()
    try:
        wait_until(server.serves, "an answer from the model")
        with closing(grpc.InferenceServerClient(server.address)) as client:
            assert client.is_model_ready("code") and client.is_model_ready("code_shadow") == (shadow == "there")
    finally:
        server.stop(grace_s=20)


@pytest.mark.integration
def test_without_a_key_nobody_loads_models_and_kubernetes_heals_them(tmp_path: Path) -> None:
    """On the real server: gRPC refuses orders; the probe passes while the model answers, and fails once its process is
    gone.
    """
    build.build(WEIGHTS, "cpu", tmp_path / "repository")
    (container,) = _containers(chart.template(values=KEYLESS_SERVICE), "triton")
    server = AsDeployed(tmp_path / "server", tmp_path / "repository", _told(container, tmp_path))
    server.start()
    try:
        wait_until(server.serves, "an answer from the model")
        with closing(grpc.InferenceServerClient(server.address)) as client:
            for order in (client.get_model_repository_index, partial(client.unload_model, "code")):
                with pytest.raises(InferenceServerException, match="protocol is restricted"):
                    order()
            assert client.is_model_ready("code")
        probe = [
            part.replace(":8000/", f":{server.ports['triton_http']}/")
            for part in container["livenessProbe"]["exec"]["command"]
        ]
        assert subprocess.run(probe, check=False).returncode == 0
        running = server.running()
        assert running is not None
        copies = model_processes(running.pid)
        assert copies
        for copy in copies:
            os.kill(copy, signal.SIGKILL)
        wait_until(lambda: subprocess.run(probe, check=False).returncode != 0, "the probe sees it")
        assert subprocess.run([*probe[:2], probe[2].splitlines()[0]], check=False).returncode == 0, (
            "the server does not"
        )
    finally:
        server.stop(grace_s=20)
