import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory.errors import ConfigurationError, DataError, ShapeError
from mamltheory.fewshot.episodes import (
    episode_task,
    episode_tasks,
    one_hot,
    sample_episode,
    sample_episodes,
    tasks_of_episodes,
)
from mamltheory.fewshot.images import ImageSplit
from mamltheory.fewshot.uploads import normalise
from mamltheory.rng import numpy_generator
from mamltheory.tasks import check_tasks
from tests.fewshot.small import noise_split

SPLIT = noise_split(8, 20)
STATISTICS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
shapes = st.tuples(
    st.integers(1, 8), st.integers(1, 8), st.integers(1, 12), st.integers(0, 2**40), st.integers(0, 10**6)
)


@settings(max_examples=50, deadline=None)
@given(shape=shapes)
def test_support_and_query_share_no_image_and_come_from_the_named_classes(shape):
    ways, shots, queries, seed, index = shape
    episode = sample_episode(SPLIT, ways, shots, queries, seed, index)
    assert episode.support.shape == (ways, shots)
    assert episode.query.shape == (ways, queries)
    assert len(set(episode.classes)) == ways
    images = np.concatenate([episode.support, episode.query], axis=1)
    assert len(np.unique(images)) == images.size
    assert (SPLIT.labels[images] == episode.classes[:, None]).all()


def test_an_episode_is_a_pure_function_of_seed_and_index():
    late = sample_episode(SPLIT, 5, 1, 15, 7, 41)
    for i in range(40):
        sample_episode(SPLIT, 5, 1, 15, 7, i)
    again = sample_episode(SPLIT.members, 5, 1, 15, 7, 41)
    np.testing.assert_array_equal(late.support, again.support)
    np.testing.assert_array_equal(late.query, again.query)
    assert not np.array_equal(late.query, sample_episode(SPLIT, 5, 1, 15, 7, 42).query)
    assert not np.array_equal(late.query, sample_episode(SPLIT, 5, 1, 15, 8, 41).query)


def test_episodes_are_the_choices_of_numpy_among_classes_with_enough_images():
    members = [np.arange(9), np.arange(9, 13), np.arange(13, 20), np.arange(20, 26)]
    random = numpy_generator(7, "episode", 3)
    classes = random.choice(4, 3, replace=False)
    images = [random.choice(members[c], 4, replace=False) for c in classes]
    found = sample_episode(members, 3, 1, 3, 7, 3)
    np.testing.assert_array_equal(found.classes, classes)
    np.testing.assert_array_equal(np.concatenate([found.support, found.query], 1), images)
    random = numpy_generator(7, "episode batch", 0)
    unused = [list(random.permutation(each)) for each in members]
    for episode in sample_episodes(members, 3, 2, 2, 1, 7):
        classes = random.choice([c for c in range(4) if len(unused[c]) >= 3], 2, replace=False)
        images = [[unused[c].pop(0) for _ in range(3)] for c in classes]
        np.testing.assert_array_equal(episode.classes, classes)
        np.testing.assert_array_equal(np.concatenate([episode.support, episode.query], 1), images)
        assert episode.support.shape == (2, 2)


def test_classes_and_images_are_drawn_evenly():
    episodes = [sample_episode(SPLIT, 2, 1, 1, 0, i) for i in range(2000)]
    classes = np.bincount(np.concatenate([e.classes for e in episodes]), minlength=8)
    supports = np.bincount(np.concatenate([e.support.ravel() for e in episodes]), minlength=160)
    # Chi-squared over 8 classes (7 degrees) and 160 images (159): far beyond the 1e-6 quantiles 43 and 260.
    assert ((classes - 500) ** 2 / 500).sum() < 43
    assert ((supports - 25) ** 2 / 25).sum() < 260


def test_too_few_classes_or_images_are_named():
    with pytest.raises(ConfigurationError, match="9 ways"):
        sample_episode(SPLIT, 9, 1, 1, 0, 0)
    with pytest.raises(ConfigurationError, match="at least 1"):
        sample_episode(SPLIT, 2, 0, 1, 0, 0)
    labels = np.array([0] * 5 + [1] * 2, dtype=np.int64)
    uneven = ImageSplit(np.zeros((7, 4, 4, 3), np.uint8), labels, ("many", "few"))
    with pytest.raises(DataError, match=r"'few' has 2 images, an episode needs 1 \+ 2"):
        sample_episode(uneven, 2, 1, 2, 0, 0)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 10**6),
)
def test_a_batch_repeats_no_image(count, ways, shots, queries, seed):
    batch = sample_episodes(SPLIT, count, ways, shots, queries, seed)
    images = np.concatenate([np.concatenate([e.support, e.query], axis=1) for e in batch])
    assert len(np.unique(images)) == images.size
    classes = np.concatenate([e.classes for e in batch])
    assert (SPLIT.labels[images] == classes[:, None]).all()


def test_a_longer_batch_begins_with_the_shorter_one():
    short, long = (sample_episodes(SPLIT, count, 5, 1, 2, 3, 9) for count in (2, 4))
    for a, b in zip(short, long, strict=False):
        np.testing.assert_array_equal(a.support, b.support)
        np.testing.assert_array_equal(a.query, b.query)


def test_a_batch_larger_than_the_split_is_refused():
    for ways, message in (
        (0, "ways 0, shots 1 and queries 1 must all be at least 1"),
        (9, "9 ways were asked for"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            sample_episodes(SPLIT, 0, ways, 1, 1, 0)
    with pytest.raises(ConfigurationError, match="unused images"):
        sample_episodes(SPLIT, 30, 5, 2, 3, 0)


def test_tasks_hold_the_images_and_labels_of_their_episodes():
    tasks = check_tasks(episode_tasks(SPLIT, 3, 4, 2, 3, 5, 1, **STATISTICS))
    episodes = sample_episodes(SPLIT, 3, 4, 2, 3, 5, 1)
    for task, episode in zip(tasks, episodes, strict=True):
        raw = torch.from_numpy(SPLIT.images[episode.query.ravel()])
        assert torch.equal(task.query_x, normalise(raw, **STATISTICS))
        assert task.support_x.shape == (8, 3, 12, 12)
        assert torch.equal(task.support_y.argmax(1), torch.arange(4).repeat_interleave(2))
        assert torch.equal(task.query_y.sum(1), torch.ones(12))


def test_tasks_in_double_with_centred_labels():
    (task,) = episode_tasks(SPLIT, 1, 5, 1, 2, 0, **STATISTICS, centred=True, dtype=torch.float64)
    (episode,) = sample_episodes(SPLIT, 1, 5, 1, 2, 0)
    assert task.support_x.dtype == torch.float64
    torch.testing.assert_close(task.support_y.sum(0), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(task.support_y + 0.2, one_hot(episode.support_labels, 5))


def test_labels_are_centred_only_where_it_is_asked_for_and_tasks_have_one_dtype():
    rows = torch.eye(3, dtype=torch.float64)[[0, 2, 2]]
    assert torch.equal(one_hot(np.array([0, 2, 2]), 3), rows)
    torch.testing.assert_close(one_hot(np.array([0, 2, 2]), 3, True), rows - 1 / 3)
    (episode,) = sample_episodes(SPLIT, 1, 3, 1, 2, 0)
    query, support = torch.randn(6, 4), torch.randn(3, 4)
    plain, double = (
        episode_task(episode, query, support),
        episode_task(episode, query, support, True, torch.double),
    )
    (shown,) = tasks_of_episodes(SPLIT, [episode], **STATISTICS)
    (drawn,) = episode_tasks(SPLIT, 1, 3, 1, 2, 0, **STATISTICS)
    labels = torch.eye(3).repeat_interleave(2, 0)
    for task in (plain, shown, drawn):
        assert all(part.dtype == torch.float32 for part in vars(task).values())
        assert torch.equal(task.query_y, labels)
        assert torch.equal(task.support_y, torch.eye(3))
    assert torch.equal(shown.query_x, drawn.query_x)
    assert all(part.dtype == torch.float64 for part in vars(double).values())
    torch.testing.assert_close(double.query_y, labels.double() - 1 / 3)
    torch.testing.assert_close(double.query_x, query.double())


def test_inputs_that_do_not_fit_the_episode_are_refused():
    episode = sample_episode(SPLIT, 3, 1, 2, 0, 0)
    with pytest.raises(ShapeError, match="6 and 3"):
        episode_task(episode, torch.zeros(3, 4), torch.zeros(6, 4))
