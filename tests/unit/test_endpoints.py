"""Addresses: which are refused, and with what advice; a pool's name and bounds."""

from __future__ import annotations

import os

import pytest

from pipeline.errors import ConfigError
from pipeline.transport import MAX_IPC_PATH_NBYTES, check_endpoint
from workers.pool_bounds import check_hang_s, pool_bounds, pool_name


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
    assert pool_bounds(2, 1, 6) == (2, 1, 6)
    assert pool_bounds(1, 1, 0) == (1, 1, max(8, 2 * (os.cpu_count() or 1)))
    assert pool_bounds(1000, 1, 0) == (1000, 1, 1000)
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


def test_limits_that_no_number_meets_are_told_as_such() -> None:
    """--num is not to blame, and need not even have been given."""
    for num in (None, 2):
        with pytest.raises(ConfigError, match=r"--max\n  expected: at least --min 8\n  got:      4"):
            pool_bounds(num, 8, 4)
    with pytest.raises(ConfigError, match=r"--num\n  expected: a number of workers from --min 1 to --max 4"):
        pool_bounds(5, 1, 4)


@pytest.mark.parametrize(
    ("num", "minimum", "maximum", "begins_with"),
    [(None, 1, 0, 2), (None, 8, 0, 8), (None, 1, 1, 1), (5, 1, 8, 5), (None, 3, 3, 3)],
)
def test_a_pool_begins_with_two_workers_where_its_limits_allow_it(
    num: int | None, minimum: int, maximum: int, begins_with: int
) -> None:
    """`--min 8` alone says enough."""
    bounds = pool_bounds(num, minimum, maximum)
    assert (bounds.num, bounds.minimum) == (begins_with, minimum)
    assert bounds.maximum == maximum or (maximum == 0 and bounds.maximum >= max(8, os.cpu_count() or 1))


@pytest.mark.parametrize("hang_s", [0.0, -1.0, float("nan")])
def test_a_time_after_which_every_worker_hangs_is_refused(hang_s: float) -> None:
    """A pool that kills its workers at once would do nothing else."""
    with pytest.raises(ConfigError, match=r"--hang-s\n  expected: seconds, above 0"):
        check_hang_s(hang_s)
