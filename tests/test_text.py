"""Texts as samples: where they are read from, what is dropped, which ids they have, and what is refused."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurolens.data import TextSet, batches, open_samples, study_samples, tokenised
from neurolens.errors import DataError, StudyError
from neurolens.study import Data, Preprocessing, load_study

pytest.importorskip("transformers", reason="the extra 'text' is not installed")
from language_models import TEXT, as_jsonl, tokenizer_of_bytes

LINES = ["the sea", "", "a boat", "   ", "the sea", "\t", "bread", "the sea"]
ROWS = [{"text": line, "kind": "ab"[i % 2], "n": i % 3} for i, line in enumerate(LINES)]
KEPT = ["the sea", "a boat", "the sea", "bread", "the sea"]
AT = [0, 2, 4, 6, 7]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    from neurolens.tokens import tokenizer_in

    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer_of_bytes().save_pretrained(folder)
    return tokenizer_in(folder, "bytes")


def write_text(folder: Path) -> dict[str, Any]:
    (folder / "lines.txt").write_text("\n".join(LINES) + "\n")
    return {"source": "text", "root": folder / "lines.txt"}


def write_jsonl(folder: Path) -> dict[str, Any]:
    return {"source": "jsonl", "root": as_jsonl(folder / "lines.jsonl", ROWS)}


def write_parquet(folder: Path) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), folder / "lines.parquet")
    return {"source": "parquet", "root": folder / "lines.parquet"}


def write_saved(folder: Path) -> dict[str, Any]:
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset.from_list(ROWS).save_to_disk(str(folder / "saved"))
    return {"source": "datasets", "root": folder / "saved"}


SOURCES: list[Callable[[Path], dict[str, Any]]] = [write_text, write_jsonl, write_parquet, write_saved]


@pytest.mark.parametrize("write", SOURCES)
def test_open_samples__drops_blank_lines_before_anything_is_counted(write, tmp_path):
    samples = open_samples(Data(**write(tmp_path)))
    assert isinstance(samples, TextSet)
    assert samples.texts == KEPT
    assert samples.coords["position"].tolist() == AT
    assert (samples.classes, samples.labels.tolist()) == (("text",), [0] * 5)
    first = open_samples(Data(**write_jsonl(tmp_path), select={"count": 3, "how": "first"}))
    assert first.texts == KEPT[:3]


@pytest.mark.parametrize("write", SOURCES)
def test_open_samples__gives_texts_the_same_ids_wherever_they_are_read_from(write, tmp_path):
    from hashlib import blake2b

    samples = open_samples(Data(**write(tmp_path)))
    digests = [blake2b(text.encode(), digest_size=8).hexdigest() for text in KEPT]
    sea = digests[0]
    assert samples.ids.tolist() == [sea, digests[1], f"{sea}-1", digests[3], f"{sea}-2"]


@pytest.mark.parametrize("how", ["first", "even", "stratified", "random"])
def test_open_samples__selects_texts_as_it_does_images(how, tmp_path):
    as_jsonl(tmp_path / "a.jsonl", [{"text": f"line {i}", "kind": "ab"[i % 2]} for i in range(20)])
    data = {"source": "jsonl", "root": tmp_path / "a.jsonl", "text": {"label": "kind"}}
    whole = open_samples(Data(**data))
    for select in ({"count": 6}, {"fraction": 0.3}):
        part = open_samples(Data(**data, select={**select, "how": how}))
        assert len(part) == 6
        at = part.coords["position"]
        assert np.array_equal(part.ids, whole.ids[at])
        assert part.texts == [whole.texts[i] for i in at]
        assert np.array_equal(part.labels, whole.labels[at])
        if how == "stratified":
            assert np.bincount(part.labels).tolist() == [3, 3]
    (tmp_path / "ids").write_text("\n".join(whole.ids[[3, 7]]))
    assert open_samples(Data(**data, select={"ids": tmp_path / "ids"})).texts == ["line 3", "line 7"]
    assert set(open_samples(Data(**data, select={"classes": ["b"]})).labels) == {1}


@pytest.mark.parametrize("write", SOURCES[1:])
def test_open_samples__takes_classes_from_a_column_of_texts_or_of_numbers(write, tmp_path):
    named = open_samples(Data(**write(tmp_path), text={"label": "kind"}))
    assert (named.classes, named.labels.tolist()) == (("a", "b"), [i % 2 for i in AT])
    (tmp_path / "second").mkdir()
    numbered = open_samples(Data(**write(tmp_path / "second"), text={"label": "n"}))
    assert (numbered.classes, numbered.labels.tolist()) == (("0", "1", "2"), [i % 3 for i in AT])
    assert np.array_equal(named.ids, numbered.ids)


def test_open_samples__takes_the_names_of_a_declared_class_column(tmp_path):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "y": datasets.ClassLabel(names=["sea", "land"])})
    made = datasets.Dataset.from_dict({"text": ["a", "b"], "y": [1, 0]}, features=features)
    datasets.disable_progress_bars()
    datasets.DatasetDict({"test": made}).save_to_disk(str(tmp_path / "saved"))
    data = {"source": "datasets", "root": tmp_path / "saved", "text": {"label": "y"}}
    samples = open_samples(Data(**data, split="test"))
    assert (samples.classes, samples.labels.tolist()) == (("sea", "land"), [1, 0])
    with pytest.raises(DataError, match=r"no split 'train'; known: 'test'"):
        open_samples(Data(**data))


def test_open_samples__reads_a_folder_of_files_in_natural_order(tmp_path):
    for name in ("part10", "part2", "part1"):
        (tmp_path / f"{name}.txt").write_text(f"{name} first\n\n{name} second\n")
    samples = open_samples(Data(source="text", root=tmp_path))
    assert samples.texts == [
        f"{part} {which}" for part in ("part1", "part2", "part10") for which in ("first", "second")
    ]
    assert samples.coords["path"].tolist() == [f"part{n}.txt" for n in (1, 1, 2, 2, 10, 10)]
    assert samples.coords["position"].tolist() == [0, 2, 3, 5, 6, 8]
    assert open_samples(Data(source="text", root=tmp_path, split="part2")).texts == ["part2 first", "part2 second"]
    with pytest.raises(DataError, match=r"no split 'part3'; did you mean"):
        open_samples(Data(source="text", root=tmp_path, split="part3"))


def test_open_samples__knows_a_line_by_its_end_alone(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\u2028two\r\nthree\x0cfour\r\n\r\n five".encode())
    assert open_samples(Data(source="text", root=tmp_path / "a.txt")).texts == [
        "one\u2028two",
        "three\x0cfour",
        " five",
    ]


def cached_dataset(tmp_path, monkeypatch):
    """Put a data set of the hub into the datasets library's cache, as having loaded it once leaves it there."""
    import datasets
    from datasets.packaged_modules.parquet.parquet import Parquet

    write_parquet(tmp_path)
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    files = {"train": [str(tmp_path / "lines.parquet")]}
    builder = Parquet(
        cache_dir=str(tmp_path / "made"), dataset_name="tides", config_name="raw", hash="0" * 40, data_files=files
    )
    builder.download_and_prepare()
    made = Path(builder.cache_dir)
    version = tmp_path / "cache" / "sea___tides" / "raw" / "0.0.0"
    version.mkdir(parents=True)
    made.rename(version / made.name)


def test_open_samples__reads_a_data_set_of_the_hub_from_this_machine(tmp_path, monkeypatch):
    cached_dataset(tmp_path, monkeypatch)
    samples = open_samples(Data(source="datasets", text={"dataset": "sea/tides", "config": "raw"}))
    assert samples.texts == KEPT
    assert samples.name == "datasets:sea/tides raw:train"
    with pytest.raises(DataError, match=r"has no split 'test'; known: 'train'"):
        open_samples(Data(source="datasets", split="test", text={"dataset": "sea/tides", "config": "raw"}))


@pytest.mark.parametrize(("download", "mend"), [(False, "data.download = true"), (True, "HF_HUB_OFFLINE is set")])
def test_open_samples__says_how_a_data_set_that_is_not_here_may_be_fetched(download, mend, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "nothing")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=f"'sea/tides' is not on this machine .*{mend}"):
        open_samples(Data(source="datasets", download=download, text={"dataset": "sea/tides"}))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"a\.txt holds no text: it is empty; texts were needed"),
        ("a.txt", b"\n  \n\t\n", r"a\.txt holds no text: all 3 lines or rows are blank"),
        ("a.txt", b"sea \xff", r"a\.txt is not a text in UTF-8 \(byte 4"),
        ("a.jsonl", b'{"text": "sea"}\nsea\n', r"a\.jsonl, line 2 is not JSON"),
        ("a.jsonl", b'{"text": "sea"}\n["sea"]\n', r"a\.jsonl, line 2 is a list; write one JSON object a line"),
        ("a.jsonl", b'{"texte": "sea"}\n', r"line 1 has no column 'text'; did you mean 'texte'\? Set data.text.column"),
        ("a.jsonl", b'{"text": 3}\n', r"'text' of row 0 .* is a int, and a text was needed"),
        ("a.jsonl", b"", r"a\.jsonl holds no text: it is empty"),
        ("a.parquet", b"PAR1", r"a\.parquet is not a whole parquet file"),
        ("b.txt", b"sea", r"root = .*a\.txt is not there; did you mean 'b\.txt'\?"),
    ],
)
def test_open_samples__says_in_one_message_what_is_wrong_with_a_file(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    asked = "a.txt" if name == "b.txt" else name
    source = {"txt": "text", "jsonl": "jsonl", "parquet": "parquet"}[asked.partition(".")[2]]
    with pytest.raises(DataError, match=message):
        open_samples(Data(source=source, root=tmp_path / asked))


def test_open_samples__names_the_columns_near_a_missing_one(tmp_path):
    with pytest.raises(DataError, match=r"lines\.parquet has no column 'texts'; did you mean 'text'\?.*text\.column"):
        open_samples(Data(**write_parquet(tmp_path), text={"column": "texts"}))
    with pytest.raises(DataError, match=r"saved has no column 'kinds'; did you mean 'kind'\?.*text\.label"):
        open_samples(Data(**write_saved(tmp_path), text={"label": "kinds"}))
    with pytest.raises(DataError, match=r"column 'n' of .* holds int64, and texts were needed"):
        open_samples(Data(**write_parquet(tmp_path), text={"column": "n"}))


@pytest.mark.parametrize(
    ("labels", "message"), [(["a", None], "NoneType, str"), ([0, -1], "spans -1 to 0"), ([0.5, 1], "float")]
)
def test_open_samples__refuses_labels_that_are_no_classes(labels, message, tmp_path):
    path = as_jsonl(tmp_path / "a.jsonl", [{"text": "sea", "y": y} for y in labels])
    with pytest.raises(DataError, match=message):
        open_samples(Data(source="jsonl", root=path, text={"label": "y"}))


def test_open_samples__needs_a_folder_with_files_of_the_source(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(DataError, match=r"holds no \.txt file; found \.csv"):
        open_samples(Data(source="text", root=tmp_path))
    with pytest.raises(DataError, match="is not a folder that save_to_disk wrote"):
        open_samples(Data(source="datasets", root=tmp_path))


def test_tokenised__counts_tokens_and_says_what_they_were_counted_by(tmp_path, tokenizer):
    samples = open_samples(Data(**write_text(tmp_path), text={"max_length": 6}))
    read = tokenised(samples, tokenizer)
    assert read.coords["tokens"].tolist() == [6, 6, 6, 5, 6]
    assert read.name == (
        f"text:lines.txt:train: 5 texts, 29 tokens of at most 6 a text, tokenizer {tokenizer.digest[:12]}"
    )
    assert read.reading == {"max_length": 6, "tokenizer": tokenizer.digest}
    assert np.array_equal(read.ids, samples.ids)
    assert tokenizer.raw.decode(read.tokens(tokenizer)[1]) == "a boat"


def test_fingerprint__changes_with_what_changes_the_tokens(tmp_path, tokenizer):
    made = [tokenised(open_samples(Data(**write_text(tmp_path), text={"max_length": n})), tokenizer) for n in (6, 7, 6)]
    assert made[0].fingerprint == made[2].fingerprint != made[1].fingerprint
    assert np.array_equal(made[0].ids, made[1].ids)
    assert open_samples(Data(**write_text(tmp_path), text={"max_length": 6})).fingerprint != made[0].fingerprint


def test_tokens__are_made_once_per_tokenizer_and_length(tmp_path, tokenizer, monkeypatch):
    from neurolens.tokens import Tokenizer

    calls: list[int] = []
    encode = Tokenizer.encode

    def counted(self, texts, *, max_length):
        calls.append(len(texts))
        return encode(self, texts, max_length=max_length)

    monkeypatch.setattr(Tokenizer, "encode", counted)
    samples = tokenised(open_samples(Data(**write_text(tmp_path), select={"count": 4, "how": "first"})), tokenizer)
    part = samples.subset([2, 0])
    assert [ids.tolist() for ids in part.tokens(tokenizer)] == [samples.tokens(tokenizer)[i].tolist() for i in (2, 0)]
    assert part.coords["tokens"].tolist() == samples.coords["tokens"][[2, 0]].tolist()
    assert calls == [4]


@pytest.mark.parametrize("text", ["<|endoftext|>", "<|endoftext|><|endoftext|>"])
def test_tokenised__names_a_text_that_is_padding_and_nothing_else(text, tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text(f"the sea\n\n{text}\n")
    samples = open_samples(Data(source="text", root=tmp_path / "a.txt"))
    with pytest.raises(DataError, match=r"1 of the 2 texts have no token .*endoftext.* \(position 2\); remove them"):
        tokenised(samples, tokenizer)


def test_tokenised__names_a_text_without_any_token(tmp_path):
    from tokenizers import Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    from neurolens.tokens import tokenizer_in

    made = Tokenizer(models.WordLevel({"sea": 0, "?": 1}, unk_token="?"))
    made.normalizer = normalizers.Replace("fog", "")
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="?").save_pretrained(tmp_path / "words")
    (tmp_path / "a.txt").write_text("sea\nfog\nboat\n")
    words = tokenizer_in(tmp_path / "words", "words")
    assert words.pad == 0
    samples = open_samples(Data(source="text", root=tmp_path / "a.txt"))
    with pytest.raises(DataError, match=r"1 of the 3 texts .* 'fog' \(position 1\)"):
        tokenised(samples, words)


def test_study_samples__tokenises_with_the_tokenizer_of_the_studys_network(language_run, tmp_path):
    path = language_run.folder / "texts.toml"
    path.write_text(language_run.study())
    samples = study_samples(load_study(path))
    lines = [line for line in TEXT.read_text().splitlines() if line]
    assert samples.texts == lines
    assert samples.coords["tokens"].tolist() == [min(48, len(line)) for line in lines]
    (tmp_path / "a.txt").write_text("sea")
    (tmp_path / "study.toml").write_text('[data]\nsource = "text"\nroot = "a.txt"\n')
    with pytest.raises(DataError, match="'digits_convnet' has no tokenizer; name a network of"):
        study_samples(load_study(tmp_path / "study.toml"))


def test_study_samples__refuses_texts_where_images_are_to_be_measured(language_run):
    path = language_run.folder / "samples.toml"
    path.write_text(language_run.study("[samples]\n"))
    with pytest.raises(DataError, match=r"\[samples\] measures what a network makes of images, and text:tides\.txt"):
        study_samples(load_study(path))


def test_batches__refuse_texts(tmp_path):
    samples = open_samples(Data(**write_text(tmp_path)))
    with pytest.raises(DataError, match=r"samples are texts, and images were needed; measure texts with \[units\]"):
        next(batches(samples, Preprocessing(mean=(0.0,), std=(1.0,)), batch_size=2))


def test_text_set__pickles_as_its_texts(tmp_path, tokenizer):
    samples = tokenised(open_samples(Data(**write_parquet(tmp_path))), tokenizer).subset([3, 1])
    again = pickle.loads(pickle.dumps(samples))
    assert again.texts == ["bread", "a boat"]
    assert again.fingerprint == samples.fingerprint


def test_tokenizer_digest__is_of_what_decides_tokens(tmp_path):
    import json

    from neurolens.tokens import tokenizer_in

    for name in ("a", "b", "c"):
        tokenizer_of_bytes().save_pretrained(tmp_path / name)
    settings_file = tmp_path / "b" / "tokenizer_config.json"
    written = json.loads(settings_file.read_text())
    settings_file.write_text(
        json.dumps({**written, "name_or_path": "elsewhere", "transformers_version": "4.0"}, indent=4)
    )
    file = tmp_path / "c" / "tokenizer.json"
    changed = json.loads(file.read_text())
    changed["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(changed))
    a, b, c = (tokenizer_in(tmp_path / name, name) for name in ("a", "b", "c"))
    assert a.digest == b.digest != c.digest


def test_tokenizer_of__says_what_is_not_a_tokenizer(tmp_path):
    from neurolens.study import Transformers
    from neurolens.tokens import tokenizer_of

    (tmp_path / "empty").mkdir()
    assert tokenizer_of(Transformers(source=str(tmp_path / "empty"))) is None
    with pytest.raises(StudyError, match="holds no tokenizer"):
        tokenizer_of(Transformers(source=str(tmp_path), tokenizer=str(tmp_path / "empty")))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{}")
    with pytest.raises(StudyError, match=r"cannot be opened .*; name another with model.transformers.tokenizer"):
        tokenizer_of(Transformers(source=str(tmp_path / "broken")))


@settings(max_examples=30, deadline=None)
@given(lines=st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=12), max_size=12))
def test_open_samples__keeps_every_line_that_is_not_blank(lines, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lines")
    (folder / "a.txt").write_text("\n".join(lines), encoding="utf-8", newline="")
    kept = [i for i, line in enumerate(lines) if line.removeprefix("\ufeff" if i == 0 else "").strip()]
    if not kept:
        with pytest.raises(DataError, match="holds no text"):
            open_samples(Data(source="text", root=folder / "a.txt"))
        return
    samples = open_samples(Data(source="text", root=folder / "a.txt"))
    assert samples.coords["position"].tolist() == kept
    assert len(set(samples.ids.tolist())) == len(kept)
