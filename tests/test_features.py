"""MNISTshowFeat: its window, driven by the mouse, and the pictures it writes without one."""

import numpy as np
import own_networks
import pytest
import torch
from scripts import refused
from windows import ONE, SEVEN, click, draw, hover, opened, part, settle

import MNISTshowFeat
from mnist.datasets.image_set import MNIST
from mnist.gui.maps import diverging_colours
from mnist.models.features import FeatureReader
from mnist.models.weights import Network, save_weights


@pytest.fixture
def window(tmp_path):
    with opened(MNISTshowFeat, tmp_path) as window:
        draw(window.canvas, SEVEN)
        settle(window)
        yield window


def responses(window):
    """The first layer's maps, float (20, 24, 24), computed the long way."""
    x = MNIST.normalise(part(window, "network_input").image[None])[0, 0].astype(float)
    weights, biases = (tensor.detach().double().numpy() for tensor in
                       window.reader.network.net.conv1.parameters())
    patches = np.lib.stride_tricks.sliding_window_view(x, (5, 5))
    return np.einsum("rcij,mij->mrc", patches, weights[:, 0]) + biases[:, None, None]


def test_maps_are_those_of_the_network(window):
    first, second = window.panel.layers
    expected = responses(window)
    assert np.abs(first.conv.maps - expected).max() < 1e-4
    assert np.allclose(first.pool.maps, expected.reshape(20, 12, 2, 12, 2).max((2, 4)), atol=1e-4)
    assert first.conv.scale == first.pool.scale == abs(first.conv.maps).max()
    assert second.conv.maps.shape == (50, 8, 8) and second.pool.maps.shape == (50, 4, 4)
    assert np.array_equal(second.pool.maps,
                          second.conv.maps.reshape(50, 4, 2, 4, 2).max((2, 4)))
    assert part(window, "answer").text() == "7"


@pytest.mark.parametrize("index", [0, 7, 19])
def test_hovering_a_filter(window, index):
    first = window.panel.layers[0]
    hover(window.panel.layers[0].filters, index)
    for grid in first.grids:
        assert grid.chosen == index
    assert np.array_equal(first.numbers.values, window.reader.layers[0].filters[index, 0])
    row, column = np.unravel_index(responses(window)[index].argmax(), (24, 24))
    assert part(window, "network_input").patch == (row, column, 5, 5)
    assert f"row {row}, column {column}" in first.facts.text()


def test_what_is_hovered_is_seen(window):
    before = window.panel.layers[0].filters.grab().toImage()
    hover(window.panel.layers[0].filters, 11)
    assert window.panel.layers[0].filters.grab().toImage() != before


def test_nothing_drawn_has_no_maps(window):
    click(window, "clear")
    assert all(layer.conv.maps is None for layer in window.panel.layers)
    assert part(window, "network_input").patch is None
    assert window.panel.layers[0].filters.maps is not None
    draw(window.canvas, ONE)
    settle(window)
    assert part(window, "answer").text() == "1"


@pytest.mark.parametrize("name", ["Branches", "Depthwise", "Named", "Residual"])
def test_any_network(tmp_path, name):
    """A tab for each convolution, whatever they are called and however they are connected."""
    net = getattr(own_networks, name)()
    save_weights(net, tmp_path / "mine.pth")
    with opened(MNISTshowFeat, tmp_path, "--network", f"{own_networks.__file__}:{name}",
                "--weights", str(tmp_path / "mine.pth")) as window:
        draw(window.canvas, SEVEN)
        settle(window)
        tabs = window.panel.layers
        assert len(tabs) == sum(isinstance(module, torch.nn.Conv2d) for module in net.modules())
        for index, tab in enumerate(tabs):
            window.panel.beside.setCurrentIndex(index)
            hover(tab.conv, len(tab.maps.maps) - 1)
            assert np.isfinite(tab.maps.maps).all() and "responds from" in tab.facts.text()
            row, column, height, width = part(window, "network_input").patch
            assert 0 <= row <= row + height <= 28 and 0 <= column <= column + width <= 28
        assert window.panel.beside.count() == len(tabs)
        assert part(window, "answer").text() in set("0123456789")


def reader_of(net):
    return FeatureReader(Network(net.eval()))


def test_what_a_map_sees_of_the_digit():
    reader = reader_of(own_networks.Branches())
    narrow, wide = reader.layers
    assert narrow.patches[10, 10].tolist() == [9, 9, 3, 3]
    assert wide.patches[10, 10].tolist() == [7, 7, 7, 7]
    assert wide.patches[0, 27].tolist() == [0, 24, 4, 4]  # the rest is padding
    strided, _, pointwise, _ = reader_of(own_networks.Depthwise()).layers
    assert strided.patches[3, 5].tolist() == [6, 10, 5, 5]
    assert pointwise.patches[1, 2].tolist() == [2, 4, 9, 9]


def test_pooled_maps_come_from_modules_too():
    reader = reader_of(own_networks.BatchNorm())
    maps, _ = reader.look(np.full((1, 28, 28), 99, np.uint8))
    assert [(len(seen.maps),) + seen.maps.shape[1:] + seen.pooled.shape[1:] for seen in maps] == [
        (6, 24, 24, 12, 12), (8, 10, 10, 5, 5)]


def test_maps_are_those_before_an_activation_in_place():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 5), torch.nn.ReLU(inplace=True),
                              torch.nn.Flatten(), torch.nn.Linear(2304, 10), torch.nn.LogSoftmax(1))
    digit = np.random.default_rng(0).integers(0, 256, (1, 28, 28), np.uint8)
    (seen,), _ = reader_of(net).look(digit)
    with torch.no_grad():
        expected = net[0](torch.from_numpy(MNIST.normalise(digit[None])))[0].numpy()
    assert expected.min() < 0 and np.allclose(seen.maps, expected, atol=1e-5)


def test_a_network_without_convolutions_is_an_invalid_request(tmp_path):
    save_weights(own_networks.Dense(), tmp_path / "mine.pth")
    _, err = refused("MNISTshowFeat.py", "--network", f"{own_networks.__file__}:Dense", "--weights",
                     tmp_path / "mine.pth", "--save", tmp_path / "pictures", status=2)
    assert "has no convolution" in err and not (tmp_path / "pictures").exists()


def test_colours_diverge_from_white():
    colours = diverging_colours(np.array([-9, -1, 0, 1, 9.0]), 1.0).astype(int)
    blue, _, white, _, red = colours
    assert (white == 255).all() and blue[2] > blue[0] and red[0] > red[2]
    assert np.array_equal(colours[0], colours[1]) and np.array_equal(colours[3], colours[4])
    assert (diverging_colours(np.zeros(3), 0.0) == 255).all()


def test_tiles_keep_every_map_in_its_place():
    maps = np.arange(7, dtype=np.float32)[:, None, None] * np.ones((1, 4, 4), np.float32)
    tiles = MNISTshowFeat.tile(maps, 3)
    assert set(np.unique(tiles[np.isfinite(tiles)])) == set(range(7))
    assert tiles[0, 0] == 0 and tiles[0, -1] == 2 and tiles[-1, 0] == 6 and np.isnan(tiles[-1, -1])


def test_save_what_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    for flags, words in ((["--sample", 3], "no effect without --save"),
                         (["--sample", 3, "--save", tmp_path], "doesn't hold"),
                         (["--save", tmp_path / "file"], "can't make the folder")):
        _, err = refused("MNISTshowFeat.py", "--data-dir", tmp_path, *flags)
        assert words in err
