"""What a trained network expects of the images that it is given; kept with its weights."""

from dataclasses import asdict, dataclass

from mamltheory.errors import CheckpointError, ValueRangeError
from mamltheory.fewshot.images import ImageData, check_statistics
from mamltheory.files import shown


@dataclass(frozen=True)
class Inputs:
    """The images and classes that a network was trained on, as far as its use on other images needs them.

    `image_size`: side of the square images in pixels; `classes`: number of training classes, one logit each;
    `mean` and `std`: per channel on the scale 0..1; `mirrors`: whether a mirrored image shows the same class.
    """

    image_size: int
    classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    mirrors: bool

    def record(self) -> dict[str, object]:
        """As JSON gives it back."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}


def inputs_of(data: ImageData) -> Inputs:
    """What a network that is trained on these data expects."""
    side, classes = data.train.images.shape[1], len(data.train.class_names)
    return Inputs(side, classes, data.mean, data.std, data.mirrors)


def recorded_inputs(record: object) -> Inputs:
    """The inverse of :meth:`Inputs.record`; raises CheckpointError for anything that it would not write."""
    match record:
        case {
            "image_size": int(size), "classes": int(classes), "mirrors": bool(mirrors),
            "mean": [float(), float(), float()] as mean, "std": [float(), float(), float()] as std,
        } if min(size, classes) > 0:  # fmt: skip
            inputs = Inputs(size, classes, tuple(mean), tuple(std), mirrors)
        case _:
            raise CheckpointError(
                f"the saved training describes its images as {shown(record)}: expected image_size, classes, mean, "
                "std and mirrors; train anew"
            )
    try:
        check_statistics(inputs.mean, inputs.std)
    except ValueRangeError as error:
        raise CheckpointError(
            f"the saved training describes impossible images ({error}): train anew"
        ) from None
    return inputs
