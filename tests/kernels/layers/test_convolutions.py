import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mamltheory import generator
from mamltheory.kernels.layers import convolutions
from mamltheory.kernels.layers.convolutions import is_plain, layer_output, reads_one_grid
from mamltheory.kernels.layers.pooling import pooled
from mamltheory.kernels.layers.rules import gradient_cotangents, layer_gradients

CASES = st.tuples(
    st.sampled_from([(1, 1), (3, 3), (1, 5), (5, 1)]),  # kernel
    st.sampled_from([1, 2]),  # stride
    st.sampled_from([1, 2]),  # dilation
    st.sampled_from([1, 2, 4]),  # groups
)
SPACE = st.sampled_from([(5, 7), (8, 8), (6, 11), (16, 17)])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "convolutions"), dtype=torch.float64)


def layer_of(size, stride, dilation, groups, channels=(4, 4), padding=None, mode="zeros", kind=nn.Conv2d):
    padding = tuple(dilation * (s - 1) // 2 for s in size) if padding is None else padding
    layer = nn.utils.skip_init(
        kind,
        *channels,
        size,
        stride,
        padding,
        dilation,
        groups,
        bias=False,
        padding_mode=mode,
        dtype=torch.float64,
    )
    with torch.no_grad():
        layer.weight.copy_(draw(*layer.weight.shape, seed=1))
    return layer


def exact_rows(layer, x, cotangents):
    """One backward pass a row."""
    return torch.stack(
        [
            torch.autograd.grad(layer(x[i : i + 1]), layer.weight, each[None])[0].flatten()
            for i, ways in enumerate(cotangents)
            for each in ways
        ]
    )


def cotangents_of(layer, x, k, seed=2):
    return draw(len(x), k, *layer(x).shape[1:], seed=seed)


@given(case=CASES, space=SPACE, k=st.integers(1, 2))
@settings(max_examples=40, deadline=None)
def test_rows_of_a_convolution_are_autograds_gradients(case, space, k):
    layer, x = layer_of(*case), draw(3, 4, *space)
    cotangents = cotangents_of(layer, x, k)
    rows = layer_gradients(nn.Conv2d, layer, x, cotangents, ["weight"])["weight"]
    torch.testing.assert_close(rows, exact_rows(layer, x, cotangents), rtol=1e-10, atol=1e-10)


UNEVEN = {  # layer, size of the images
    "dense": (layer_of((2, 3), (2, 1), (1, 2), 1, (4, 6), (1, 0)), (5, 8)),
    "dense, many positions": (layer_of((3, 2), (1, 2), (2, 1), 1, (3, 2), (2, 1)), (15, 18)),
    "groups": (layer_of((3, 2), (1, 2), 1, 2, (4, 6), (0, 1)), (6, 5)),
    "groups, many positions": (layer_of((2, 3), (2, 1), (1, 2), 2, (4, 2), (1, 0)), (20, 18)),
    "depthwise": (layer_of((3, 2), 1, (1, 2), 4, padding=(2, 1)), (5, 6)),
    "depthwise, strides down": (layer_of((3, 3), (2, 1), 1, 4, padding=1), (6, 5)),
    "depthwise, strides across": (layer_of((3, 3), (1, 2), 1, 4, padding=1), (6, 5)),
    "depthwise, two outputs a channel": (layer_of((3, 2), 1, 1, 4, (4, 8), (1, 0)), (5, 6)),
    "depthwise, padded beyond the kernel": (layer_of((2, 3), 1, 1, 4, padding=(2, 0)), (5, 6)),
    "depthwise, four grids": (layer_of((3, 3), 1, 2, 4, padding=2), (9, 8)),
    "depthwise, four grids of five taps": (layer_of((5, 3), 1, 2, 4, padding=2), (10, 9)),
    "depthwise, small image": (layer_of((3, 3), 1, 2, 4, padding=2), (7, 8)),
    "depthwise, dilated one way": (layer_of((3, 3), 1, (2, 1), 4, padding=(2, 1)), (9, 8)),
    "depthwise, padded one way": (layer_of((3, 3), 1, 2, 4, padding=(2, 1)), (9, 8)),
    "pointwise": (layer_of((1, 1), 1, 1, 1, (4, 6)), (3, 5)),
    "pointwise, strides": (layer_of((1, 1), (2, 1), 1, 1, (4, 6)), (5, 4)),
    "pointwise, padded": (layer_of((1, 1), 1, 1, 1, (4, 6), (0, 1)), (3, 5)),
    "pointwise, groups": (layer_of((1, 1), 1, 1, 2, (4, 6)), (3, 5)),
    "pointwise, every other pixel": (layer_of((1, 1), 2, 1, 1, (4, 6)), (5, 4)),
    "column": (layer_of((3, 1), 1, 1, 1, (4, 6), 0), (5, 4)),
    "one channel": (layer_of((2, 1), 1, 1, 1, (1, 1), 0), (5, 4)),
    "square of four": (layer_of((2, 2), 1, 1, 1, (4, 6), 0), (5, 4)),
    "one grid": (layer_of((3, 1), 2, (2, 1), 2, (4, 6), (2, 0)), (7, 6)),
}


@pytest.mark.parametrize("name", UNEVEN)
def test_nothing_takes_one_axis_or_one_channel_for_another(name):
    """Three outputs of two samples; channels, axes, strides, dilations and padding that differ."""
    layer, space = UNEVEN[name]
    x = draw(2, layer.in_channels, *space)
    torch.testing.assert_close(layer_output(layer, x), layer(x))
    check_second_derivatives(layer, space)
    check_rows_and_their_cotangents(layer, x, 3)
    check_rows_and_their_cotangents(layer, x[:1], 1)
    if layer.groups == 1:
        cotangents, geometry = cotangents_of(layer, x, 3), convolutions.zero_padded(layer, x)[1]
        rows = convolutions._tap_gradients(x, cotangents, layer.weight.shape, geometry)
        torch.testing.assert_close(rows, exact_rows(layer, x, cotangents))
    if reads_one_grid(layer):
        torch.testing.assert_close(convolutions.convolved_on_grid(layer, x, layer.weight), layer(x))


@pytest.mark.parametrize(
    ("kind", "size", "stride", "padding", "dilation", "space"),
    [
        (nn.Conv1d, (3,), (2,), (1,), (2,), (9,)),
        (nn.Conv3d, (2, 1, 3), (1, 2, 1), (1, 0, 2), (1, 1, 2), (3, 5, 6)),
    ],
)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_nor_do_convolutions_of_one_axis_and_three(kind, size, stride, padding, dilation, space, groups):
    layer = layer_of(size, stride, dilation, groups, (4, 8), padding, kind=kind)
    x = draw(2, 4, *space)
    cotangents = cotangents_of(layer, x, 3)
    rows = layer_gradients(kind, layer, x, cotangents, ["weight"])["weight"]
    torch.testing.assert_close(rows, exact_rows(layer, x, cotangents))
    geometry = convolutions.zero_padded(layer, x)[1]
    rows = convolutions._grouped_gradients(x, cotangents, layer.weight.shape, geometry)
    torch.testing.assert_close(rows, exact_rows(layer, x, cotangents))


def test_depthwise_gradients_come_from_blocks_of_images_of_at_most_so_many_bytes(monkeypatch):
    layer, sizes, grouped = layer_of((3, 3), 1, 1, 4, padding=1), [], convolutions._grouped_gradients
    x = draw(5, 4, 6, 7)
    monkeypatch.setattr(convolutions, "BLOCK", 2 * 8 * 4 * 6 * 7)
    monkeypatch.setattr(
        convolutions, "_grouped_gradients", lambda *args: sizes.append(len(args[0])) or grouped(*args)
    )
    check_rows_and_their_cotangents(layer, x, 1)
    monkeypatch.setattr(convolutions, "BLOCK", 1)
    check_rows_and_their_cotangents(layer, x[:2], 1)
    assert sizes == [2, 2, 1, 1, 1]


@pytest.mark.parametrize("last", [False, True], ids=["planes", "channels last"])
def test_a_view_of_some_pixels_has_a_gradient_in_the_layout_of_the_image(last):
    x = draw(2, 3, 5, 7)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    leaf = (2 * x.requires_grad_()).detach().requires_grad_()
    view = convolutions.pixels(leaf, 1, 3)
    assert view.data_ptr() == leaf.data_ptr() + 8 * leaf[:, :, 1:, 1:].storage_offset()
    assert torch.equal(view, leaf[:, :, [1, 4]][..., [1, 4]])
    (gradient,) = torch.autograd.grad(view.sum(), leaf)
    assert gradient.stride() == leaf.stride()
    assert int(gradient.sum()) == view.numel()


def check_second_derivatives(layer, space):
    """By the input and by weights inside and outside."""
    x = draw(3, layer.in_channels, *space).requires_grad_()
    weights = torch.tensor([0.4, 0.7], dtype=torch.float64, requires_grad=True)

    def slope(function):
        inner = function(weights[0] * x).pow(2)
        (by_x,) = torch.autograd.grad(weights[1] * inner.sum(), x, create_graph=True)
        return torch.autograd.grad(by_x.pow(2).sum(), [x, weights])

    for mine, plain in zip(slope(lambda y: layer_output(layer, y)), slope(layer), strict=True):
        torch.testing.assert_close(mine, plain)


@given(case=CASES, space=SPACE)
@settings(max_examples=20, deadline=None)
def test_a_convolution_has_the_second_derivatives_of_its_module(case, space):
    check_second_derivatives(layer_of(*case), space)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("channels", "groups", "padding"),
    [((4, 4), 2, 1), ((4, 6), 2, 1), ((6, 4), 2, 1), ((2, 4), 2, 1), ((1, 3), 1, 1), ((4, 4), 4, 3)],
)
def test_so_has_a_grouped_convolution_with_other_channels_or_more_padding_than_kernel(
    channels, groups, padding, stride
):
    check_second_derivatives(layer_of((3, 3), stride, 1, groups, channels, padding), (6, 7))


@pytest.mark.parametrize("padding_mode", ["circular", "reflect", "zeros"])
@pytest.mark.parametrize(
    ("size", "stride", "groups"), [(3, 1, 1), (3, 2, 2), (3, 1, 4), (1, 1, 1), (1, 2, 1)]
)
def test_rows_and_their_cotangents_know_how_a_layer_is_padded(padding_mode, size, stride, groups):
    check_rows_and_their_cotangents(
        layer_of((size, size), stride, 1, groups, padding=size // 2, mode=padding_mode), draw(3, 4, 6, 6), 2
    )


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch's, once in a process
@pytest.mark.parametrize("padding_mode", ["circular", "reflect", "zeros"])
@pytest.mark.parametrize(("size", "dilation", "groups"), [((2, 4), 1, 1), ((4, 3), 1, 4), ((2, 3), 3, 2)])
def test_same_padding_of_even_kernels_has_its_longer_side_where_torch_has_it(
    padding_mode, size, dilation, groups
):
    layer = layer_of(size, 1, dilation, groups, padding="same", mode=padding_mode)
    check_rows_and_their_cotangents(layer, draw(3, 4, 6, 6), 2)


def check_rows_and_their_cotangents(layer, x, k):
    cotangents = cotangents_of(layer, x, k)
    exact = exact_rows(layer, x, cotangents)
    rows = layer_gradients(nn.Conv2d, layer, x, cotangents, ["weight"])["weight"]
    torch.testing.assert_close(rows, exact)
    weights, other_x, other = draw(*rows.shape, seed=3), draw(*x.shape, seed=4), cotangents_of(layer, x, k, 5)
    by_x, by_cotangents = gradient_cotangents(nn.Conv2d, layer, x, cotangents, {"weight": weights})
    # ⟨rows, weights⟩ is linear in either factor.
    torch.testing.assert_close(
        (by_x * other_x).sum(), (exact_rows(layer, other_x, cotangents) * weights).sum()
    )
    torch.testing.assert_close((by_cotangents * other).sum(), (exact_rows(layer, x, other) * weights).sum())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "make",
    [
        lambda stride: nn.MaxPool2d(3, stride, padding=1),
        lambda stride: nn.AvgPool2d(3, stride, padding=1, count_include_pad=False),
    ],
    ids=["max", "avg"],
)
@pytest.mark.parametrize("space", [(7, 8), (6, 6), (1, 3)])
def test_fast_pooling_is_pooling(make, stride, space):
    x = draw(3, 5, *space).float().round(decimals=1).requires_grad_()
    module = make(stride)
    found, expected = pooled(module, x), module(x)
    torch.testing.assert_close(found, expected)
    cotangent = draw(*expected.shape, seed=1).float()
    by_found, by_expected = (torch.autograd.grad(y, x, cotangent)[0] for y in (found, expected))
    torch.testing.assert_close(by_found, by_expected)


@given(case=CASES, space=SPACE, k=st.integers(1, 2))
@settings(max_examples=40, deadline=None)
def test_a_product_a_tap_gives_the_gradients_of_a_dense_convolution(case, space, k):
    """The way of a GPU, on a CPU: kernels of one axis and of images smaller than the kernel's reach included."""
    size, stride, dilation, _ = case
    layer, x = layer_of(size, stride, dilation, 1), draw(3, 4, *space)
    cotangents = cotangents_of(layer, x, k)
    geometry = convolutions.zero_padded(layer, x)[1]
    rows = convolutions._tap_gradients(x, cotangents, layer.weight.shape, geometry)
    torch.testing.assert_close(rows, exact_rows(layer, x, cotangents))


@pytest.mark.parametrize(("axes", "kernel"), [(1, nn.Conv1d), (3, nn.Conv3d)])
def test_so_it_does_along_one_axis_and_three(axes, kernel):
    layer = nn.utils.skip_init(kernel, 4, 4, 3, 2, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(draw(*layer.weight.shape, seed=1))
    x = draw(2, 4, *[7] * axes)
    cotangents, geometry = cotangents_of(layer, x, 2), convolutions.zero_padded(layer, x)[1]
    rows = convolutions._tap_gradients(x, cotangents, layer.weight.shape, geometry)
    torch.testing.assert_close(rows, exact_rows(layer, x, cotangents))


@pytest.mark.parametrize(("samples", "way"), [(2, "_grouped_gradients"), (3, "_tap_gradients")])
def test_one_number_for_a_kind_of_device_chooses_the_way(monkeypatch, samples, way):
    layer, x = layer_of((3, 3), 1, 1, 1), draw(samples, 4, 16, 17)
    cotangents, geometry = cotangents_of(layer, x, 1), convolutions.zero_padded(layer, x)[1]
    usual, taken = convolutions.weight_gradients(x, cotangents, layer.weight.shape, geometry), []
    for name in ("_grouped_gradients", "_tap_gradients"):
        function = getattr(convolutions, name)
        noting = lambda *args, name=name, function=function: taken.append(name) or function(*args)  # noqa: E731
        monkeypatch.setattr(convolutions, name, noting)
    monkeypatch.setitem(convolutions.MOST_GROUPS, "cpu", 2)
    rows = convolutions.weight_gradients(x, cotangents, layer.weight.shape, geometry)
    torch.testing.assert_close(rows, usual)
    assert taken == [way]


def test_a_plain_convolution_has_two_axes_no_bias_and_numbers_of_zeros_around():
    plain = {"bias": False, "padding": 1, "padding_mode": "zeros"}
    assert is_plain(nn.Conv2d(1, 1, 3, **plain))
    for change in ({"bias": True}, {"padding_mode": "circular"}, {"padding": "same"}):
        assert not is_plain(nn.Conv2d(1, 1, 3, **{**plain, **change}))
    assert not is_plain(nn.Conv1d(1, 1, 3, bias=False))
    assert not is_plain(nn.Tanh())


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "padding", "one_grid"),
    [
        (1, 2, 1, 0, True),
        (3, 2, 2, 2, True),
        ((1, 3), 2, (1, 2), 0, True),
        ((1, 3), 2, 1, 0, False),
        (3, 2, 1, 0, False),
        (3, 2, 2, 1, False),
        (3, 2, 2, (2, 1), False),
        (1, (2, 1), 1, 0, False),
    ],
)
def test_a_convolution_reads_one_grid_where_every_tap_and_every_pad_is_even(
    kernel, stride, dilation, padding, one_grid
):
    layer = nn.Conv2d(1, 1, kernel, stride, padding, dilation)
    assert reads_one_grid(layer) == one_grid
