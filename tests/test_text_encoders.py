"""From a network to its text tower: open_clip's tokenizers, a module's own, or none."""

import logging
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from torch import nn

from neurolens import pairs
from neurolens.errors import DataError, SchemaError
from neurolens.pairs import text_encoders

TEXTS = ["a photo of a dog.", "a cat", "Zürich at NIGHT  "]


def network(module: nn.Module, name: str = "net.py:make") -> SimpleNamespace:
    return SimpleNamespace(module=module, description={"name": name})


@pytest.fixture(scope="module")
def small():
    """The class of open_clip's networks, small, with the vocabulary of the large ones."""
    torch.manual_seed(0)
    vision = {"layers": (1, 1, 1, 1), "width": 8, "image_size": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    return open_clip.CLIP(embed_dim=8, vision_cfg=vision, text_cfg=text).eval()


def test_encoder_of__takes_open_clips_tokenizer_of_the_architecture(small):
    encode = pairs.encoder_of(network(small, "open_clip/RN50"))
    found = encode(TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(found, small.encode_text(open_clip.get_tokenizer("RN50")(TEXTS)), rtol=0, atol=0)
    assert not found.requires_grad
    embedded = pairs.embed_phrases(encode, ["dog", "cat"], pairs.openai_templates())
    slowly = [
        torch.nn.functional.normalize(encode([t.format(w) for t in pairs.openai_templates()]))
        for w in embedded.phrase.values
    ]
    means = np.stack([one.mean(0).numpy() for one in slowly])
    np.testing.assert_allclose(embedded, means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-6)


def test_encoder_of__leaves_logging_as_it_is(small, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    text_encoders._tokenizer.cache_clear()  # which open_clip is asked for once
    pairs.encoder_of(network(small, "open_clip/RN50"))
    assert logging.getLogger().handlers == []


def test_encoder_of__refuses_texts_that_a_tower_would_cut(small):
    encode = pairs.encoder_of(network(small, "open_clip/RN50"))
    assert encode(["dog " * 75]).shape == (1, 8)
    with pytest.raises(DataError, match="has 78 tokens, and the text tower takes 77"):
        encode(["cat", "dog " * 76])


class Own(nn.Module):
    """A tower that takes the lengths of texts, or the texts themselves."""

    def __init__(self, *, tokens: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 3)
        if tokens:
            self.tokenizer = lambda texts: torch.tensor([[len(text) % 10] for text in texts])

    def encode_text(self, texts):
        ids = texts if isinstance(texts, torch.Tensor) else torch.tensor([[len(text) % 10] for text in texts])
        return self.table(ids).mean(1)


@pytest.mark.parametrize("tokens", [True, False])
def test_encoder_of__takes_a_modules_own_tower(tokens):
    module = Own(tokens=tokens)
    found = pairs.encoder_of(network(module))(["abc", "abcd"])
    torch.testing.assert_close(found, module.table.weight[[3, 4]].detach())


def test_encoder_of__names_files_of_embeddings_where_there_is_no_tower():
    with pytest.raises(SchemaError, match=r'no text tower.*embeddings = "file.pt"'):
        pairs.encoder_of(network(nn.Linear(2, 2)))


def test_encoder_of__says_which_tokenizer_is_missing(small, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"is 'timm/ViT-B-16-SigLIP' of the Hugging Face hub, and is not on this"):
        pairs.encoder_of(network(small, "open_clip/ViT-B-16-SigLIP"))
