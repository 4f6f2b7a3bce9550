"""Addresses: which are refused, and with what advice; a pool's name and bounds."""

from __future__ import annotations

import os

import pytest

from pipeline.errors import ConfigError
from pipeline.transport import MAX_IPC_PATH_NBYTES, check_endpoint
from workers.pool_bounds import pool_bounds, pool_name


@pytest.mark.parametrize(
    "endpoint", ["ipc:///run/user/1/d", "tcp://127.0.0.1:5555", "tcp://localhost:1", "tcp://[::1]:5", "inproc://x"]
)
def test_addresses_of_this_machine_are_accepted(endpoint: str) -> None:
    """Nobody else can reach them."""
    check_endpoint(endpoint)


@pytest.mark.parametrize(
    "endpoint",
    ["tcp://0.0.0.0:5555", "tcp://*:5555", "tcp://192.168.1.7:5555", "tcp://127.0.0.1.evil.org:80", "tcp://x"],
)
def test_tcp_beyond_this_machine_is_refused_with_a_way_out(endpoint: str) -> None:
    """Law 8: closed by default; whoever reaches the dispatcher can have workers read their sources."""
    with pytest.raises(ConfigError, match="to go on: use an ipc"):
        check_endpoint(endpoint)


def test_a_path_too_long_for_a_socket_is_refused_with_both_lengths() -> None:
    """ZeroMQ would say `File name too long`, of which nobody knows what it may be."""
    check_endpoint(f"ipc:///{'x' * (MAX_IPC_PATH_NBYTES - 1)}")
    with pytest.raises(ConfigError, match="at most 107 bytes\n  got:      108 bytes"):
        check_endpoint(f"ipc:///{'x' * MAX_IPC_PATH_NBYTES}")


@pytest.mark.parametrize("endpoint", ["", "somewhere", "/run/d", "ipc://", "ipc://@abstract", "ipc://*", "http://a:1"])
def test_what_is_no_address_or_nobodys_is_refused(endpoint: str) -> None:
    """An abstract socket has no permissions: any user of the machine could connect."""
    with pytest.raises(ConfigError):
        check_endpoint(endpoint)


def test_a_pools_bounds_hold_its_beginning() -> None:
    """Unsaid, the upper bound is twice the cores or 8, and never below what was asked for."""
    assert pool_bounds(2, 1, 6) == (1, 6)
    assert pool_bounds(1, 1, 0) == (1, max(8, 2 * (os.cpu_count() or 1)))
    assert pool_bounds(1000, 1, 0) == (1, 1000)
    for bad in [(7, 1, 6), (1, 2, 6), (3, 4, 0)]:
        with pytest.raises(ConfigError, match="--num"):
            pool_bounds(*bad)


def test_a_pools_name_is_kept_and_a_missing_one_is_new() -> None:
    """It is typed in commands and shown in tables."""
    assert pool_name("big-box.1") == "big-box.1"
    assert pool_name("") != pool_name("")
    for bad in ("a b", "ä", "-x", "x" * 33):
        with pytest.raises(ConfigError, match="--name"):
            pool_name(bad)
