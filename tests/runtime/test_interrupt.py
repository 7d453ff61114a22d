"""A stop that travels between processes keeps what it says."""

import copy
import pickle
import signal

import pytest

from mamltheory.runtime.interrupt import Interrupted


@pytest.mark.parametrize("copied", [lambda stop: pickle.loads(pickle.dumps(stop)), copy.copy])
@pytest.mark.parametrize("command", [None, "python -m experiments search --config 'a b'"])
def test_a_stop_keeps_its_signal_and_how_to_go_on_between_processes(copied, command):
    stop = copied(Interrupted(signal.SIGTERM, command))
    assert (stop.signal_number, stop.continue_with, stop.exit_code) == (signal.SIGTERM, command, 143)
    assert str(stop) == "stopped by SIGTERM"
