"""Rows of a language-model run: measured, kept and redone by the engine; what is wrong with one fails it alone."""

import json
import shutil
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from language_models import LanguageRun, tiny_neox, to_hub_cache, tokenizer_of_bytes

from neurolens import rows
from neurolens.study import Study, load_study

pytest.importorskip("transformers", reason="the extra 'text' is not installed")


@pytest.fixture
def run(language_run, tmp_path):
    """The run in a folder of one's own, free to be changed."""
    shutil.copytree(language_run.folder, tmp_path / "run")
    return LanguageRun(tmp_path / "run", language_run.steps)


def read(run: LanguageRun, text: str = "[units]\n", *changes: str) -> Study:
    (run.folder / "study.toml").write_text(run.study(text))
    return load_study(run.folder / "study.toml", overrides=changes)


def measured(study: Study, cube: str = "units") -> dict[int, tuple[str, str]]:
    """Run what is missing; return the outcome and reason of every row that ran, by step."""
    materials = rows.gather(study, cube)
    store = rows.open_for_writing(study)
    results = rows.run_rows(materials, rows.plan(materials, store).todo, store)
    return {r.row.position: (r.outcome, r.why) for r in results}


def provenance(study: Study) -> list[dict[str, Any]]:
    store = rows.open_for_writing(study)
    return [json.loads(r.provenance) for r in store.ledger("units").rows() if r.state == "done"]


def test_run_rows__measures_each_step_and_nothing_twice(run):
    study = read(run)
    shutil.move(run.checkpoint(8), run.folder / "step8")
    assert measured(study) == dict.fromkeys((0, 1, 2, 4, 16), ("computed", ""))
    shutil.move(run.folder / "step8", run.checkpoint(8))
    assert measured(study) == {8: ("computed", "")}
    assert measured(study) == {}
    assert {tuple(p["left_out"]) for p in provenance(study)} == {("embed_out.weight",)}


@pytest.mark.parametrize("batch_size", [3, 47])
def test_run_rows__agrees_with_a_plain_recomputation(batch_size, run):
    study = read(run, "[units]\n", f"compute.batch_size={batch_size}")
    measured(study)
    ds = xr.open_dataset(study.store.url, group="units", engine="neurolens")
    tokenizer, lines = tokenizer_of_bytes(), [x for x in (run.folder / "tides.txt").read_text().splitlines() if x]
    for step in (0, 16):
        import safetensors.torch

        network = tiny_neox().eval()
        state = safetensors.torch.load_file(run.checkpoint(step) / "model.safetensors")
        network.load_state_dict({k.replace("embed_out", "lm_head"): v for k, v in state.items()})
        hidden: list[list[torch.Tensor]] = [[], [], []]
        for i, layer in enumerate(network.gpt_neox.layers):
            layer.mlp.act.register_forward_hook(lambda m, a, out, kept=hidden[i]: kept.append(out[0].double()))
        with torch.no_grad():
            for line in lines:  # one by one: no padding, no batch
                network(input_ids=torch.tensor([tokenizer(line)["input_ids"][:48]]))
        for i in range(3):
            tokens = torch.cat(hidden[i])
            row = ds.sel(step=step, layer=f"layers.{i}.mlp.dense_4h_to_h:input")
            assert np.all(row["n"] == len(tokens))
            np.testing.assert_allclose(row["abs_sum"], tokens.abs().sum(0), rtol=1e-5)
            np.testing.assert_allclose(row["mean"], tokens.mean(0), rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(row["m2"], ((tokens - tokens.mean(0)) ** 2).sum(0), rtol=1e-4)
            np.testing.assert_allclose(row["max"], tokens.amax(0), rtol=1e-4, atol=1e-6)


def test_run_rows__a_changed_architecture_fails_its_row_alone(run):
    shutil.rmtree(run.checkpoint(2))
    tiny_neox(hidden_act="relu").save_pretrained(run.checkpoint(2))
    results = measured(read(run))
    assert [n for n, (outcome, _) in results.items() if outcome == "failed"] == [2]
    assert "of another architecture: in its config.json hidden_act is 'relu' there and 'gelu' here" in results[2][1]
    assert [outcome for n, (outcome, _) in results.items() if n != 2] == ["computed"] * 5


def test_run_rows__a_revision_that_does_not_exist_fails_its_row_alone(run, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    to_hub_cache(run, tmp_path / "hf" / "hub", "sea/neox")
    revisions = ("checkpoints.revisions=step{step}", "checkpoints.steps=[0, 3, 16]")
    results = measured(read(run, "[units]\n", "model.transformers.source=sea/neox", *revisions))
    assert {n: outcome for n, (outcome, _) in results.items()} == {0: "computed", 3: "failed", 16: "computed"}
    assert "revision 'step3' of 'sea/neox' is not on this machine" in results[3][1]


@pytest.mark.parametrize("cube", ["units", "activations"])
def test_plan__measures_anew_what_another_length_changes(cube, run):
    text = f"[{cube}]\n"
    measured(read(run, text), cube)
    assert measured(read(run, text), cube) == {}
    assert len(measured(read(run, text, "data.text.max_length=32"), cube)) == len(run.steps)


def test_plan__measures_anew_what_another_tokenizer_changes(run):
    measured(read(run))
    file = run.model / "tokenizer.json"
    changed = json.loads(file.read_text())
    changed["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(changed))
    assert len(measured(read(run))) == len(run.steps)


def test_settings__say_what_was_used(run):
    study = read(run)
    measured(study)
    ds = xr.open_dataset(study.store.url, group="units", engine="neurolens")
    assert ds.attrs["data"].startswith("text:tides.txt:train: 47 texts, 2160 tokens of at most 48 a text, tokenizer ")
