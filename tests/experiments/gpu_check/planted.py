"""Stages that pass, fail after a line, and hang."""

import time

from experiments.gpu_check.machine import Line


def passes(machine):
    yield Line("a number", float(machine.device.index), "", good=True)


def fails(_):
    yield Line("a line before the end", 1.5, "seconds")
    raise RuntimeError("this is planted\nwith more below")


def hangs(_):
    yield Line("a line before the end", 1.5, "seconds")
    time.sleep(3600)


def finds_a_fault(_):
    yield Line("a number", 2.0, "", good=False)
