import pytest
import torch

from mamltheory.errors import ConfigurationError, ShapeError
from mamltheory.fewshot.resnet import RAMP, RATE, drop_block, dropout, resnet12
from mamltheory.fewshot.training import TrainConfig, start_training, train_epoch
from mamltheory.fewshot.training_state import restore, state_tensors
from mamltheory.rng import generator
from tests.fewshot.small import noise_data

TINY = (4, 6, 8, 10)


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("classes", "parameters", "printed"), [(64, 12_465_344, 12.5), (351, 12_649_311, 12.7)]
)
def test_resnet12_has_the_parameters_of_rfs_which_table_1_rounds(classes, parameters, printed):
    network = resnet12(classes, 0)
    assert count(network.blocks) == 12_424_320
    assert count(network) == parameters
    # 12.65 M is printed as 12.7 M: rounded up from 12,649,311 to the next tenth
    assert parameters / 1e6 == pytest.approx(printed, abs=0.051)


def test_features_are_the_averages_of_the_last_block_and_four_poolings_halve_the_side():
    network = resnet12(5, 0, TINY).eval()
    shapes = []
    for block in network.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: shapes.append(output.shape[2]))
    x = torch.randn(2, 3, 84, 84, generator=generator(0, "x"))
    assert network.features(x).shape == (2, 10)
    assert shapes == [42, 21, 10, 5]
    torch.testing.assert_close(network(x), network.classifier(network.features(x)))


def test_a_block_is_the_sum_of_path_and_shortcut_then_activation_then_pooling():
    block = resnet12(5, 0, TINY).eval().blocks[0]
    x = torch.randn(1, 3, 6, 6, generator=generator(1, "x"))
    convolutions = [m for m in block.path if isinstance(m, torch.nn.Conv2d)]
    y = x
    for i, convolution in enumerate(convolutions):
        y = torch.nn.functional.conv2d(y, convolution.weight, padding=1) / (1 + 1e-5) ** 0.5
        y = torch.where(y > 0, y, 0.1 * y) if i < 2 else y
    y = y + torch.nn.functional.conv2d(x, block.shortcut[0].weight) / (1 + 1e-5) ** 0.5
    y = torch.where(y > 0, y, 0.1 * y).unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
    torch.testing.assert_close(block(x), y)


def test_weights_depend_on_the_seed_and_not_on_the_global_generator():
    before = torch.random.get_rng_state()
    one, two, other = (resnet12(5, seed, TINY).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["classifier.weight"], other["classifier.weight"])
    wide = resnet12(64, 0).blocks[1].path[0].weight
    assert float(wide.detach().std()) == pytest.approx((2 / (160 * 9)) ** 0.5, rel=0.01)


def test_the_classifier_is_uniform_within_one_over_the_root_of_its_inputs():
    classifier = resnet12(64, 0, (8, 200)).classifier
    for value in (classifier.weight.detach(), classifier.bias.detach()):
        assert 0.9 < float(value.abs().max()) * 200**0.5 <= 1
    assert float(classifier.weight.detach().var()) * 200 == pytest.approx(1 / 3, rel=0.04)


def test_dropout_keeps_the_mean_and_drops_its_share():
    x = torch.ones(50, 4, 20, 20)
    dropped = dropout(x, 0.1, generator(0, "mask"))
    assert float((dropped == 0).double().mean()) == pytest.approx(0.1, abs=0.005)
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.005)


@pytest.mark.parametrize("side", [10, 5, 3])
def test_drop_block_leaves_out_squares_and_keeps_the_sum(side):
    x = torch.ones(400, 8, side, side)
    dropped = drop_block(x, 0.1, generator(0, "mask"))
    holes = (dropped == 0).float()
    # Squares overlap: somewhat less than a tenth is left out.
    assert 0.07 < float(holes.mean()) <= 0.105
    assert float(dropped.mean()) == pytest.approx(1.0, abs=1e-5)
    block = min(side, 5)
    opened = torch.nn.functional.max_pool2d(
        torch.nn.functional.pad(1 - torch.nn.functional.max_pool2d(1 - holes, block, 1), [block - 1] * 4),
        block,
        1,
    )
    torch.testing.assert_close(opened, holes)  # every hole is a union of whole squares


def test_drop_block_grows_with_the_training_passes_alone():
    network = resnet12(5, 0, TINY)
    x = torch.randn(2, 3, 32, 32, generator=generator(0, "x"))
    assert network._rate == 0
    network(x), network.eval()(x)
    assert network._rate == pytest.approx(RATE / RAMP)
    network.set_extra_state(torch.tensor([0, 10 * RAMP]))
    assert network._rate == RATE


def test_a_training_of_resnet12_that_is_stopped_goes_on_bit_for_bit():
    data, config = noise_data(16), TrainConfig(batch_size=16, epochs=1, milestones=(), drop_path=0.2)
    whole, _ = train_epoch(start_training(resnet12(6, 0, TINY), data, config))
    half, _ = train_epoch(start_training(resnet12(6, 0, TINY), data, config), lambda step, _: step == 4)
    rest = restore(start_training(resnet12(6, 9, TINY), data, config), *state_tensors(half))
    end, metrics = train_epoch(rest)
    assert metrics is not None
    ours, theirs = state_tensors(end)[0], state_tensors(whole)[0]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_network_without_classes_is_refused():
    with pytest.raises(ConfigurationError, match="at least one"):
        resnet12(0, 0)


def test_images_that_are_too_small_are_refused():
    with pytest.raises(ShapeError, match="12 × 12 pixels are halved 4 times"):
        resnet12(5, 0, TINY)(torch.zeros(1, 3, 12, 12))
