"""What the ranks of ``test_distributed`` run."""

import os
import signal
import sys

from mamltheory.errors import ConfigurationError, MamlTheoryError
from mamltheory.runtime.distributed import joined, spread_over, world
from mamltheory.runtime.interrupt import Interrupted, interruptible


def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\n")


def square(value):
    return value * value, world().rank


def refuses_three(value):
    if value == 3:
        raise ConfigurationError("three is not wanted")
    return value


def stops_at_three(value):
    if value == 3:
        signal.raise_signal(signal.SIGTERM)
    return value


def dies_on_rank_one(value):
    if world().rank == 1:
        os._exit(9)
    return value


def program():
    """Results, an error and a stop of another rank, several jobs, and at last a rank that ends without a word."""
    with interruptible(), joined(minutes=1) as leads:
        if not leads:
            return
        with spread_over(1) as mapper:
            say(list(mapper(square, range(5))))
            say(list(mapper(square, [])))
            try:
                list(mapper(refuses_three, range(9)))
            except ConfigurationError as error:
                say(error, *error.__notes__)
            done = [item for item, _ in mapper(square, [8])]
            try:
                for item, _ in mapper(stops_at_three, range(9)):
                    done.append(item)
            except Interrupted as stop:
                say(done, stop)
        try:
            with spread_over(2):
                pass
        except ConfigurationError as error:
            say(error)
        with spread_over(1) as mapper:
            list(mapper(dies_on_rank_one, range(4)))


if __name__ == "__main__":
    try:
        program()
    except MamlTheoryError as error:
        sys.exit(f"error: {error}")
