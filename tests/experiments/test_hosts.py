"""Processes of one run find each other, or say by when they gave up."""

import socket
import threading
import time

import pytest

from straw_experiments.runner import hosts


@pytest.fixture
def port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def test_processes_go_on_together_and_strangers_are_not_counted(port, monkeypatch, capsys):
    monkeypatch.setattr(hosts, "PATIENCE", 20)
    done = []

    def join(index):
        hosts._meet(f"localhost:{port}", 3, index)
        done.append(index)

    threads = [threading.Thread(target=join, args=(index,)) for index in (1, 0)]
    for thread in threads:
        thread.start()
    for word in (b"GET / HTTP/1.1", b"7", b""):
        while True:
            try:
                with socket.create_connection(("localhost", port), timeout=5) as stranger:
                    stranger.sendall(word)
                break
            except ConnectionRefusedError:  # the first process is not there yet
                time.sleep(0.01)
    assert done == []
    join(2)
    for thread in threads:
        thread.join()
    assert sorted(done) == [0, 1, 2]
    waits = capsys.readouterr().err.splitlines()
    assert waits == [f"waiting for 3 processes at localhost:{port}, 20 s at most"] * 3


@pytest.mark.parametrize(
    ("index", "reason"), [(0, "process 1, 2 of 0 to 2 did not come"), (1, "Connection refused")]
)
def test_who_waits_in_vain_says_for_whom(port, index, reason, monkeypatch):
    monkeypatch.setattr(hosts, "PATIENCE", 0.3)
    start = time.monotonic()
    with pytest.raises(
        RuntimeError, match=f"--distributed: the 3 processes did not meet at .*{reason}"
    ):
        hosts.join(f"localhost:{port}", 3, index)
    assert time.monotonic() - start < 5


def test_a_first_process_that_ends_is_waited_for_again(port, monkeypatch):
    monkeypatch.setattr(hosts, "PATIENCE", 0.5)
    with socket.create_server(("", port)) as server:
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        with pytest.raises(RuntimeError, match="did not meet"):
            hosts.join(f"localhost:{port}", 2, 1)


def test_a_port_that_is_taken_is_named(port):
    with socket.create_server(("", port)), pytest.raises(RuntimeError, match="already in use"):
        hosts.join(f"localhost:{port}", 2, 0)
