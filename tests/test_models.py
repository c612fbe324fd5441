import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from neurolens import models
from neurolens.capture import capture
from neurolens.data.batching import prepare
from neurolens.errors import StudyError
from neurolens.study import Model, Preprocessing


def factory(folder: Path, text: str, function: str = "make") -> str:
    path = folder / "nets.py"
    path.write_text("import torch\nfrom torch import nn\n\n" + text)
    return f"{path}:{function}"


LINEAR = """
def make(classes, width=4):
    return nn.Sequential(nn.Conv2d(2, width, 3), nn.Flatten(), nn.Linear(width, classes))
"""
KNOWN = Preprocessing(mean=(0.0,), std=(1.0,))


def test_build__digits_convnet_is_small_and_takes_grey_8x8_images():
    network = models.build(Model(name="digits_convnet", classes=10), seed=0)
    assert sum(p.numel() for p in network.module.parameters()) == 15_418
    assert (network.channels, network.input_size) == (1, 8)
    assert (network.preprocessing.mean, network.preprocessing.std) == ((0.0,), (1.0,))
    assert network.module(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_build__shapes_convnet_is_small_and_has_maps_of_half_to_an_eighth_of_the_image():
    network = models.build(Model(name="shapes_convnet", classes=6), seed=0)
    assert sum(p.numel() for p in network.module.parameters()) == 61_078
    assert (network.channels, network.input_size) == (3, None)
    with capture(network.module, ["block2", "block3", "block4"]) as seen:
        assert network.module(torch.zeros(2, 3, 64, 64)).shape == (2, 6)
    assert [tuple(maps.shape) for maps in seen.values()] == [(2, 32, 32, 32), (2, 64, 16, 16), (2, 64, 8, 8)]


def test_build__digits_convnet_learns_the_digits_in_a_few_epochs():
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels, dtype=torch.int64)
    network = models.build(Model(), seed=0).module
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    order = torch.Generator().manual_seed(0)
    network.train()
    for _ in range(5):
        for batch in torch.randperm(1400, generator=order).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
    network.eval()
    with torch.no_grad():
        assert (network(x[1400:]).argmax(1) == y[1400:]).float().mean() > 0.95


def test_build__cifar_resnet18_has_the_tensor_names_of_the_references_files():
    state = models.build(Model(name="cifar_resnet18", classes=100)).module.state_dict()
    norms = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = ["conv1.weight", *(f"bn1.{n}" for n in norms)]
    for layer in range(1, 5):
        for block in range(2):
            at = f"layer{layer}.{block}"
            for i in (1, 2):
                expected += [f"{at}.conv{i}.weight", *(f"{at}.bn{i}.{n}" for n in norms)]
            if layer > 1 and block == 0:
                expected += [f"{at}.shortcut.0.weight", *(f"{at}.shortcut.1.{n}" for n in norms)]
    assert list(state) == [*expected, "linear.weight", "linear.bias"]
    assert state["conv1.weight"].shape == (64, 3, 3, 3)
    assert state["layer2.0.shortcut.0.weight"].shape == (128, 64, 1, 1)
    assert state["linear.weight"].shape == (100, 512)


def test_build__cifar_resnet18_is_the_architecture_written_out():
    network = models.build(Model(name="cifar_resnet18"), seed=0).module.eval()
    modules = dict(network.named_modules())
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        h = modules["bn1"](modules["conv1"](x)).clamp(min=0)
        for layer, size in zip(range(1, 5), (32, 16, 8, 4)):
            for at in (f"layer{layer}.0", f"layer{layer}.1"):
                inner = modules[f"{at}.bn1"](modules[f"{at}.conv1"](h)).clamp(min=0)
                h = (modules[f"{at}.bn2"](modules[f"{at}.conv2"](inner)) + modules[f"{at}.shortcut"](h)).clamp(min=0)
            assert h.shape[-1] == size
        torch.testing.assert_close(network(x), modules["linear"](h.mean((2, 3))))


@pytest.mark.parametrize(("bias", "biased"), [("all", 20), ("stem", 1)])
def test_build__cifar_resnet18_incremental_has_torchvisions_names_and_biases(bias, biased):
    network = models.build(Model(name="cifar_resnet18_incremental", classes=100, options={"bias": bias}))
    convolutions = [m for m in network.module.modules() if isinstance(m, torch.nn.Conv2d)]
    assert sum(c.bias is not None for c in convolutions) == biased
    state = network.module.state_dict()
    assert state["conv1.weight"].shape == (64, 3, 3, 3)
    assert state["conv1.bias"].shape == (64,)
    assert state["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)
    assert state["fc.weight"].shape == (100, 512)
    torchvisions = set(torchvision.models.resnet18(weights=None).state_dict())
    assert {k for k in state if not ("conv" in k or "downsample.0" in k) or k.endswith("weight")} == torchvisions
    assert network.module(torch.zeros(2, 3, 32, 32)).shape == (2, 100)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("cifar_resnet18", (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
        ("cifar_resnet18_incremental", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    ],
)
def test_build__cifar_networks_normalise_as_their_references(name, mean, std):
    shown = models.build(Model(name=name)).preprocessing
    assert shown == Preprocessing(mean=mean, std=std)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_build__takes_torchvisions_names_with_any_number_of_classes(name):
    network = models.build(Model(name=name, classes=7))
    assert network.module.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    assert network.preprocessing == models.IMAGENET
    assert (network.channels, network.input_size) == (3, 224)


def test_build__knows_the_input_size_that_a_torchvision_network_was_published_with():
    network = models.build(Model(name="inception_v3", classes=3, options={"init_weights": False}))
    assert (network.preprocessing.resize, network.preprocessing.crop, network.input_size) == (342, 299, 299)


def test_build__image_size_option_sets_the_crop():
    table = Model(name="vit_b_16", classes=3, options={"image_size": 32, "num_layers": 1})
    with pytest.raises(StudyError, match=r"num_layers.*vit_b_16"):
        models.build(table)
    network = models.build(table.model_copy(update={"options": {"image_size": 32}}))
    assert (network.preprocessing.resize, network.preprocessing.crop) == (37, 32)


@pytest.mark.parametrize(
    ("name", "near"), [("resnet-18", "'resnet18'"), ("cifar_resnet8", "'cifar_resnet18'"), ("digit_convnet", "digits_")]
)
def test_build__unknown_name_gives_the_nearest(name, near):
    with pytest.raises(StudyError, match=near):
        models.build(Model(name=name))


def test_build__options_that_do_not_fit_are_named():
    with pytest.raises(StudyError, match=r"withd.*did you mean 'width'"):
        models.build(Model(options={"withd": 8}))
    with pytest.raises(StudyError, match=r"'image_size': 30.* do not fit 'vit_b_16'"):
        models.build(Model(name="vit_b_16", options={"image_size": 30}))
    with pytest.raises(StudyError, match=r"bias is 'some'; it is 'all' or 'stem'"):
        models.build(Model(name="cifar_resnet18_incremental", options={"bias": "some"}))


@pytest.mark.parametrize("option", ["weights", "pretrained", "num_classes"])
def test_build__weights_are_not_an_option(option):
    with pytest.raises(StudyError, match=r"train\.pretrained"):
        models.build(Model(name="resnet18", options={option: 1}))


@pytest.mark.parametrize("name", ["digits_convnet", "cifar_resnet18_incremental", "shufflenet_v2_x0_5"])
def test_build__equal_seeds_give_equal_weights_and_leave_the_global_generator_alone(name):
    before = torch.get_rng_state()
    first = models.build(Model(name=name), seed=3).module.state_dict()
    torch.rand(5)
    torch.set_rng_state(before)
    again = models.build(Model(name=name), seed=3).module.state_dict()
    other = models.build(Model(name=name), seed=4).module.state_dict()
    models.build(Model(name=name))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_build__weights_do_not_depend_on_the_process():
    text = """
import hashlib, torch
from neurolens import models, study
torch.rand(3)
state = models.build(study.Model(), seed=5).module.state_dict()
print(hashlib.sha256(b"".join(v.numpy().tobytes() for v in state.values())).hexdigest())
"""
    runs = [
        subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1] != ""


def test_build__description_is_json_and_tells_networks_apart():
    tables = [
        Model(),
        Model(classes=9),
        Model(options={"width": 16}),
        Model(preprocessing=Preprocessing(mean=(0.5,))),
        Model(name="cifar_resnet18"),
    ]
    described = {json.dumps(models.build(t).description, sort_keys=True) for t in tables}
    assert len(described) == len(tables)
    assert models.build(Model()).description == {
        "name": "digits_convnet",
        "classes": 10,
        "options": {},
        "preprocessing": {"resize": None, "crop": None, "mean": [0.0], "std": [1.0]},
    }


def test_build__study_overrides_geometry_as_a_whole_and_mean_and_std_each():
    given = Preprocessing(crop=32, mean=(0.1, 0.2, 0.3))
    shown = models.build(Model(name="resnet18", preprocessing=given))
    assert shown.preprocessing == Preprocessing(crop=32, mean=(0.1, 0.2, 0.3), std=models.IMAGENET.std)
    assert shown.input_size == 32


def test_build__mean_of_the_wrong_number_of_channels_is_refused():
    with pytest.raises(StudyError, match=r"mean has 2 values, and the network has 3 input channels"):
        models.build(Model(name="resnet18", preprocessing=Preprocessing(mean=(0.1, 0.2))))


def test_build__local_factory_is_called_with_classes_and_options(tmp_path):
    name = factory(tmp_path, LINEAR)
    network = models.build(Model(name=name, classes=5, options={"width": 6}, preprocessing=KNOWN), seed=1)
    assert [tuple(p.shape) for p in network.module.parameters()] == [(6, 2, 3, 3), (6,), (5, 6), (5,)]
    assert network.channels == 2
    assert network.preprocessing.mean == (0.0, 0.0)
    again = models.build(Model(name=name, classes=5, options={"width": 6}, preprocessing=KNOWN), seed=1)
    assert all(torch.equal(a, b) for a, b in zip(network.module.parameters(), again.module.parameters()))


def test_build__editing_a_local_factory_changes_the_description_and_moving_it_does_not(tmp_path):
    first = models.build(Model(name=factory(tmp_path, LINEAR), preprocessing=KNOWN)).description
    (tmp_path / "moved").mkdir()
    moved = models.build(Model(name=factory(tmp_path / "moved", LINEAR), preprocessing=KNOWN)).description
    edited = models.build(Model(name=factory(tmp_path, LINEAR + "# more\n"), preprocessing=KNOWN)).description
    assert first == moved
    assert first["name"] == "nets.py:make"
    assert {k for k in first if first[k] != edited[k]} == {"source"}


def test_build__local_network_may_say_what_feeds_it(tmp_path):
    text = (
        LINEAR
        + """
def fed(classes):
    network = make(classes)
    network.preprocessing = dict(mean=[0.5], std=[2.0], crop=3)
    return network
"""
    )
    network = models.build(Model(name=factory(tmp_path, text, "fed")))
    assert network.preprocessing == Preprocessing(mean=(0.5, 0.5), std=(2.0, 2.0), crop=3)
    negative = Model(name=factory(tmp_path, text.replace("crop=3", "crop=-3"), "fed"))
    with pytest.raises(StudyError, match="preprocessing"):
        models.build(negative)


@pytest.mark.parametrize(
    ("text", "function", "message"),
    [
        (LINEAR, "mak", "no function 'mak'; did you mean 'make'"),
        (LINEAR, "make", "normalisation of .* is not known; set model.preprocessing.mean"),
        ("def make(classes:\n", "make", "SyntaxError"),
        ("import no_such_module\n", "make", "no_such_module"),
        ("def make(classes):\n    return 3\n", "make", "returned int; a torch.nn.Module was needed"),
        ("def make():\n    return nn.Linear(2, 2)\n", "make", "called with the number of classes"),
        ("def make(c):\n    return nn.LazyLinear(c)\n", "make", "lazy layers"),
    ],
)
def test_build__errors_of_local_factories_are_clear(tmp_path, text, function, message):
    with pytest.raises(StudyError, match=message):
        models.build(Model(name=factory(tmp_path, text, function)))


def test_build__missing_factory_file_names_its_neighbours(tmp_path):
    factory(tmp_path, LINEAR)
    with pytest.raises(StudyError, match=r"net\.py' cannot be read.*did you mean 'nets\.py'"):
        models.build(Model(name=f"{tmp_path / 'net.py'}:make"))


def test_build__executes_no_file_but_the_one_named(tmp_path, monkeypatch):
    (tmp_path / "helper.py").write_text("import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    path = list(sys.path)
    with pytest.raises(StudyError, match="helper"):
        models.build(Model(name=factory(tmp_path, "import helper\n")))
    assert not (tmp_path / "ran").exists()
    assert sys.path == path


def test_build__interpolation_is_told_only_where_it_is_not_bilinear():
    plain = models.build(Model(name="digits_convnet", classes=10), seed=0)
    assert "interpolation" not in plain.description["preprocessing"]
    same = models.build(Model(name="digits_convnet", preprocessing=Preprocessing(interpolation="bilinear")), seed=0)
    assert same.description == plain.description
    cubic = models.build(Model(name="digits_convnet", preprocessing=Preprocessing(interpolation="bicubic")), seed=0)
    assert cubic.description["preprocessing"]["interpolation"] == "bicubic"


def test_prepare__resizes_as_pillow_does_with_either_interpolation():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    for how, method in ((None, Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)):
        found = prepare(image, preprocessing=KNOWN.model_copy(update={"resize": 10, "interpolation": how}))
        expected = np.asarray(Image.fromarray(image).resize((15, 10), method))
        np.testing.assert_array_equal(found, np.asarray(Image.fromarray(expected).convert("L"))[..., None])
