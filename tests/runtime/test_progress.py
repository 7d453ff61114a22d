"""What is shown, and how a stop is asked for."""

import io
import os
import signal
import subprocess
import sys
import threading

import pytest

from mamltheory.notebook import duration
from mamltheory.runtime.interrupt import Interrupted, check_interrupted, interruptible
from mamltheory.runtime.progress import stage


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines_of(step_seconds, steps, total):
    """What ``stage`` writes to a log file when each step takes ``step_seconds``."""
    now, stream = [100.0], io.StringIO()
    with stage("search", total=total, stream=stream, clock=lambda: now[0]) as advance:
        for step in range(steps):
            now[0] += step_seconds
            advance(note=f"step {step}")
    return stream.getvalue().splitlines()


def test_a_log_file_gets_one_line_per_ten_seconds_with_the_time_left():
    lines = lines_of(step_seconds=4.0, steps=6, total=8)
    assert lines == [
        "search: 0/8",
        "search: 3/8, 0:12 elapsed, 0:20 left  step 2",
        "search: 6/8, 0:24 elapsed, 0:08 left  step 5",
        "search: done, 6/8 in 0:24  step 5",
    ]


def test_short_stages_take_two_lines_however_many_steps():
    assert len(lines_of(step_seconds=1e-4, steps=5000, total=5000)) == 2


def test_a_brief_stage_tells_of_its_progress_alone():
    now, stream, terminal = [0.0], io.StringIO(), Terminal()
    for output in (stream, terminal):
        with stage("round 1", 2, output, lambda: now[0], brief=True) as advance:
            now[0] += 11.0
            advance()
    assert stream.getvalue() == "round 1: 1/2, 0:11 elapsed, 0:11 left\n"
    assert terminal.getvalue().endswith("\x1b[2K")  # the line of the bar is erased


def test_without_a_total_there_is_no_guess_of_the_time_left():
    assert lines_of(11.0, 1, None) == [
        "search: started",
        "search: 1, 0:11 elapsed  step 0",
        "search: done, 1 in 0:11  step 0",
    ]


def test_log_files_never_contain_terminal_control_codes():
    text = "\n".join(lines_of(step_seconds=4.0, steps=6, total=8))
    assert "\r" not in text
    assert "\x1b" not in text


def test_a_terminal_gets_a_bar_and_bars_may_be_nested():
    stream = Terminal()
    with stage("outer", 3, stream) as outer:
        for _ in range(3):
            with stage("inner", 2, stream) as inner:
                inner(2)
            outer()
    assert "3/3" in stream.getvalue()
    assert "2/2" in stream.getvalue()
    assert "outer" in stream.getvalue()


def test_a_failure_is_shown_and_passed_on():
    stream = io.StringIO()

    def fails_in_the_second_step():
        with stage("train", 3, stream) as advance:
            advance()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails_in_the_second_step()
    assert "train: stopped after 1/3" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (7500, "2:05:00")]
)
def test_durations_read_as_people_write_them(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_the_step_finish_and_then_stops(number, code):
    finished = []

    def work():
        for step in range(5):
            check_interrupted()
            if step == 2:
                os.kill(os.getpid(), number)
            finished.append(step)

    with interruptible(), pytest.raises(Interrupted) as stop:
        work()
    assert finished == [0, 1, 2]
    assert stop.value.exit_code == code
    assert stop.value.saved("again").continue_with == "again"


def test_the_earlier_handlers_return_and_no_signal_is_remembered():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interruptible():
        os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    check_interrupted()


def test_an_ordinary_except_clause_does_not_swallow_a_stop():
    assert not issubclass(Interrupted, Exception)


def test_other_threads_may_enter_and_change_nothing():
    handlers = []

    def enter():
        with interruptible():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]


ENDLESS_STEP = """
import sys, time
from mamltheory.runtime.interrupt import interruptible
with interruptible():
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_a_step_that_never_ends(number):
    process = subprocess.Popen([sys.executable, "-c", ENDLESS_STEP], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
        process.send_signal(number)
        assert process.wait(timeout=10) == -number
