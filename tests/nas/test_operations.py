from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import conv2d, pad

from mamltheory.errors import ConfigurationError, GenotypeError
from mamltheory.nas.network import initialise, parameter_count
from mamltheory.nas.operations import (
    OPERATIONS,
    Convolution,
    FactorizedReduce,
    Head,
    build_operation,
    group_count,
    leading_module,
    leading_step,
    normalisation,
)
from mamltheory.rng import generator


@given(
    name=st.sampled_from(OPERATIONS),
    stride=st.sampled_from([1, 2]),
    size=st.integers(3, 9),
    norm=st.sampled_from(["batch", "group"]),
)
@settings(max_examples=40, deadline=None)
def test_every_operation_keeps_the_channels_and_divides_the_resolution_rounding_up(name, stride, size, norm):
    x = torch.randn(2, 4, size, size, generator=generator(0, "x"))
    expected = -(-size // stride)
    x = leading_module(leading_step(name, stride), stride)(x)
    assert build_operation(name, 4, stride, norm)(x).shape == (2, 4, expected, expected)


@pytest.mark.parametrize(
    ("name", "stride", "count"),
    [
        ("skip_connect", 1, 0),
        ("skip_connect", 2, 64 + 16),
        ("conv_3x3", 1, 72 + 64 + 16),
        ("dil_conv_3x3", 2, 72 + 64 + 16),
        ("sep_conv_3x3", 2, 2 * (72 + 64 + 16)),
        ("conv_1x5_5x1", 1, 10 * 64 + 16),
        ("avg_pool_3x3BN", 1, 16),
        ("max_pool_3x3BN", 2, 16),
    ],
)
def test_operations_have_the_parameters_of_the_definitions_at_8_channels(name, stride, count):
    assert parameter_count(build_operation(name, 8, stride, "batch")) == count


def test_a_dilated_convolution_sees_two_pixels_away_and_an_ordinary_one_does_not():
    x = torch.zeros(1, 2, 9, 9)
    x[:, :, 4, 4] = 1.0
    reach = {}
    for name in ("conv_3x3", "dil_conv_3x3"):
        operation = build_operation(name, 2, 1, "batch")
        initialise(operation, 0)
        changed = (operation[:2](x) != 0).any(1)[0].nonzero() - 4
        reach[name] = int(changed.abs().max())
    assert reach == {"conv_3x3": 1, "dil_conv_3x3": 2}


LAYOUTS = (torch.contiguous_format, torch.channels_last)


def _agree_with_gradients(fast, plain, inputs):
    """Whether outputs and gradients of two functions agree to 1e-12."""
    outputs = fast(), plain()
    cotangent = torch.randn(outputs[1].shape, generator=generator(0, "cotangent"), dtype=torch.float64)
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
    pairs = zip(*(torch.autograd.grad(y, inputs, cotangent) for y in outputs), strict=True)
    for by_fast, by_plain in pairs:
        torch.testing.assert_close(by_fast, by_plain, rtol=0, atol=1e-12)


@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2]),
    dilation=st.sampled_from([1, 2]),
    depthwise=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
)
@settings(max_examples=60, deadline=None)
def test_a_convolution_of_cells_is_torchs_own_with_its_gradients(
    size, kernel, stride, dilation, depthwise, layout
):
    padding = dilation * (kernel // 2)
    layer = Convolution(
        4, 4, kernel, stride, padding, dilation, groups=4 if depthwise else 1, bias=False, dtype=torch.float64
    )
    initialise(layer, 0)
    layer.to(memory_format=layout)
    x = torch.randn(3, 4, *size, generator=generator(0, "x"), dtype=torch.float64)
    x = x.contiguous(memory_format=layout).requires_grad_()
    plain = partial(conv2d, x, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    _agree_with_gradients(partial(layer, x), plain, [x, layer.weight])


def test_a_convolution_of_a_single_image_is_torchs_own():
    layer, x = Convolution(4, 4, 3, 2, 2, 2, groups=4, bias=False), torch.randn(4, 7, 6)
    initialise(layer, 0)
    torch.testing.assert_close(layer(x), conv2d(x, layer.weight, None, 2, 2, 2, 4))


@given(size=st.tuples(st.integers(2, 9), st.integers(2, 9)), layout=st.sampled_from(LAYOUTS))
@settings(max_examples=40, deadline=None)
def test_a_reduction_is_two_strided_convolutions_of_the_framed_image(size, layout):
    reduce = FactorizedReduce(4, 6, "group").double()
    initialise(reduce, 0)
    reduce.to(memory_format=layout)
    x = torch.randn(3, 4, *size, generator=generator(0, "x"), dtype=torch.float64)
    x = x.contiguous(memory_format=layout).requires_grad_()

    def plain():
        shifted = pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        halves = [conv2d(y, layer.weight, stride=2) for y, layer in ((x, reduce.even), (shifted, reduce.odd))]
        return reduce.norm(torch.cat(halves, 1))

    _agree_with_gradients(partial(reduce, x), plain, [x, *reduce.parameters()])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["dil_conv_3x3", "skip_connect"])
def test_the_gradient_of_an_operation_of_stride_2_has_the_layout_of_its_input(name, layout):
    operation = build_operation(name, 4, 2, "batch").to(memory_format=layout)
    initialise(operation, 0)
    x = torch.randn(3, 4, 8, 8, generator=generator(0, "x")).contiguous(memory_format=layout)
    operation(x.requires_grad_()).square().sum().backward()
    assert x.grad.is_contiguous(memory_format=layout)


def test_average_pooling_does_not_count_the_padding():
    pooled = leading_module("avg", 1)(torch.ones(1, 2, 4, 4))
    assert torch.equal(pooled, torch.ones(1, 2, 4, 4))


def test_the_two_halves_of_a_reduction_read_pixels_one_apart():
    reduce = FactorizedReduce(1, 2, "batch")
    with torch.no_grad():
        reduce.even.weight.fill_(1.0)
        reduce.odd.weight.fill_(1.0)
    reduce.norm = torch.nn.Identity()
    x = torch.arange(9.0).reshape(1, 1, 3, 3)
    out = reduce(x)[0]
    assert torch.equal(out[0], torch.tensor([[0.0, 2.0], [6.0, 8.0]]))
    assert torch.equal(out[1], torch.tensor([[4.0, 0.0], [0.0, 0.0]]))


@given(channels=st.integers(2, 200))
@settings(max_examples=50, deadline=None)
def test_groups_divide_the_channels_and_hold_at_least_two(channels):
    groups = group_count(channels)
    assert channels % groups == 0
    assert 1 <= groups <= 16
    assert channels // groups >= 2


@pytest.mark.paper("App. E: normalisation")
def test_the_paper_size_keeps_16_groups():
    assert group_count(34) == 2
    assert [group_count(c) for c in (48, 96, 192, 32, 16, 8)] == [16, 16, 16, 16, 8, 4]


def test_one_channel_a_group_would_erase_the_pooled_features():
    x = torch.randn(4, 8, 6, 6, generator=generator(0, "x"))
    erased = torch.nn.GroupNorm(8, 8)(x).mean(dim=(2, 3)).detach()
    kept = normalisation("group", 8)(x).mean(dim=(2, 3)).detach()
    assert float(erased.abs().max()) < 1e-6 < 1e-2 < float(kept.abs().max())


def test_only_pooling_and_the_identity_do_not_begin_with_a_relu():
    steps = {name: leading_step(name, 1) for name in OPERATIONS}
    assert {name for name, step in steps.items() if step != "relu"} == {
        "skip_connect",
        "avg_pool_3x3BN",
        "max_pool_3x3BN",
    }
    assert leading_step("skip_connect", 2) == "relu"


def test_the_row_of_five_comes_before_the_column_as_its_name_says():
    operation = build_operation("conv_1x5_5x1", 8, 2, "batch")
    layers = [(m.kernel_size, m.stride, m.padding) for m in operation if isinstance(m, torch.nn.Conv2d)]
    assert layers == [((1, 5), (2, 2), (0, 2)), ((5, 1), (1, 1), (2, 0))]


def test_unknown_names_and_impossible_norms_are_refused():
    with pytest.raises(GenotypeError, match="choose one of"):
        build_operation("none", 8, 1, "batch")
    with pytest.raises(ConfigurationError, match="at least 2 channels"):
        normalisation("group", 1)
    with pytest.raises(ConfigurationError, match="two halves"):
        FactorizedReduce(3, 1, "batch")


def test_convolutions_and_heads_begin_with_weights_of_zero():
    layers = [Convolution(3, 4, 3, bias=False), Head(3, 4)]
    assert not any(value.any() for layer in layers for value in layer.parameters())
