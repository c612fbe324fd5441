import numpy as np
import pytest
import torch
from torch.nn import functional

from neurolens import models
from neurolens.clip_networks import ATTRIBUTES, DIGITS, AttentionPool2d, DigitsClip, classes_of
from neurolens.errors import DataError, SchemaError, StudyError
from neurolens.pairs import pool_of, scalars
from neurolens.study import Model


@pytest.fixture(scope="module")
def network() -> models.Network:
    made = models.build(Model(name="digits_clip"), seed=0)
    made.module.eval()
    return made


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_build__digits_clip_is_small_and_takes_grey_8x8_images(network):
    assert sum(p.numel() for p in network.module.parameters()) == 153_505
    assert (network.channels, network.input_size) == (1, 8)
    assert (network.preprocessing.mean, network.preprocessing.std) == ((0.0,), (1.0,))


def test_digits_clip__logits_are_scaled_cosines_of_image_and_class_words(network, images):
    module = network.module
    with torch.no_grad():
        image, text = module.encode_image(images), module.encode_text(DIGITS)
        cosines = functional.cosine_similarity(image[:, None], text[None], dim=2)
        assert image.shape == (6, 64)
        torch.testing.assert_close(module(images), cosines / 0.07)
        torch.testing.assert_close(text, module.class_text)


def test_digits_clip__its_scale_ends_at_a_hundred(images):
    module = DigitsClip().eval()
    with torch.no_grad():
        module.logit_scale.fill_(9.0)
        assert module(images).abs().max() <= 100


def test_pool_of__reads_the_pool_of_digits_clip_and_its_pairs_are_complete(network, images):
    maps = []
    handle = network.module.attnpool.register_forward_pre_hook(lambda _, given: maps.append(given[0].detach()))
    with torch.no_grad():
        embedding = network.module.encode_image(images)
    handle.remove()
    pool = pool_of(network.module)
    assert (pool.units, pool.heads, pool.head_dim, pool.features, pool.grid) == (128, 8, 16, 64, (4, 4))
    found = scalars(pool, maps[0], embedding=embedding)
    assert found["scalar"].shape == (6, 128, 8)
    assert float(found["completeness"].max()) < 1e-5


def test_attention_pool__is_torchs_multi_head_attention_with_one_query(images):
    torch.manual_seed(0)
    pool, maps = AttentionPool2d(16, 4, 5, grid=(2, 3)), torch.rand(3, 16, 2, 3)
    tokens = maps.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens]) + pool.positional_embedding[:, None]
    expected, _ = functional.multi_head_attention_forward(
        query=tokens[:1],
        key=tokens,
        value=tokens,
        embed_dim_to_check=16,
        num_heads=4,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0,
        out_proj_weight=pool.c_proj.weight,
        out_proj_bias=pool.c_proj.bias,
        use_separate_proj_weight=True,
        training=False,
        need_weights=False,
    )
    torch.testing.assert_close(pool(maps), expected[0])


def test_attention_pool__says_which_size_its_maps_have(network):
    with pytest.raises(SchemaError, match="found maps of 8 by 8, and the pool has positions for 4 by 4"):
        network.module(torch.zeros(1, 1, 16, 16))


def test_encode_text__an_attribute_is_the_mean_of_its_classes_and_figures_are_words(network):
    module = network.module
    with torch.no_grad():
        unit = functional.normalize(module.encode_text(DIGITS), dim=1)
        even, three, figure = module.encode_text(["  Even ", "three", "3"])
        torch.testing.assert_close(even, functional.normalize(unit[::2].mean(0), dim=0))
        torch.testing.assert_close(three, figure)
        assert module.encode_text([]).shape == (0, 64)


def test_classes_of__every_attribute_names_several_but_not_all_classes():
    for phrase, classes in ATTRIBUTES.items():
        assert classes_of(phrase) == classes
        assert 1 < len(np.unique(classes)) == len(classes) < 10
    assert len(set(ATTRIBUTES.values())) == len(ATTRIBUTES)


def test_classes_of__names_the_phrase_that_was_meant():
    with pytest.raises(DataError, match=r"no phrase 'sevn'; did you mean 'seven'"):
        classes_of("sevn")


def test_build__digits_clip_refuses_other_classes_and_sizes_that_do_not_go_together():
    with pytest.raises(StudyError, match=r"words for 10 classes, zero to nine, and .* is 7"):
        models.build(Model(name="digits_clip", classes=7))
    with pytest.raises(StudyError, match="features more than units / heads"):
        models.build(Model(name="digits_clip", options={"units": 32, "heads": 2, "features": 16}))
