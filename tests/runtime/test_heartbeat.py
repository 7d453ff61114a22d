"""A process that has been stopped is noticed by its silence; one that computes a long step still beats."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch.distributed as dist

from mamltheory.errors import ConfigurationError
from mamltheory.runtime import heartbeat
from mamltheory.runtime.heartbeat import LEFT, SECONDS_BETWEEN_BEATS, SECONDS_OF_SILENCE, Silence, heartbeats
from mamltheory.runtime.workers import workers
from tests.runtime.ranks import ROOT, free_port

SECONDS_UNTIL_TORCHRUN_KILLS = 30


def test_the_limit_leaves_torchrun_the_time_to_end_a_stopped_rank_within_a_minute():
    assert SECONDS_OF_SILENCE + 2 * SECONDS_BETWEEN_BEATS + SECONDS_UNTIL_TORCHRUN_KILLS < 60


def looks(steps, seconds=10.0):
    """What Silence says at every (time, counters)."""
    now = [0.0]
    silence = Silence(seconds, between=2.0, clock=lambda: now[0])
    found = []
    for now[0], counters in steps:
        found.append(silence.of(counters))
    return found


def test_a_counter_that_stands_still_for_so_long_is_silent_and_one_that_moves_is_not():
    found = looks([(2 * i, {"moves": i + 1, "stops": min(i, 2) + 1}) for i in range(9)])
    assert found == [[]] * 7 + [["stops"]] * 2


def test_a_process_that_has_not_begun_or_has_left_owes_no_beat():
    assert not any(looks([(2 * i, {"young": 0, "gone": LEFT + 3}) for i in range(20)]))


def test_a_looker_who_was_stopped_himself_does_not_blame_the_others():
    steps = [(0, {"a": 1}), (2, {"a": 2}), (9000, {"a": 2}), (9002, {"a": 3}), (9004, {"a": 3})]
    assert looks(steps) == [[]] * 5


@pytest.fixture
def ends(monkeypatch):
    """What would have ended this process; the ranks of a test meet at a store in memory."""
    reasons, store = [], dist.HashStore()
    monkeypatch.setattr(heartbeat, "_end", reasons.append)
    monkeypatch.setattr(heartbeat, "_connection", lambda: store)
    return reasons, store


def waited(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_ranks_that_beat_do_not_end_and_one_that_falls_silent_is_named(ends):
    reasons, store = ends
    with heartbeats(0, 3, silence=0.4):
        with heartbeats(1, 3, silence=0.4), heartbeats(2, 3, silence=0.4):
            time.sleep(0.8)
            assert reasons == []
        time.sleep(0.8)
        assert reasons == []  # they have left, and said so
    with heartbeats(0, 5, silence=0.4):
        store.add("mamltheory/beats/0/4", 7)
        assert waited(lambda: reasons)
    assert "rank 4 has given no sign of life for 0.4 s" in reasons[0]


def test_a_store_that_does_not_answer_is_noticed_and_one_that_is_gone_is_left_to_the_connections(
    ends, monkeypatch
):
    reasons, _ = ends

    class Stuck:
        def add(self, *_):
            time.sleep(1.5)
            return 1

    class Gone:
        def add(self, *_):
            raise dist.DistNetworkError("gone")

    monkeypatch.setattr(heartbeat, "_connection", Gone)
    with heartbeats(1, 2, silence=0.3):
        time.sleep(0.6)
    assert reasons == []
    monkeypatch.setattr(heartbeat, "_connection", Stuck)
    with heartbeats(1, 2, silence=0.3):
        assert waited(lambda: reasons)
    assert "has not answered for 0.3 s" in reasons[0]


def stops_itself_at_three(value):
    if value == 3:
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.05)
    return value


def computes_long(value):
    """Pure Python, which holds the interpreter's lock, for longer than the limit of the test."""
    end = time.monotonic() + 3
    while time.monotonic() < end:
        sum(range(1000))
    return value


@pytest.mark.slow
def test_a_stopped_worker_ends_the_work_and_a_long_step_does_not():
    with workers(2, silence=2.0) as spread:
        assert len(list(spread(computes_long, range(2)))) == 2
    begun, done = time.monotonic(), []

    def work():
        with workers(2, silence=2.0) as spread:
            done.extend(item for item, _ in spread(stops_itself_at_three, range(400)))

    with pytest.raises(ConfigurationError, match="no sign of life for 2 s"):
        work()
    assert time.monotonic() - begun < 30
    assert 3 not in done
    assert len(done) > 3  # the other worker went on meanwhile


def stops_when_done(_):
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGSTOP)).start()


@pytest.mark.slow
def test_a_worker_that_is_stopped_when_all_is_done_is_not_waited_for():
    begun = time.monotonic()
    with workers(2, silence=2.0) as spread:
        assert len(list(spread(stops_when_done, [0]))) == 1
        time.sleep(0.5)
    assert time.monotonic() - begun < 30


RANK = """
import os, signal, sys, time
from mamltheory.errors import MamlTheoryError
from mamltheory.runtime.distributed import joined, spread_over
from tests.runtime.test_heartbeat import computes_long, stops_itself_at_three
with joined(minutes=5, silence=2.0) as leads:
    if leads:
        with spread_over(1) as mapper:
            print(len(list(mapper(computes_long, range(2)))), flush=True)
            if sys.argv[1] == "0":
                os.kill(os.getpid(), signal.SIGSTOP)
            list(mapper(stops_itself_at_three, range(2, 9)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_ends_the_other_and_a_long_step_does_not(stopped):
    """Rank 0 holds the store here, which torchrun does otherwise."""
    common = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(stopped)],
            cwd=ROOT, env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        _, error = processes[1 - stopped].communicate(timeout=60)
        assert processes[stopped].poll() is None  # stopped, not dead
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[1 - stopped].returncode == 2
    assert "for 2 s: it is stopped, or its machine is gone; the same command continues" in error
