"""The study file: what it accepts, what it refuses, and what it says then."""

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurolens.errors import StudyError
from neurolens.settings import merge, nest, parse_override, without
from neurolens.study import Checkpoints, Study, load_study, pattern_fields
from neurolens.study_files import SCHEMA, init_study, study_json_schema, templates, write_json_schema

TEMPLATES = (
    "cifar10",
    "cifar100",
    "cifar100_incremental",
    "cifar_resnet18",
    "clip_rn50",
    "clip_rn50x16",
    "densenet121_imagenet",
    "digits",
    "digits_clip",
    "digits_clusters",
    "gpt2",
    "imagenet_folder",
    "places365",
    "places365_resnet18",
    "pythia",
    "shapes",
)
OF_UNITS = ("cifar_resnet18", "gpt2", "places365_resnet18", "pythia")
OF_CLUSTERS = ("densenet121_imagenet", "digits_clusters")
OF_PAIRS = ("clip_rn50", "clip_rn50x16", "digits_clip")
OF_CONCEPTS = ("places365_resnet18", "shapes")


@pytest.fixture
def study_file(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "study.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refusal(path, **kwargs) -> str:
    with pytest.raises(StudyError) as caught:
        load_study(path, **kwargs)
    return str(caught.value)


def test_load_study__takes_defaults_for_an_empty_file(study_file):
    study = load_study(study_file(""))
    assert study.train is None
    assert study.samples is None
    assert study.data.source == "digits"


def test_load_study__makes_every_relative_path_absolute(study_file, tmp_path):
    study = load_study(
        study_file("""
            [model]
            name = "nets/mine.py:build"
            [checkpoints]
            files = [{ path = "a/one.pt", epoch = 1 }]
            [data]
            source = "folder"
            root = "../images"
            select.ids = "ids.txt"
            exposure.order = "order.npy"
        """)
    )
    assert study.model.name == f"{tmp_path}/nets/mine.py:build"
    assert study.checkpoints.folder == tmp_path / "checkpoints"
    assert study.checkpoints.files[0].path == tmp_path / "a" / "one.pt"
    assert study.data.root == tmp_path.parent / "images"
    assert study.data.select.ids == tmp_path / "ids.txt"
    assert study.data.exposure.order == tmp_path / "order.npy"
    assert study.store.url == str(tmp_path / "store.icechunk")


def test_load_study__makes_validation_paths_absolute(study_file, tmp_path):
    study = load_study(study_file('[train.validation]\nroot = "val"\nselect.ids = "val.txt"'))
    assert study.train.validation.root == tmp_path / "val"
    assert study.train.validation.select.ids == tmp_path / "val.txt"


def test_load_study__leaves_s3_urls_and_library_names_alone(study_file):
    study = load_study(study_file('[store]\nurl = "s3://bucket/run"\n[model]\nname = "resnet18"'))
    assert study.store.url == "s3://bucket/run"
    assert study.model.name == "resnet18"


def test_load_study__reads_from_any_working_folder(study_file, tmp_path, monkeypatch):
    path = study_file("")
    monkeypatch.chdir(tmp_path)
    assert load_study("study.toml") == load_study(path)


def test_load_study__lays_profile_over_file_and_overrides_over_both(study_file):
    path = study_file("""
        [train]
        epochs = 20
        lr = 0.5
        momentum = 0.1
        [profiles.quick.train]
        epochs = 2
        lr = 0.25
    """)
    assert load_study(path).train.epochs == 20
    quick = load_study(path, profile="quick", overrides=["train.lr=0.125", "train.seed = 7"])
    assert (quick.train.epochs, quick.train.lr, quick.train.momentum, quick.train.seed) == (2, 0.125, 0.1, 7)


def test_load_study__removes_a_key_that_is_overridden_with_nothing(study_file):
    path = study_file("[data.select]\ncount = 10")
    select = load_study(path, overrides=["data.select.count=", "data.select.fraction=0.5"]).data.select
    assert (select.count, select.fraction) == (None, 0.5)


def test_load_study__takes_bare_words_as_text(study_file):
    study = load_study(study_file(""), overrides=["name=2024-01-01", "data.select.how=random"])
    assert study.name == "2024-01-01"
    assert study.data.select.how == "random"


def test_load_study__names_file_key_and_nearest_of_every_unknown_key(study_file):
    path = study_file(
        "nam = 'x'\n[train]\nepoch = 3\n[profiles.quick.trian]\nlr = 1\n[[checkpoints.files]]\npaht = 'a'"
    )
    message = refusal(path, overrides=["model.clases=3"])
    assert message.count(str(path)) == len(message.splitlines())
    assert "nam is not a known key; did you mean 'name'?" in message
    assert "train.epoch is not a known key; did you mean 'epochs'?" in message
    assert "profiles.quick.trian is not a known key; did you mean 'train'?" in message
    assert "checkpoints.files[0].paht is not a known key; did you mean 'path'?" in message
    assert "model.clases is not a known key; did you mean 'classes'?" in message
    assert "--set model.clases=3" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[train]\nepochs = 'abc'", ["train.epochs: found 'abc'", "integer", "[train]", "10"]),
        ("[train]\nlr = -1", ["train.lr: found -1", "greater than 0", "0.1"]),
        ("[data]\nsource = 'cifar'", ["data.source: found 'cifar'", "'cifar10'", "'digits'"]),
        ("[compute]\ndevice = 'gpu'", ["compute.device: found 'gpu'", "cuda", "'auto'"]),
        ("[[checkpoints.files]]\nepoch = 1", ["checkpoints.files[0]", "neither path nor weights", "as path"]),
        ("[[checkpoints.files]]\npath = 'a.pt'", ["checkpoints.files[0]", "neither epoch nor step"]),
        ("[data.label_noise]\nseed = 1", ["data.label_noise.fraction is missing", "add `fraction = …`"]),
        ("train = 3", ["train: found 3", "a table"]),
        ("[data.exposure]\norder = ['a']", ["data.exposure.order: found ['a']", "integer", "path"]),
        ("[train]\nlr = nan", ["train.lr: found nan", "finite"]),
        ("profiles = 3", ["profiles: found 3", "[profiles.quick]"]),
        ("[profiles]\nquick = 3", ["profiles.quick: found 3", "[profiles.quick]"]),
    ],
)
def test_load_study__says_what_was_found_what_was_needed_and_the_mend(study_file, text, words):
    message = refusal(study_file(text))
    assert "study.toml: " in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[data.select]\ncount = 3\nfraction = 0.5", "keep one"),
        ("[checkpoints]\nstart = 5\nend = 1", "swap them"),
        ("[checkpoints]\nexpect = [9, 0]", "backwards"),
        ("[checkpoints]\npattern = 'last.pt'", "neither {epoch} nor {step}"),
        ("[checkpoints]\npattern = 'e{epoch.pt'", "close every brace"),
        ("[checkpoints]\npattern = '{epoch}_{}.pt'", "name it"),
        ("[checkpoints]\nseries = 'step'", "has no {step}"),
        ("[checkpoints]\npattern = '{epoch}_{run}.pt'\nfields = { rum = 1 }", "did you mean 'run'?"),
        ("[data.exposure]\nstart = 2\nschedule = { 0 = [1] }", "schedule and start are both given"),
        ("[data.exposure]\norder = [1, 0]\nschedule = { 0 = [1] }", "schedule and order are both given"),
        ("[data.exposure]\nschedule = { -1 = [1] }", "epochs start at 0"),
        ("[data.exposure]\norder = [1, 1]", "name each class once"),
        ("[data.exposure]\norder = [1, 10]", "model.classes"),
        ("[data.exposure]\nschedule = { 0 = [1], 5 = [1, 12] }", "model.classes"),
        ("[data]\nsource = 'folder'", "needs a root"),
        ("[train]\nmilestones = [1]\nstep_size = 3", "both given"),
        ("[train]\nmilestones = [3, 1]", "sort them"),
        ("[train]\nsave_every_epochs = 0", "no checkpoint would be saved"),
        ("[train]\nsave_every_steps = 100", "needs {step}"),
        ("[train]\n[checkpoints]\nfiles = [{ path = 'a.pt', epoch = 1 }]", "drop one"),
        ("[train]\n[checkpoints]\npattern = '{epoch}_{run}.pt'", "checkpoints.fields = { run = … }"),
        ("[train]\n[checkpoints]\npattern = 'e{epoch:04q}.pt'", "correct the format"),
        ("[store]\nendpoint = 'http://host'", "s3://"),
        ("[model.preprocessing]\nmean = [0.5]\nstd = [1, 1]", "the same number"),
    ],
)
def test_load_study__refuses_settings_that_contradict_each_other(study_file, text, word):
    assert word in refusal(study_file(text))


def test_load_study__says_where_a_wrong_value_came_from(study_file):
    path = study_file("[profiles.quick.train]\nepochs = -1")
    assert "train.epochs (from [profiles.quick])" in refusal(path, profile="quick")
    assert "train.epochs (from --set train.epochs=0)" in refusal(path, profile="quick", overrides=["train.epochs=0"])


def test_load_study__names_the_nearest_profile(study_file):
    path = study_file("[profiles.quick]")
    assert "did you mean 'quick'?" in refusal(path, profile="quik")
    assert "the file has none" in refusal(study_file(""), profile="quick")


@pytest.mark.parametrize("text", ["train.epochs", "=3", "train..epochs=3", ""])
def test_load_study__shows_how_to_write_an_override(study_file, text):
    assert "--set train.epochs=3" in refusal(study_file(""), overrides=[text])


def test_load_study__points_at_the_line_that_is_not_toml(study_file):
    assert "line 2" in refusal(study_file("name = 'a'\nfraction = .5"))


def test_load_study__says_what_to_do_about_a_missing_file(study_file, tmp_path):
    assert "neurolens init" in refusal(tmp_path / "none" / "study.toml")
    study_file("")
    assert "did you mean 'study.toml'?" in refusal(tmp_path / "stdy.toml")
    assert "this is a folder" in refusal(tmp_path)


def test_load_study__refuses_a_file_that_is_not_utf8(tmp_path):
    path = tmp_path / "study.toml"
    path.write_bytes(b"name = '\xff'")
    assert "save it as UTF-8" in refusal(path)


def test_study__never_saves_by_epochs_when_told_zero(study_file):
    study = load_study(
        study_file("checkpoints.pattern = '{epoch}_{step}.pt'\n[train]\nsave_every_epochs = 0\nsave_every_steps = 300")
    )
    assert study.train.save_every_epochs is None
    assert study.train.save_every_steps == 300


def test_study__is_unchanged_by_a_round_trip_through_json(study_file):
    study = load_study(
        study_file("""
            [model]
            options = { a = true, b = 1, c = 1.0, d = "1" }
            [checkpoints]
            pattern = "{epoch}_{run}_{noise}.pt"
            fields = { run = 1, noise = 0.0 }
            [data]
            select.classes = [1, "1", "cat"]
            exposure.schedule = { 0 = [1, 2], 10 = [3] }
            [train]
            milestones = [0.5, 3]
        """)
    )
    again = Study.model_validate_json(study.model_dump_json())
    assert again == study
    assert repr(again) == repr(study)
    assert Study.model_validate(study.model_dump(mode="json")) == study


def test_study__effects_need_what_they_are_measured_on():
    asked = {"model": {"name": "resnet18"}, "concepts": {"root": "broden"}, "effects": {}}
    with pytest.raises(ValueError, match=r"there is no \[concepts\] table; add one"):
        Study.model_validate({"effects": {}})
    with pytest.raises(
        ValueError, match=r"on the samples of \[data\], and there is no such table; name those that res"
    ):
        Study.model_validate(asked)
    study = Study.model_validate(asked | {"data": {"source": "folder", "root": "images"}})
    assert Study.model_validate(study.model_dump(mode="json")) == study
    assert Study.model_validate({name: asked[name] for name in ("model", "concepts")}).effects is None


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("epoch_{epoch}.pt", ("epoch",)),
        ("epoch_{epoch}_iter_{step}.pt", ("epoch", "step")),
        ("cifar100_resnet18_noisy_idx_{run}_epoch_{epoch}_noise_{noise}.ckpt", ("run", "epoch", "noise")),
        ("{{x}}_{step}", ("step",)),
    ],
)
def test_pattern_fields__lists_the_fields_in_order(pattern, names):
    assert pattern_fields(pattern) == names
    assert Checkpoints(pattern=pattern).pattern == pattern


@pytest.mark.parametrize("template", TEMPLATES)
def test_init_study__writes_a_study_that_loads_with_each_of_its_profiles(tmp_path, template):
    path = init_study(tmp_path / template, template)
    assert path == tmp_path / template / "study.toml"
    profiles = tomllib.loads(path.read_text(encoding="utf-8"))["profiles"]
    stores = set()
    for profile in (None, *profiles):
        study = load_study(path, profile=profile)
        assert Study.model_validate_json(study.model_dump_json()) == study
        measured = {"units": OF_UNITS, "clusters": OF_CLUSTERS, "pools": OF_PAIRS}
        first = next((table for table, those in measured.items() if template in those), "samples")
        assert getattr(study, first) is not None
        assert all((getattr(study, t) is not None) == (template in OF_PAIRS) for t in ("texts", "pools", "codes"))
        assert (study.concepts is not None) == (study.effects is not None) == (template in OF_CONCEPTS)
        if study.effects is not None and study.effects.compat:  # what its functional deaths are told by
            assert study.effects.conductance
        stores.add(study.store.url)
    assert len(stores) > 1 or template == "digits"


def test_init_study__keeps_to_the_recipes_of_the_references(tmp_path):
    cifar = load_study(init_study(tmp_path / "a.toml", "cifar100"))
    assert cifar.train.model_dump(include={"lr", "momentum", "weight_decay", "batch_size", "epochs", "milestones"}) == {
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "batch_size": 128,
        "epochs": 200,
        "milestones": (0.6, 0.8),
    }
    places = init_study(tmp_path / "b.toml", "places365")
    sizes = {
        name: (study.data.select.count, study.train.epochs, study.train.batch_size)
        for name in ("dev", "test", "prod")
        for study in [load_study(places, profile=name)]
    }
    assert sizes == {"dev": (20_000, 5, 32), "test": (2_000, 2, 16), "prod": (None, 90, 128)}
    prod = load_study(places, profile="prod")
    assert prod.data.split == "train"
    assert prod.train.validation.split == "val"
    assert (prod.train.augment, prod.model.preprocessing.resize) == (("crop", "flip"), 256)


def test_init_study__keeps_to_the_recipe_of_semantic_mortality(tmp_path):
    path = init_study(tmp_path / "study.toml", "places365-resnet18")
    recipe = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4, "step_size": 30, "gamma": 0.1, "seed": 42}
    study = load_study(path)
    assert study.train.model_dump(include=set(recipe)) == recipe
    assert study.train.augment == ("crop", "flip")
    assert study.model.preprocessing.model_dump() == {"resize": 256, "crop": 224, "mean": (0, 0, 0), "std": (1, 1, 1)}
    assert study.concepts.whole
    assert (study.concepts.layers, study.concepts.quantile, study.effects.tau, study.effects.k) == (
        ("layer4",),
        0.005,
        0.04,
        3,
    )
    sizes = {
        name: (study.data.select.count, study.train.epochs, study.train.batch_size)
        for name in ("dev", "test", "prod")
        for study in [load_study(path, profile=name)]
    }
    assert sizes == {"dev": (20_000, 5, 32), "test": (2_000, 2, 16), "prod": (None, 90, 128)}
    seed = load_study(path, profile="seed")
    assert (seed.concepts.compat, seed.effects.compat, seed.effects.reading) == ("lite", "seed", "lite")
    assert seed.checkpoints.folder == study.checkpoints.folder
    assert seed.store.url != study.store.url


def test_init_study__takes_a_hyphen_for_an_underscore(tmp_path):
    written = [init_study(tmp_path / f"{name}.toml", name) for name in ("cifar-resnet18", "cifar_resnet18")]
    assert written[0].read_text(encoding="utf-8") == written[1].read_text(encoding="utf-8")


def test_init_study__points_editors_at_the_schema(tmp_path):
    first = init_study(tmp_path).read_text(encoding="utf-8").splitlines()[0]
    assert first == f"#:schema {SCHEMA.as_uri()}"
    assert SCHEMA.exists()


def test_init_study__refuses_to_overwrite(tmp_path):
    path = init_study(tmp_path)
    path.write_text("name = 'mine'", encoding="utf-8")
    with pytest.raises(StudyError, match="exists already"):
        init_study(tmp_path)
    assert path.read_text(encoding="utf-8") == "name = 'mine'"


def test_init_study__names_the_nearest_template(tmp_path):
    with pytest.raises(StudyError, match="did you mean 'cifar10'"):
        init_study(tmp_path, "cifar-10")


def test_init_study__says_which_folder_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StudyError, match="cannot be written"):
        init_study(tmp_path / "file" / "study.toml")


@pytest.mark.parametrize("network", ["RN50", "RN50x16"])
def test_init_study__of_clip_takes_openais_weights_with_their_activation(tmp_path, network):
    path = init_study(tmp_path / "study.toml", f"clip-{network.lower()}")
    study = load_study(path)
    assert study.model.name == f"open_clip/{network}"
    assert study.model.options == {"quick_gelu": True}
    assert [file.weights for file in study.checkpoints.files] == [f"open_clip/{network}/openai"]
    assert (study.texts.sets["classes"].known, study.texts.sets["classes"].templates) == ("imagenet", "openai")
    seed = load_study(path, profile="seed")
    assert (seed.codes.norm, seed.codes.atoms, seed.codes.percentile) == ("columns", 64, 0)
    assert seed.texts.sets["words"].templates == "openai"


def test_templates__say_what_they_are_for():
    assert tuple(templates()) == TEMPLATES
    assert all(len(text) > 20 for text in templates().values())


def test_study_json_schema__is_what_is_committed(tmp_path):
    fresh = write_json_schema(tmp_path).read_text(encoding="utf-8")
    assert SCHEMA.read_text(encoding="utf-8") == fresh, (
        "schemas/study.json is stale; run: python -c "
        "'from neurolens.study_files import *; write_json_schema(SCHEMA.parent)'"
    )


def test_study_json_schema__knows_every_table_and_profiles():
    schema = study_json_schema()
    assert set(schema["properties"]) == {*Study.model_fields, "profiles"}
    assert set(schema["$defs"]["Profile"]["properties"]) == set(Study.model_fields)
    for table in schema["$defs"].values():
        assert all(
            "description" in field or "$ref" in field or "anyOf" in field for field in table["properties"].values()
        )


# Properties of the pieces

keys = st.text("abcdefgh_", min_size=1, max_size=5)
leaves = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5))
tables = st.recursive(
    st.dictionaries(keys, leaves, max_size=3),
    lambda inner: st.dictionaries(keys, st.one_of(leaves, inner), max_size=3),
    max_leaves=5,
)
patient = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@patient
@given(
    st.lists(keys, min_size=1, max_size=4),
    st.one_of(st.booleans(), st.integers(-(2**53), 2**53), st.text("ab c#=[]\"'\n")),
)
def test_parse_override__gives_back_the_value_that_toml_would(key, value):
    text = json.dumps(value)
    assert parse_override(f"{'.'.join(key)}={text}") == (tuple(key), value)


@patient
@given(keys, st.text("abcxyz-/.:,", min_size=1).filter(lambda text: text.strip() not in ("inf", "nan")))
def test_parse_override__takes_any_bare_words_as_text(key, words):
    assert parse_override(f"{key}={words}") == ((key,), words)


@patient
@given(tables, tables)
def test_merge__keeps_all_of_the_top_and_what_it_does_not_touch(base, top):
    before = json.dumps([base, top])
    merged = merge(base, top)
    assert merge(merged, top) == merged
    assert set(merged) == set(base) | set(top)
    assert all(merged[k] == base[k] for k in base if k not in top)
    assert all(merged[k] == v for k, v in top.items() if not isinstance(v, dict))
    assert json.dumps([base, top]) == before


@patient
@given(tables, tables, tables)
def test_merge__is_associative_where_tables_stay_tables(a, b, c):
    def shape_clash(x, y):
        return any(
            isinstance(x[k], dict) != isinstance(y[k], dict) or (isinstance(x[k], dict) and shape_clash(x[k], y[k]))
            for k in set(x) & set(y)
        )

    if not (shape_clash(a, b) or shape_clash(b, c) or shape_clash(a, c)):
        assert merge(merge(a, b), c) == merge(a, merge(b, c))


@patient
@given(tables, st.lists(keys, min_size=1, max_size=3), leaves)
def test_without__undoes_what_nest_and_merge_put_in(base, key, value):
    there = merge(base, nest(key, value))
    for part in key:
        there = there[part]
    assert there == value
    gone = without(merge(base, nest(key, value)), key)
    for part in key[:-1]:
        gone = gone[part]
    assert key[-1] not in gone
