import pytest

from mamltheory.errors import ConfigurationError
from mamltheory.runtime.workers import workers


def square(value):
    return value * value


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_item_comes_back_with_its_result_whatever_the_number_of_processes(jobs):
    with workers(jobs) as spread:
        assert dict(spread(square, range(7))) == {i: i * i for i in range(7)}
        assert dict(spread(square, [9])) == {9: 81}


def test_no_process_at_all_is_refused():
    with pytest.raises(ConfigurationError, match="jobs is 0"), workers(0):
        pass
