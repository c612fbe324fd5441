"""Phrases, their embeddings, and files of both."""

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from neurolens.errors import DataError, MissingExtraError, NonFiniteError, SchemaError
from neurolens.pairs import phrases as module
from neurolens.pairs.phrases import (
    PASCAL_CONTEXT,
    embed_phrases,
    imagenet_classes,
    openai_templates,
    read_embeddings,
    read_phrases,
    read_templates,
    write_embeddings,
)


def saved(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_read_phrases__strips_tabs_and_blanks_and_needs_no_last_line_end(tmp_path):
    file = saved(tmp_path / "words.txt", "\ufeffbutterfly\t\n  red car \r\n\n\t\nnaïve\nlast")
    assert read_phrases(file) == ["butterfly", "red car", "naïve", "last"]


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1), min_size=1, unique=True))
def test_read_phrases__returns_what_was_written(tmp_path_factory, words):
    file = saved(tmp_path_factory.mktemp("words") / "words.txt", "\t\n".join(words))
    assert read_phrases(file) == words


def test_read_phrases__reports_what_is_there_twice(tmp_path):
    file = saved(tmp_path / "words.txt", "missile\ncar\nmissile \nsunglasses\nsunglasses")
    with pytest.raises(DataError, match=r"'missile' in lines 1 and 3, and 1 more like it.*duplicates='drop'"):
        read_phrases(file)
    assert read_phrases(file, duplicates="drop") == ["missile", "car", "sunglasses"]
    assert len(read_phrases(file, duplicates="keep")) == 5
    with pytest.raises(DataError, match="did you mean 'drop'"):
        read_phrases(file, duplicates="dropp")


@pytest.mark.parametrize("text", ["", "\n", " \t\n\n "])
def test_read_phrases__of_nothing_says_so(tmp_path, text):
    with pytest.raises(DataError, match="has no phrases; write one a line"):
        read_phrases(saved(tmp_path / "words.txt", text))


def test_read_phrases__says_which_file_is_missing_or_no_text(tmp_path):
    saved(tmp_path / "30k.txt", b"\xff\xfe\xff")
    with pytest.raises(DataError, match=r"there is no file .*30k\.txtr; did you mean '30k\.txt'"):
        read_phrases(tmp_path / "30k.txtr")
    with pytest.raises(DataError, match="no text in UTF-8"):
        read_phrases(tmp_path / "30k.txt")
    with pytest.raises(DataError, match="give the path of a file of phrases"):
        read_phrases(tmp_path / "nowhere" / "30k.txt")


def test_read_templates__needs_one_place_for_the_phrase(tmp_path):
    assert read_templates(saved(tmp_path / "t.txt", "a photo of a {}.\nart of {}\t")) == [
        "a photo of a {}.",
        "art of {}",
    ]
    with pytest.raises(DataError, match=r"'a photo', and exactly one \{\} was needed.*'a photo of a \{\}\.'"):
        read_templates(saved(tmp_path / "t.txt", "a photo of a {}.\na photo"))
    with pytest.raises(DataError, match="has no templates"):
        read_templates(saved(tmp_path / "t.txt", ""))


def test_pascal_context__has_59_classes():
    assert len(PASCAL_CONTEXT) == len(set(PASCAL_CONTEXT)) == 59
    assert list(PASCAL_CONTEXT) == sorted(PASCAL_CONTEXT)
    assert PASCAL_CONTEXT[0] == "aeroplane"
    assert PASCAL_CONTEXT[-1] == "wood"


def test_openai_templates__are_80_and_classes_1000():
    pytest.importorskip("open_clip")
    templates, classes = openai_templates(), imagenet_classes()
    assert len(templates) == len(set(templates)) == 80
    assert all(template.count("{}") == 1 for template in templates)
    assert len(classes) == 1000
    assert classes[0] == "tench"
    assert sorted({name for name in classes if classes.count(name) > 1}) == ["missile", "sunglasses"]


def test_openai_templates__without_open_clip_name_the_extra(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(module, "import_module", absent)
    for lacking in (openai_templates, imagenet_classes):
        with pytest.raises(MissingExtraError, match=r"pip install 'neurolens\[clip\]'"):
            lacking()


def test_embed_phrases__golden_mean_of_two_templates():
    """Golden G13 of the spec, with lengths that do not matter."""
    table = {"a word": [3.0, 0.0], "the word": [1.2, 1.6]}
    found = embed_phrases(lambda texts: np.array([table[text] for text in texts]), ["word"], ["a {}", "the {}"])
    np.testing.assert_allclose(found, [[0.8944271910, 0.4472135955]], rtol=0, atol=1e-10)
    assert found.dims == ("phrase", "feature")
    assert found["phrase"].item() == "word"


def hashed(texts):
    rows = [np.random.default_rng(list(text.encode())).normal(size=6) for text in texts]
    return np.array(rows)


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 3))
def test_embed_phrases__is_blind_to_batches(batch, forms):
    names, templates = ["a", "b", "c"], ["{}", "x {}", "{} y"][:forms]
    slow = []
    for name in names:
        prompts = hashed([form.replace("{}", name) for form in templates])
        mean = (prompts / np.linalg.norm(prompts, axis=1, keepdims=True)).mean(axis=0)
        slow.append(mean / np.linalg.norm(mean))
    np.testing.assert_allclose(embed_phrases(hashed, names, templates, batch=batch), slow, rtol=1e-12)


def test_embed_phrases__without_templates_embeds_the_phrase():
    seen = []

    def encode(texts):
        seen.extend(texts)
        return torch.tensor(hashed(texts), dtype=torch.bfloat16, requires_grad=True)

    found = embed_phrases(encode, ["red car", "{}"], batch=1)
    assert seen == ["red car", "{}"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_embed_phrases__keeps_float64_and_widens_float16(kind):
    found = embed_phrases(lambda texts: hashed(texts).astype(kind), ["a"])
    assert found.dtype == (np.float64 if kind == np.float64 else np.float32)


@pytest.mark.parametrize(
    ("phrases", "templates", "encode", "error", "words"),
    [
        ([], None, hashed, DataError, "the list of phrases is empty"),
        ("word", None, hashed, DataError, "found one text, 'word', and a list"),
        (["a"], [], hashed, DataError, "templates is empty"),
        (["a"], ["{} {}"], hashed, DataError, "exactly one"),
        (["a", "b"], None, lambda texts: hashed(texts)[:1], SchemaError, r"\(1, 6\) for 2 texts"),
        (["a"], None, lambda texts: [[1, 2]], SchemaError, "int64"),
        (["a", "b"], None, lambda texts: np.zeros((len(texts), 2)), NonFiniteError, "'a' has no finite length"),
        (["a"], ["{}", "x{}"], lambda texts: np.array([[1.0], [-1.0]]), NonFiniteError, "'a' cancel"),
    ],
)
def test_embed_phrases__says_what_does_not_fit(phrases, templates, encode, error, words):
    with pytest.raises(error, match=words):
        embed_phrases(encode, phrases, templates)


def test_embed_phrases__refuses_a_width_that_changes_and_a_batch_of_none():
    with pytest.raises(SchemaError, match=r"\(1, 2\) for 1 texts.*\(1, 1\)"):
        embed_phrases(lambda texts: np.ones((1, len(texts[0]))), ["a", "bb"], batch=1)
    with pytest.raises(SchemaError, match="batch=0"):
        embed_phrases(hashed, ["a"], batch=0)


def test_embeddings__come_back_from_a_file(tmp_path):
    made = embed_phrases(hashed, ["a", "b"])
    file = write_embeddings(made.transpose("feature", "phrase"), tmp_path / "new" / "texts.pt")
    held = torch.load(file, weights_only=True)
    assert held.dtype == torch.float32
    assert tuple(held.shape) == (2, 6)
    found = read_embeddings(file, ["a", "b"], features=6)
    xr.testing.assert_equal(found, made.astype(np.float32))
    assert "phrase" not in read_embeddings(file).coords


def test_read_embeddings__takes_half_precision_and_columns(tmp_path):
    torch.save(torch.arange(6, dtype=torch.float16).reshape(2, 3), tmp_path / "texts.pt")
    found = read_embeddings(tmp_path / "texts.pt", ["a", "b", "c"], transposed=True)
    assert found.dtype == np.float32
    assert found.sel(phrase="c").to_numpy().tolist() == [2, 5]


@pytest.mark.parametrize(
    ("held", "options", "error", "words"),
    [
        (torch.ones(2, 3), {"features": 4}, DataError, "2 phrases of 3 features, and 2 of 4 were needed; give"),
        (torch.ones(2, 3), {"phrases": ["a"] * 3, "features": 2}, DataError, "transposed=True"),
        (torch.ones(2, 3), {"phrases": ["a"]}, DataError, "and 1 of 3 were needed"),
        (torch.ones(2, 3, dtype=torch.int64), {}, DataError, r"torch\.int64 \(2, 3\)"),
        (torch.ones(2), {}, DataError, r"torch\.float32 \(2,\)"),
        (torch.ones(0, 3), {}, DataError, r"\(0, 3\)"),
        ({"a": torch.ones(2)}, {}, DataError, "holds dict"),
        (
            torch.tensor([[1.0], [torch.nan]]),
            {"phrases": ["a", "b"]},
            NonFiniteError,
            "texts.pt: .* phrase 'b' has NaN",
        ),
        (DataError("code"), {}, DataError, "needs code to be executed"),
    ],
)
def test_read_embeddings__says_what_does_not_fit(tmp_path, held, options, error, words):
    torch.save(held, tmp_path / "texts.pt")
    with pytest.raises(error, match=words):
        read_embeddings(tmp_path / "texts.pt", **options)


def test_read_embeddings__says_which_file_is_missing_or_damaged(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        read_embeddings(tmp_path / "texts.pt")
    for content in (b"", b"not a tensor"):
        with pytest.raises(DataError, match=r"cannot be read as tensors \([^().]*\); it is damaged"):
            read_embeddings(saved(tmp_path / "texts.pt", content))


def test_write_embeddings__says_what_does_not_fit(tmp_path):
    with pytest.raises(SchemaError, match=r"shape \(0, 2\)"):
        write_embeddings(np.ones((0, 2)), tmp_path / "texts.pt")
    with pytest.raises(NonFiniteError, match="phrase 1 has NaN"):
        write_embeddings([[1.0], [np.nan]], tmp_path / "texts.pt")
    saved(tmp_path / "file", "x")
    with pytest.raises(DataError, match="cannot be written"):
        write_embeddings(np.ones((1, 2)), tmp_path / "file" / "texts.pt")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        write_embeddings(np.ones((1, 2)), tmp_path / "folder.pt")
