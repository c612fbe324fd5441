"""What goes into the pools of networks, and what is measured there: pure of any store, and what is refused."""

import tracemalloc

import numpy as np
import pytest
import torch
from pairs_study import HEADS, UNITS, tensor, write_study

import neurolens
from neurolens import models
from neurolens.data import SampleSet, shown
from neurolens.data.arrays import ArrayImages
from neurolens.errors import ModelMismatchError, SchemaError, StudyError
from neurolens.pairs import image_embeddings, pair_cube, pool_cube, pool_of, resampled, scalars
from neurolens.study import Model, Pools, Preprocessing, load_study

ALL = ("scalars", "attention", "split")


@pytest.fixture(scope="module")
def network():
    return models.build(Model(name="digits_clip", options={"units": 16, "heads": 4, "features": 6}), seed=0)


def images(count=24, side=8):
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 1), dtype=np.uint8)
    return SampleSet(np.array([f"s{i:03d}" for i in range(count)]), np.zeros(count, int), ("any",), ArrayImages(pixels))


def table(**given):
    study = {"name": "s", "pools": given, "pairs": {"split": True}}
    return pair_cube.table_of(neurolens.Study.model_validate(study))


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_measure__depends_neither_on_batches_nor_on_blocks_beyond_rounding(network, batch_size):
    samples, given = images(), table()
    wanted = pair_cube.measure(network, samples, parts=ALL, table=given)
    whole = pair_cube.measure(network, samples, parts=ALL, table=given, batch_size=batch_size)
    halves = [
        pair_cube.measure(network, samples.subset(part), parts=ALL, table=given, batch_size=batch_size)
        for part in (range(10), range(10, 24))
    ]
    for name in sorted(wanted.keys() - {"completeness"}):
        np.testing.assert_allclose(whole[name], wanted[name], rtol=1e-4, atol=1e-5, err_msg=name)
        joined = np.concatenate([half[name] for half in halves])
        np.testing.assert_allclose(joined, wanted[name], rtol=1e-4, atol=1e-5, err_msg=name)
    totals = [
        pool_cube.measure(network, samples, parts=("totals",), table=given.pools, batch_size=n)
        for n in (64, batch_size)
    ]
    for name in totals[0].keys() - {"worst_residual", "top_sample", "bottom_sample"}:
        np.testing.assert_allclose(totals[1][name], totals[0][name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_measure__gives_the_same_bytes_again_and_leaves_the_network_as_it_was(network):
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    first, second = (pair_cube.measure(network, images(), parts=ALL, table=table()) for _ in range(2))
    assert {n: v.tobytes() for n, v in first.items()} == {n: v.tobytes() for n, v in second.items()}
    assert network.module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.module.state_dict().items())
    assert not network.module.attnpool._forward_pre_hooks
    assert not network.module.attnpool._forward_hooks


def test_measure__of_some_parts_gives_their_variables_alone_and_reports(network):
    seen = []
    found = pair_cube.measure(
        network, images(7), parts=("attention",), table=table(), batch_size=3, progress=lambda *at: seen.append(at)
    )
    assert list(found) == ["attention"]
    np.testing.assert_allclose(found["attention"].sum(axis=2), 1, rtol=1e-6)
    assert seen == [(3, 7), (6, 7), (7, 7)]
    assert pair_cube.measure(network, images(7), parts=(), table=table()) == {}
    factors_alone = pool_cube.measure(network, images(7), parts=("factors",), table=Pools(), progress=lambda *at: 1 / 0)
    assert set(factors_alone) == {"value", "output", "constant"}
    with pytest.raises(SchemaError, match="no part 'scalar'; did you mean 'scalars'"):
        pair_cube.measure(network, images(7), parts=("scalar",), table=table())
    for module in (pair_cube, pool_cube):
        with pytest.raises(SchemaError, match="has no part 'total'"):
            module.key_config(table(), "total")


def test_measure__of_weights_in_half_precision_is_in_float32(network):
    half = models.build(Model(name="digits_clip", options={"units": 16, "heads": 4, "features": 6}), seed=0)
    half.module.half()
    found = pair_cube.measure(half, images(), parts=ALL, table=table())
    wanted = pair_cube.measure(network, images(), parts=ALL, table=table())
    assert found["completeness"].max() < 1e-5
    np.testing.assert_allclose(found["scalar"], wanted["scalar"], rtol=0.1, atol=5e-3)
    assert next(half.module.parameters()).dtype == torch.float16


def built(tmp_path, factory, **options):
    path = write_study(tmp_path, checkpoints=0, factory=factory)
    model = load_study(path).model
    return models.build(model.model_copy(update={"options": options}), seed=0)


def test_measure__of_a_network_without_embeddings_checks_what_the_pool_puts_out(tmp_path):
    with_embeddings, without = (built(tmp_path, name) for name in ("clip", "image"))
    found, wanted = (pair_cube.measure(net, images(), parts=ALL, table=table()) for net in (without, with_embeddings))
    np.testing.assert_array_equal(found["scalar"], wanted["scalar"])


@pytest.mark.parametrize(
    ("after", "why"), [("length", "and have length 1"), ("width", r"it is .*\[2, 3\].* for \(2, 6\)")]
)
def test_axes__of_embeddings_that_are_not_the_pools_are_refused(tmp_path, after, why):
    with pytest.raises(
        ModelMismatchError, match=f"encode_image puts out something else than the pool 'attnpool'.*{why}"
    ):
        pair_cube.axes(built(tmp_path, "clip", after=after), images(), table())


def test_axes__of_a_pool_that_runs_twice_are_refused(tmp_path):
    with pytest.raises(ModelMismatchError, match="ran its pool 'attnpool' 2 times"):
        pair_cube.axes(built(tmp_path, "twice"), images(), table())


def test_axes__of_several_pools_need_the_path_of_one(tmp_path):
    network = built(tmp_path, "two")
    with pytest.raises(
        StudyError, match=r"found 2 attention pools, at \['attnpool', 'other.0'\].*pools.module = 'attnpool'"
    ):
        pair_cube.axes(network, images(), table())
    assert len(pair_cube.axes(network, images(), table(module="attnpool"))["unit"]) == UNITS
    with pytest.raises(
        StudyError, match=r"pools\.module is 'attnpol', and there is no attention pool; did you mean 'attnpool'"
    ):
        pair_cube.axes(network, images(), table(module="attnpol"))
    with pytest.raises(ModelMismatchError, match=r"ran its pool 'other.0' 0 times"):
        pair_cube.axes(network, images(), table(module="other"))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("vit_b_32", "found a VisionTransformer, whose embedding is no attention pool's.*give a CLIP-ResNet"),
        ("digits_convnet", "found no attention pool in DigitsConvNet"),
    ],
)
def test_axes__of_a_network_without_a_pool_say_what_to_give(name, why):
    with torch.device("meta"):
        network = models.build(Model(name=name))
    for module, given in ((pool_cube, Pools()), (pair_cube, table())):
        with pytest.raises(SchemaError, match=why):
            module.axes(network, images(), given)


def test_measure__of_larger_images_needs_positions_to_be_interpolated(network):
    samples = images(side=12)
    for module, given in ((pool_cube, Pools()), (pair_cube, table())):
        with pytest.raises(StudyError, match=r"are 6 by 6, and it has positions for 4 by 4.*pools\.resample = true"):
            module.axes(network, samples, given)
    given = table(resample=True)
    axes = pair_cube.axes(network, samples, given)
    assert (len(axes["token"]), axes["token"].coords["x"].max()) == (37, 5)
    found = pair_cube.measure(network, samples, parts=ALL, table=given, batch_size=7)
    kept = []
    hook = network.module.attnpool.register_forward_pre_hook(lambda pool, x: kept.append(x[0]) or 1 / 0)
    network.module.eval()
    with torch.no_grad(), pytest.raises(ZeroDivisionError):
        network.module(tensor(samples))
    hook.remove()
    network.module.train()
    pool = resampled(pool_of(network.module), (6, 6))
    wanted = scalars(pool, kept[0])
    np.testing.assert_allclose(
        found["scalar"], wanted["scalar"].transpose("sample", "head", "unit"), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(found["embedding"], image_embeddings(pool, kept[0]), rtol=1e-4, atol=1e-5)
    totals = pool_cube.measure(network, samples, parts=("totals",), table=given.pools)
    assert totals["count"].tolist() == [24] * HEADS


def test_measure__of_open_clips_own_network_adds_up_to_its_embeddings():
    open_clip = pytest.importorskip("open_clip", reason="the extra 'clip' is not installed")
    text = {"context_length": 8, "vocab_size": 20, "width": 32, "heads": 2, "layers": 1}
    image = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
    module = open_clip.CLIP(24, image, text)
    network = models.Network(module, Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3), 3, 64, {})
    found = pair_cube.measure(network, images(5, side=64), parts=ALL, table=table(module="visual"))
    (batch,) = shown(images(5, side=64), network, batch_size=5)
    with torch.no_grad():
        np.testing.assert_allclose(found["embedding"], module.eval().encode_image(batch.args[0]), rtol=1e-4, atol=1e-6)
    assert found["completeness"].max() < 1e-5


def test_measure__of_timms_pool_at_another_size_is_checked_against_itself(tmp_path):
    pytest.importorskip("timm", reason="the extra 'clip' is not installed")
    network = built(tmp_path, "timm")
    for side, tokens in ((8, 17), (12, 37)):
        assert len(pair_cube.axes(network, images(side=side), table())["token"]) == tokens
        found = pair_cube.measure(network, images(side=side), parts=ALL, table=table())
        assert found["attention"].shape == (24, HEADS, tokens)
        assert found["completeness"].max() < 1e-5


def test_block_size__is_what_fits_the_memory(network):
    given = table()
    axes = pair_cube.axes(network, images(), given)
    each = pair_cube.COPIES * (4 * 4 * 16 * 4 + 4 * 4 * 17 + 4 * 6 + 8)
    assert pair_cube.block_size(given, axes) == 1024 * 2**20 // each
    without = given.model_copy(update={"split": False, "attention": False})
    assert pair_cube.block_size(without, axes) == pair_cube.block_size(given, axes)  # so that they can come later
    half = given.model_copy(update={"dtype": "float16"})
    assert pair_cube.block_size(half, axes) > 1.5 * pair_cube.block_size(given, axes)
    large = axes | {"unit": neurolens.store.Axis(np.arange(10**5))}
    with pytest.raises(StudyError, match=r"take 12\.2 MiB, and pairs.memory_mib is 4; raise it to 13"):
        pair_cube.block_size(given.model_copy(update={"memory_mib": 4}), large)


def traced_peak(work):
    work()
    tracemalloc.start()
    try:
        kept = work()
        return tracemalloc.get_traced_memory()[1], kept
    finally:
        tracemalloc.stop()


def test_measure__keeps_to_the_memory_that_it_states():
    network = models.build(Model(name="digits_clip", options={"units": 128, "heads": 8, "features": 24}), seed=0)
    pairs, ranks = 128 * 8, 20
    peaks = [
        traced_peak(
            lambda n=n: pool_cube.measure(network, images(n), parts=("totals",), table=Pools(ranks=ranks), batch_size=8)
        )[0]
        for n in (30, 90)
    ]
    batch = 16 * (40 * 128 + 6 * pairs) * 4  # what `scalars` holds of a batch, and its result
    assert max(peaks) < (50 * ranks + 100) * pairs + batch + 2**20
    assert peaks[1] - peaks[0] < 20 * pairs  # whatever the number of images
    peak, kept = traced_peak(lambda: pair_cube.measure(network, images(90), parts=ALL, table=table(), batch_size=8))
    assert peak < sum(array.nbytes for array in kept.values()) + 2 * batch + 2**20
