import math

import pytest
import torch

from mamltheory import Task
from mamltheory.errors import MamlTheoryError, ShapeError, ValueRangeError
from mamltheory.tasks import check_tasks, query_labels
from tests.strategies import as_users_run_it, task

PARTS = ("query_x", "query_y", "support_x", "support_y")


def changed(part, value):
    """The parts of a good task with one of them replaced; a function is applied to it."""
    good = task(k=2)
    parts = {name: getattr(good, name) for name in PARTS}
    return {**parts, part: value(parts[part]) if callable(value) else value}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (lambda t: t.long(), ShapeError, "floating-point"),
        (lambda t: t.numpy().astype(object), ShapeError, "floating-point tensor, got ndarray"),
        (lambda t: t.tolist(), ShapeError, "floating-point tensor, got list"),
        (lambda t: t.to(torch.complex128), ShapeError, "floating-point"),
        (lambda t: t[:, 0], ShapeError, "y\\[:, None\\]"),
        (lambda t: t[:0], ShapeError, "at least one"),
        (lambda t: t[:, :0], ShapeError, "at least one"),
        (lambda t: t / 0, ValueRangeError, "NaN or infinite"),
        (lambda t: t.clone().fill_(math.nan), ValueRangeError, "NaN or infinite"),
    ],
    ids=["integer", "objects", "list", "complex", "vector", "empty", "no-columns", "infinite", "nan"],
)
def test_a_bad_part_is_refused_by_name(part, value, error, message):
    with as_users_run_it(), pytest.raises(error, match=message) as caught:
        Task(**changed(part, value))
    assert part in str(caught.value)
    assert isinstance(caught.value, MamlTheoryError)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("query_y", torch.zeros(5, 2).double(), "query_x has 2 samples but query_y has 5"),
        ("support_y", torch.zeros(5, 2).double(), "support_x has 3 samples but support_y has 5"),
        (
            "support_x",
            torch.zeros(3, 9).double(),
            r"query_x has samples of shape \(4,\), support_x of shape \(9,\)",
        ),
        ("support_y", torch.zeros(3, 7).double(), "query_y has 2 outputs, support_y 7"),
        ("query_y", lambda y: y[:, :, None], "query_y has shape"),
        ("query_x", lambda x: x.float(), "share one dtype"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused_with_both_sizes(part, value, message):
    with pytest.raises(ShapeError, match=message):
        Task(**changed(part, value))


@pytest.mark.parametrize("part", PARTS)
def test_numpy_arrays_become_tensors_of_their_own_memory(part):
    good = task(k=2)
    array = getattr(good, part).numpy()
    for given in (array, array.astype(">f8"), array[::-1].copy()[::-1]):
        with as_users_run_it():
            found = getattr(Task(**changed(part, given)), part)
        assert torch.equal(found, getattr(good, part))
        assert found.data_ptr() != given.ctypes.data
    with as_users_run_it(), pytest.raises(ShapeError, match="share one dtype"):
        Task(**changed(part, array.astype("float32")))


def test_images_are_samples_too():
    images = torch.zeros(2, 3, 8, 8), torch.zeros(4, 3, 8, 8)
    built = Task(images[0], torch.zeros(2, 5), images[1], torch.zeros(4, 5))
    assert check_tasks([built]) == (built,)


def test_a_task_moves_as_a_whole():
    narrow = task(k=2).to(torch.float32)
    assert {getattr(narrow, part).dtype for part in PARTS} == {torch.float32}
    assert torch.equal(narrow.query_x.double(), task(k=2, dtype=torch.float32).query_x.double())


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([task(d=5)], r"tasks\[1\] differs"),
        ([task(), task(k=2)], r"tasks\[2\] differs"),
        ([task(dtype=torch.float32)], r"tasks\[1\] differs"),
        (["task"], r"tasks\[1\] is a str"),
    ],
    ids=["input", "outputs", "dtype", "no-task"],
)
def test_tasks_that_no_single_network_can_take_are_refused_by_position(others, message):
    with as_users_run_it(), pytest.raises(ShapeError, match=message):
        check_tasks([task(), *others])


def test_at_least_one_task_is_needed_and_different_sizes_are_fine():
    with pytest.raises(ShapeError, match="no tasks"):
        check_tasks([])
    assert len(check_tasks([task(n=1, m=1), task(n=5, m=2)])) == 2


@pytest.mark.paper("Sec. 3")
def test_labels_are_stacked_task_by_task_sample_major():
    first, second = task(0, 0, n=2, k=3), task(0, 1, n=1, k=3)
    expected = [*first.query_y[0], *first.query_y[1], *second.query_y[0]]
    assert torch.equal(query_labels([first, second]), torch.stack(expected))
