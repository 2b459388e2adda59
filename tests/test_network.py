"""Tests reach no network: the guard of conftest.py works."""

import socket

import pytest


def test_the_network_is_out_of_reach() -> None:
    with socket.socket() as client, pytest.raises(AssertionError, match="asked the network"):
        client.connect(("192.0.2.1", 80))  # an address for documentation, nobody's


def test_this_machine_is_in_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.connect(server.getsockname())
