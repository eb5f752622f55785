"""Servers resolve from the command line; what can't be had is reported, not dropped; ports and delays arrive."""

import socket
from pathlib import Path

import pytest

from harness import servers
from harness.lab import DEBIAN_PACKAGES, Lab, missing_packages
from harness.servers import DELAY_0, Ports, custom, free_ports, resolve, taken, triton_repository
from harness.workload import Workload

PORTS = Ports(1234, 1235, 1236)


def test_a_custom_command_gets_free_ports_where_it_asks_for_them() -> None:
    server = custom("other", "serve --http {http_port} --grpc={grpc_port} --model {workload}")
    assert server.launch(Workload.IMAGE, PORTS).command == [
        "serve",
        "--http",
        "1234",
        "--grpc=1235",
        "--model",
        "image",
    ]
    assert server.workloads == frozenset(Workload)
    assert server.ports is free_ports


def test_a_custom_command_without_ports_is_looked_for_on_the_usual_ones() -> None:
    server = custom("other", "serve 'a model'")
    assert server.launch(Workload.DOUBLE, PORTS).command == ["serve", "a model"]
    assert (server.ports().http, server.ports().grpc) == (8000, 8001)
    assert server.workloads == {Workload.DOUBLE}


def test_free_ports_differ() -> None:
    ports = free_ports()
    assert len({ports.http, ports.grpc, ports.metrics}) == 3


def test_an_unknown_server_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nginx: not a server"):
        resolve(["nginx"], Lab(tmp_path))


def test_a_server_that_is_not_installed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "REPOSITORY", tmp_path)
    found, absent = resolve(["penstock"], Lab(tmp_path))
    assert found == []
    assert [(one.name, "make setup" in one.reason) for one in absent] == [("penstock", True)]


@pytest.mark.parametrize("workload", list(Workload))
@pytest.mark.parametrize("delay", [0, 500, 2000])
def test_triton_s_repository_carries_the_delay(tmp_path: Path, workload: Workload, delay: int) -> None:
    repository = triton_repository(tmp_path, workload, delay)
    config = (repository / "ident" / "config.pbtxt").read_text()
    assert f"max_queue_delay_microseconds: {delay} " in config
    assert (DELAY_0 in config) is (delay == 0)
    assert (repository / "ident" / "1" / "model.py").exists()


def test_debian_packages_are_asked_for_only_when_their_files_are_missing(tmp_path: Path) -> None:
    assert missing_packages(tmp_path) == [package.name for package in DEBIAN_PACKAGES]
    tool = tmp_path / "usr" / "bin" / "wrk"
    tool.parent.mkdir(parents=True)
    tool.touch()
    assert "wrk" not in missing_packages(tmp_path)


def test_a_port_where_a_stranger_listens_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        assert taken(Ports(port, free_ports().grpc, 0)) == [port]
