"""What every refusal of a damaged file is: one short line."""

import pytest

from mamltheory.errors import CheckpointError


def refused(function, *arguments, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    return str(caught.value)
