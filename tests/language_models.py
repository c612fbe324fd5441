"""A real language-model run for tests: a tiny GPT-NeoX trained on a bundled text, its steps saved as folders."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXT = Path(__file__).parent / "data" / "tides.txt"
STEPS = (0, 1, 2, 4, 8, 16)


@dataclass(frozen=True)
class LanguageRun:
    """``folder`` holds ``checkpoints/step<n>`` for every step, ``model`` (config and tokenizer) and ``tides.txt``."""

    folder: Path
    steps: tuple[int, ...]

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step{step}"

    def study(self, text: str = "[units]\n") -> str:
        """Return a study of the run, to be written beside the folders; ``text`` is what it measures."""
        return f"""name = "tides"
[model]
name = "transformers"
[model.transformers]
source = "model"
[checkpoints]
folder = "checkpoints"
pattern = "step{{step}}"
[data]
source = "text"
root = "tides.txt"
[data.text]
max_length = 48
[compute]
device = "cpu"
threads = 1
batch_size = 8
{text}"""


def tokenizer_of_bytes() -> Any:
    """Return a tokenizer with one token a byte, and <|endoftext|>; it has no padding token, as Pythia's has none."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0} | {letter: i for i, letter in enumerate(alphabet, 1)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


def tiny_neox(**changes: Any) -> Any:
    """Return an untrained GPT-NeoX with 3 layers of 48 and 96 hidden units, as a causal language model."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    settings = {
        "vocab_size": 257,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": 128,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return GPTNeoXForCausalLM(GPTNeoXConfig(**(settings | changes)))


def train_language_model(folder: Path, *, steps: tuple[int, ...] = STEPS, lr: float = 0.01) -> LanguageRun:
    """Train the tiny GPT-NeoX on the bundled text and save it at each step, as `Trainer` would; about three seconds."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    run = LanguageRun(folder, steps)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [line for line in TEXT.read_text().splitlines() if line]
    (folder / "tides.txt").write_text(TEXT.read_text())
    tokenizer = tokenizer_of_bytes()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = tiny_neox()
        tokenizer.save_pretrained(run.model)
        network.config.save_pretrained(run.model)
        optimizer = torch.optim.AdamW(network.parameters(), lr=lr)
        text = torch.tensor(tokenizer("\n".join(lines))["input_ids"])
        for step in range(max(steps) + 1):
            if step in steps:
                network.save_pretrained(run.checkpoint(step))
            starts = torch.randint(len(text) - 64, (16,))
            batch = torch.stack([text[s : s + 64] for s in starts])
            optimizer.zero_grad()
            network(input_ids=batch, labels=batch, use_cache=False).loss.backward()
            optimizer.step()
    return run


def to_hub_cache(run: LanguageRun, cache: Path, name: str = "tides/neox") -> None:
    """Lay a run out as the hub's cache on a machine does: a revision ``step<n>`` for each step, main the last."""
    import hashlib

    top = cache / f"models--{name.replace('/', '--')}"
    (top / "refs").mkdir(parents=True)
    (top / "blobs").mkdir()
    for step in run.steps:
        commit = hashlib.sha1(f"{name} {step}".encode()).hexdigest()
        snapshot = top / "snapshots" / commit
        snapshot.mkdir(parents=True)
        files = [*run.checkpoint(step).iterdir(), *(f for f in run.model.iterdir() if f.name.startswith("token"))]
        for file in files:
            blob = top / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
            blob.write_bytes(file.read_bytes())
            (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
        (top / "refs" / f"step{step}").write_text(commit)
    (top / "refs" / "main").write_text(commit)


def as_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
