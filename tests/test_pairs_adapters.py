"""Pools of open_clip, OpenAI's state dicts, timm and one's own."""

import numpy as np
import pytest
import torch
from pairs_cases import random_maps, random_pool

from neurolens import models
from neurolens.errors import MissingExtraError, ModelMismatchError, SchemaError
from neurolens.pairs import (
    Pool,
    check_activation,
    factors,
    open_clip_pool,
    pool_of,
    resampled,
    scalars,
    state_pool,
    timm_pool,
)
from neurolens.study import Model

open_clip = pytest.importorskip("open_clip", reason="the extra 'clip' is not installed")
timm = pytest.importorskip("timm", reason="the extra 'clip' is not installed")


def small_clip(quick_gelu=False, image_size=64, vit=False):
    """open_clip's own class, a small network of random weights."""
    torch.manual_seed(0)
    vision = {"image_size": image_size, "layers": 1, "width": 64, "patch_size": 16, "head_width": 16}
    if not vit:
        vision = {"image_size": image_size, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
    text = {"context_length": 8, "vocab_size": 20, "width": 32, "heads": 2, "layers": 1}
    return open_clip.CLIP(24, vision, text, quick_gelu=quick_gelu).eval()


def last_maps(model, images):
    """What goes into the pool, and what the network puts out."""
    kept = []
    hook = model.visual.attnpool.register_forward_pre_hook(lambda _, args: kept.append(args[0].detach()))
    with torch.no_grad():
        embedding = model.encode_image(images)
    hook.remove()
    return kept[0].numpy(), embedding.numpy()


def test_open_clip_pool__adds_up_to_encode_image():
    model = small_clip()
    maps, embedding = last_maps(model, torch.randn(5, 3, 64, 64))
    for source in (model, model.visual, model.visual.attnpool):
        pool = open_clip_pool(source)
        assert (pool.units, pool.heads, pool.features, pool.grid) == (256, model.visual.attnpool.num_heads, 24, (2, 2))
        found = scalars(pool, maps, embedding=embedding)
        assert float(found["completeness"].max()) < 1e-5
        np.testing.assert_allclose(found["embedding"], embedding, rtol=1e-4, atol=1e-5)


def test_open_clip_pool__of_the_real_rn50():
    network = models.build(Model(name="open_clip/RN50"), seed=0)
    model = network.module.eval()
    assert isinstance(model, open_clip.CLIP)
    assert network.description["image_size"] == network.input_size == 224
    pool = open_clip_pool(model)
    assert (pool.units, pool.heads, pool.features, pool.tokens, pool.head_dim) == (2048, 32, 1024, 50, 64)
    maps, embedding = last_maps(model, torch.randn(2, 3, 224, 224))
    found = scalars(pool, maps, embedding=embedding, split=True)
    assert float(found["completeness"].max()) < 1e-5
    total = found["patch"] + found["mean_token"] + found["positional"]
    np.testing.assert_allclose(total, found["scalar"], rtol=1e-4, atol=1e-5)
    assert factors(pool)["value"].shape == (32, 64, 2048)
    kept = []
    hook = model.visual.layer4.register_forward_hook(lambda _, __, out: kept.append(out.detach().numpy()))
    with torch.no_grad():
        model.visual.layer4(
            model.visual.layer3(
                model.visual.layer2(model.visual.layer1(model.visual.stem(torch.randn(1, 3, 160, 192))))
            )
        )
    hook.remove()
    other = resampled(pool, kept[0].shape[2:])
    assert other.grid == (5, 6)
    assert float(scalars(other, kept[0])["completeness"].max()) < 1e-5


def test_open_clip_pool__is_what_its_state_dict_holds():
    model = small_clip()
    state, heads = dict(model.state_dict()), model.visual.attnpool.num_heads
    maps, embedding = last_maps(model, torch.randn(2, 3, 64, 64))
    own = {name.removeprefix("visual.attnpool."): t.numpy() for name, t in state.items() if "attnpool" in name}
    for found in (state_pool(state, heads=heads), state_pool(own, heads=heads), pool_of(state, heads=heads)):
        assert float(scalars(found, maps, embedding=embedding)["completeness"].max()) < 1e-5
    halved = {name: t.half() for name, t in state.items()}
    assert state_pool(halved, heads=heads).dtype == np.float32


def test_state_pool__has_64_dims_a_head_by_default():
    model = small_clip()
    assert state_pool(dict(model.state_dict())).heads == 256 // 64
    state = {
        f"attnpool.{of}_proj.{kind}": np.ones((6, 6) if kind == "weight" else 6)
        for of in "qkvc"
        for kind in ("weight", "bias")
    }
    state["attnpool.positional_embedding"] = np.ones((2, 6))
    assert state_pool(state, heads=2).heads == 2
    with pytest.raises(SchemaError, match="6 dims, no multiple of 64; say how many heads="):
        state_pool(state)
    with pytest.raises(SchemaError, match=r"no 'attnpool.v_proj.bias' \(1 are missing\)"):
        state_pool({name: value for name, value in state.items() if name != "attnpool.v_proj.bias"}, heads=2)


def test_pool_of__takes_files_and_fields(tmp_path):
    pool = random_pool(dtype=np.float32)
    assert pool_of(pool) is pool
    fields = {name: getattr(pool, name) for name in Pool.__dataclass_fields__}
    np.testing.assert_array_equal(pool_of(fields).W_o, pool.W_o)
    model = small_clip()
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    np.testing.assert_array_equal(pool_of(tmp_path / "clip.pt").W_q, open_clip_pool(model).W_q)
    with pytest.raises(SchemaError, match="found int, and a module"):
        pool_of(3)


def test_a_vit__is_refused():
    model = small_clip(vit=True)
    for source in (model, model.visual):
        with pytest.raises(SchemaError, match=r"found a VisionTransformer.*RN50x16"):
            open_clip_pool(source)
    with pytest.raises(SchemaError, match="state dict of a ViT"):
        state_pool(dict(model.state_dict()))
    with pytest.raises(SchemaError, match="no attention pool in Linear"):
        pool_of(torch.nn.Linear(2, 2))
    with pytest.raises(SchemaError, match="no attention pool among 2 names"):
        state_pool({"a": 1, "b": 2})
    with pytest.raises(SchemaError, match="2 attention pools"):
        open_clip_pool(torch.nn.ModuleList([small_clip(), small_clip()]))


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_check_activation__refuses_the_wrong_one(quick_gelu):
    model = small_clip(quick_gelu)
    wrong = "trained with GELU, and the text tower has QuickGELU" if quick_gelu else "has GELU.*force_quick_gelu=True"
    assert open_clip_pool(model, quick_gelu=quick_gelu).units == 256
    with pytest.raises(ModelMismatchError, match=wrong):
        open_clip_pool(model, quick_gelu=not quick_gelu)
    for given in (("RN50", "openai"), {"context_length": 77}) if quick_gelu else (("ViT-B-32", "laion2b_e16"),):
        check_activation(model, weights=given)
    with pytest.raises(ModelMismatchError, match=wrong):
        check_activation(model, weights=("RN50-quickgelu", "cc12m") if not quick_gelu else ("ViT-B-32", "laion2b_e16"))


def test_check_activation__says_what_it_cannot_know():
    model = small_clip()
    with pytest.raises(SchemaError, match="does not say which activation"):
        check_activation(model, weights={"visual.proj": 1})
    with pytest.raises(SchemaError, match=r"no weights 'opnai' of 'RN50', but \['openai'"):
        check_activation(model, weights=("RN50", "opnai"))
    with pytest.raises(SchemaError, match="weights='openai', and a name and a tag"):
        check_activation(model, weights="openai")
    check_activation(model.visual, quick_gelu=True)  # no text tower


@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"class_token": True}, {"embed_dim": 16}, {"out_features": 0}, {"out_features": 10}, {"qkv_bias": False}],
)
def test_timm_pool__is_timms(separate, options):
    from timm.layers import AttentionPool2d

    torch.manual_seed(0)
    without_bias = options.get("qkv_bias") is False  # timm's own option fails
    options = {} if without_bias else options
    module = AttentionPool2d(24, (3, 4), num_heads=2, qkv_separate=separate, **options).eval()
    for layer in ([module.q, module.k, module.v] if separate else [module.qkv]) if without_bias else []:
        layer.bias = None
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 3)
        maps = torch.relu(torch.randn(4, 24, 3, 4))
        wanted = module(maps).numpy()
        larger = torch.relu(torch.randn(2, 24, 5, 6))
        wanted_larger = module(larger).numpy()
    for source in (module, torch.nn.Sequential(torch.nn.Identity(), module)):
        found = scalars(timm_pool(source), maps, embedding=wanted)
        assert float(found["completeness"].max()) < 1e-5
    other = timm_pool(module, grid=(5, 6))
    assert float(scalars(other, larger, embedding=wanted_larger)["completeness"].max()) < 1e-5
    assert pool_of(module).class_token is None or options == {"class_token": True}


def test_timm_pool__refuses_what_is_none(monkeypatch):
    from timm.layers import AttentionPool2d, RotAttentionPool2d

    with pytest.raises(SchemaError, match="rotary positions turn its keys"):
        timm_pool(RotAttentionPool2d(16, num_heads=2))
    with pytest.raises(SchemaError, match="pool_type=''"):
        timm_pool(AttentionPool2d(16, 2, num_heads=2, pool_type=""))
    monkeypatch.setitem(__import__("sys").modules, "timm.layers", None)
    with pytest.raises(MissingExtraError, match=r"neurolens\[clip\]"):
        timm_pool(AttentionPool2d(16, 2, num_heads=2), grid=(3, 3))


def test_adapters__keep_float64():
    pool = random_pool()
    state = {
        **{
            f"{of}_proj.{name}": getattr(pool, f"{kind}_{of}")
            for of in "qkv"
            for kind, name in (("W", "weight"), ("b", "bias"))
        },
        "c_proj.weight": torch.from_numpy(pool.W_o.copy()),
        "c_proj.bias": pool.b_o,
        "positional_embedding": pool.positions[[0, 1, 2, 3, 4]],
    }
    found = state_pool(state, heads=2)
    assert found.dtype == np.float64
    assert (scalars(found, random_maps(random_pool(grid=(2, 2))))["completeness"] < 1e-12).all()
