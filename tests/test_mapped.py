"""Layers with maps: convolutions, channels last, tokens on the grid of their patches; and what is refused."""

import numpy as np
import pytest
import torch
from dissection_cases import slow_counts
from torch import nn
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer
from units_cases import Net

from neurolens.capture import capture
from neurolens.data import SampleSet, shown
from neurolens.data.arrays import ArrayImages
from neurolens.dissection import pack_labels, token_maps
from neurolens.dissection.measure import dissect, mapped_layers
from neurolens.errors import CaptureError
from neurolens.study import Preprocessing

SQUARE, WIDE = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 16, 32)


def vit():
    return VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24, num_classes=3
    )


class Tokens(nn.Module):
    """Patches by a convolution, or by unfolding, with tokens before them, through an MLP."""

    def __init__(self, *, parameters=(), given=None, convolution=True, merged=False):
        super().__init__()
        self.merged, self.given = merged, sum(n for _, n in parameters) if given is None else given
        self.proj = nn.Conv2d(3, 8, 4, 4) if convolution else None
        self.embed = nn.Linear(48, 8)
        for name, n in parameters:
            self.register_parameter(name, nn.Parameter(torch.zeros(1, n, 8)))
        self.attention = nn.MultiheadAttention(8, 1, batch_first=True)
        self.fc1, self.act, self.fc2 = nn.Linear(8, 5), nn.GELU(), nn.Linear(5, 8)

    def forward(self, x):
        if self.proj is None:
            patches = self.embed(nn.functional.unfold(x, 4, stride=4).transpose(1, 2))
        else:
            grid = self.proj(x)
            grid = nn.functional.avg_pool2d(grid, 2) if self.merged else grid
            patches = grid.flatten(2).transpose(1, 2)
        tokens = torch.cat([patches.new_zeros(len(x), self.given, 8), patches], dim=1)
        return self.fc2(self.act(self.fc1(self.attention(tokens, tokens, tokens)[0])))


def test_mapped_layers__of_a_vision_transformer_have_the_grid_of_its_patches():
    found = mapped_layers(vit(), "auto", SQUARE)
    assert [(layer.name, layer.units, layer.grid, layer.before) for layer in found] == [
        (f"encoder.layers.encoder_layer_{n}.mlp.3:input", 24, (4, 4), 1) for n in (0, 1)
    ]
    assert [layer.grid for layer in mapped_layers(vit(), ["encoder.ln"], SQUARE)] == [(4, 4)]


def test_mapped_layers__lay_tokens_out_row_by_row_without_the_class_token():
    model = vit().eval()
    (layer,) = mapped_layers(model, ["encoder.ln"], SQUARE)
    with torch.no_grad(), capture(model, [layer.tap]) as seen:
        model(SQUARE)
    tokens = seen["encoder.ln"]
    maps = layer.maps(tokens).numpy()
    assert (maps == token_maps(tokens.numpy(), (4, 4))).all()
    for row, column in np.ndindex(4, 4):
        assert (maps[:, :, row, column] == tokens[:, 1 + 4 * row + column].numpy()).all()


def test_mapped_layers__with_channels_last_are_turned():
    model = SwinTransformer(
        patch_size=[4, 4], embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=[4, 4], num_classes=3
    ).eval()
    first, last = mapped_layers(model, ["features.1", "features.3"], SQUARE)
    assert (first.grid, first.units, last.grid, last.units) == ((8, 8), 8, (4, 4), 16)
    with torch.no_grad(), capture(model, [first.tap]) as seen:
        model(SQUARE)
    tensor = seen["features.1"]
    maps = first.maps(tensor)
    assert maps.shape == (2, 8, 8, 8)
    assert (maps[:, 3] == tensor[..., 3]).all()


@pytest.mark.parametrize(
    ("options", "probe", "grid", "before"),
    [
        ({}, SQUARE, (8, 8), 0),
        ({}, WIDE, (4, 8), 0),
        ({"parameters": [("cls_token", 1)]}, WIDE, (4, 8), 1),
        ({"parameters": [("cls_token", 1), ("dist_token", 1)]}, SQUARE, (8, 8), 2),
        ({"parameters": [("cls_token", 1), ("register_tokens", 4)]}, SQUARE, (8, 8), 5),
        ({"given": 1}, SQUARE, (8, 8), 1),
        ({"parameters": [("cls_token", 1)], "merged": True}, WIDE, (2, 4), 1),
        ({"convolution": False}, WIDE, (4, 8), 0),
        ({"convolution": False, "given": 1}, SQUARE, (8, 8), 1),
    ],
)
def test_mapped_layers__tell_grids_and_the_tokens_before_them(options, probe, grid, before):
    (layer,) = mapped_layers(Tokens(**options), "auto", probe)
    assert (layer.name, layer.grid, layer.before) == ("fc2:input", grid, before)


def test_mapped_layers__read_how_many_tokens_stand_before_the_patches():
    model = Tokens(given=3)
    with pytest.raises(CaptureError, match=r"has 67 tokens .* with 0 or 1 before them .*8 × 8.*num_prefix_tokens"):
        mapped_layers(model, "auto", SQUARE)
    model.num_prefix_tokens = 3
    (layer,) = mapped_layers(model, "auto", SQUARE)
    assert (layer.grid, layer.before) == ((8, 8), 3)


def test_mapped_layers__refuse_a_grid_that_is_ambiguous():
    class Two(Tokens):
        def forward(self, x):
            self.other(x)
            return super().forward(x)

    model = Two(parameters=[("cls_token", 2)], given=2)
    model.other = nn.Conv2d(3, 1, (22, 27))  # 11 × 6 is 66 too
    with pytest.raises(CaptureError, match="several grids of patches have so many"):
        mapped_layers(model, "auto", SQUARE)


def test_mapped_layers__leave_layers_without_maps_out_of_auto_only():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 6), nn.ReLU())
    assert [layer.name for layer in mapped_layers(model, "auto", SQUARE)] == ["1"]
    with pytest.raises(CaptureError, match=r"layer '4' .* of shape \(\) per unit.*name layers of convolutions"):
        mapped_layers(model, ["1", "4"], SQUARE)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3072, 6), nn.ReLU())
    with pytest.raises(CaptureError, match="layer '2'"):
        mapped_layers(flat, "auto", SQUARE)


def test_mapped_layers__leave_a_single_token_of_the_whole_image_out():
    class Pooled(Tokens):
        def forward(self, x):
            return self.fc2(self.act(self.fc1(super().forward(x).mean(dim=1, keepdim=True))))

    assert [layer.name for layer in mapped_layers(Pooled(), "auto", SQUARE)] == ["fc2:input"]
    with pytest.raises(CaptureError, match="has 1 tokens of an image, and no grid of patches has so many"):
        mapped_layers(Pooled(), ["fc1#1"], SQUARE)


def test_mapped_layer__refuses_other_tokens_than_those_of_the_first_images():
    model = vit()
    (layer,) = mapped_layers(model, ["encoder.ln"], SQUARE)
    with pytest.raises(CaptureError, match=r"has 26 tokens.*1 \+ 4 × 4.*images of one size"):
        layer.maps(torch.zeros(2, 26, 16))


def test_dissect__of_a_vision_transformer_equals_laying_tokens_out_and_counting_slowly():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    samples = SampleSet(np.array([f"s{i}" for i in range(9)]), np.zeros(9, np.int64), ("one",), ArrayImages(pixels))
    net = Net(vit().eval(), Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)))
    truth = [{0: rng.random((8, 8)) < 0.4, 1: True} for _ in range(9)]
    layers = ["encoder.layers.encoder_layer_1", "encoder.ln"]
    found = dissect(
        net, samples, pack_labels(truth, (8, 8), [0, 1]), layers=layers, quantile=0.1, top=2, rotations=1, batch_size=9
    )
    batch = next(iter(shown(samples, net, batch_size=9)))
    with torch.no_grad(), capture(net.module, layers) as seen:
        net.module(*batch.args)
    counts, limits, largest = [], [], []
    for layer in layers:
        maps = token_maps(seen[layer].numpy(), (4, 4))
        limit = np.quantile(maps.transpose(1, 0, 2, 3).reshape(16, -1).astype(float), 0.9, axis=1)
        counts.append(slow_counts(maps, limit, truth, [0, 1], 2, (8, 8), [0] * 9)[:2])
        limits.append(limit)
        largest.append(maps.max(axis=(2, 3)))
    np.testing.assert_allclose(found["threshold"], np.concatenate(limits), atol=1e-5)
    for at, name in enumerate(("intersection", "unit_area")):
        expected = np.concatenate([one[at][0] for one in counts])
        assert expected.any()
        np.testing.assert_allclose(found[name].sum(axis=0), expected, atol=2)
    assert (found["top_sample"][:, 0] == np.concatenate(largest, axis=1).argmax(axis=0)).all()
    assert found["rotated_score"].shape == (1, 32)
    assert np.isfinite(found["rotated_score"]).all()
