"""The training as Lightning wants it: what is shown, in which order, at which rate, and what is kept."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from torch.nn import functional

from neurolens.data import SampleSet, batches, draws
from neurolens.data.augmentation import training_batches
from neurolens.data.samples import Indices
from neurolens.errors import DataError, NonFiniteError
from neurolens.models import Network
from neurolens.study import Study
from neurolens.training_schedule import Row, learning_rate, task_of
from neurolens.training_state import Folder

Shown = tuple[torch.Tensor, torch.Tensor]


class Fit(lightning.LightningModule):
    """Counts epochs and steps itself, so as to go on from anywhere."""

    def __init__(
        self,
        study: Study,
        network: Network,
        samples: SampleSet,
        validation: SampleSet | None,
        folder: Folder,
        settings: str,
        state: dict[str, Any] | None,
        last: int,
    ) -> None:
        super().__init__()
        assert study.train is not None
        self.table, self.folder, self.settings, self.last = study.train, folder, settings, last
        self.network = network.module
        self.preprocessing = network.preprocessing
        self.samples, self.validation = samples, validation
        self.keys = draws.keys(samples.ids)
        self.epoch = self.step = self.batch = self.first_batch = 0
        self.batches_in_epoch = 0
        self.totals = [0.0, 0.0, 0.0]
        self.written: list[str] = []
        self.state = state
        self.sums: dict[str, torch.Tensor] = {}
        self.on_row: Callable[[Row], None] | None = None
        if state is not None:
            self.network.load_state_dict(state["model"])
            self.epoch, self.step, self.batch = state["epoch"], state["step"], state["batch"]
            self.first_batch = self.batch
            self.totals, self.written = list(state["totals"]), list(state["written"])
        self.network.train().requires_grad_(True)

    # -- what is shown ------------------------------------------------------------------------------------------------

    def chunks(self) -> list[Indices]:
        """Return the positions of each batch of the running epoch; a last batch of one joins the one before."""
        epoch, size = self.epoch + 1, self.table.batch_size
        at = np.arange(len(self.samples))
        if self.samples.exposure is not None:
            at = at[np.isin(self.samples.labels, self.samples.exposure.trained_in(epoch))]
            if not len(at):
                raise DataError(f"no sample has a class of epoch {epoch}; mend [data.exposure] or [data.select]")
        at = at[draws.order(self.keys[at], "shuffle", self.table.seed, epoch)]
        cuts = list(range(size, len(at), size))
        if size > 1 and cuts and len(at) - cuts[-1] == 1:  # batch statistics of one sample are undefined
            cuts.pop()
        return np.split(at, cuts)

    def shown(self) -> Iterator[Shown]:
        """Yield the rest of the running epoch."""
        for batch in training_batches(
            self.samples,
            self.preprocessing,
            self.chunks()[self.first_batch :],
            augment=self.table.augment,
            keys=self.keys,
            seed=self.table.seed,
            epoch=self.epoch + 1,
            device=self.device,
            channels_last=self.device.type == "cuda",
        ):
            yield batch.x, batch.y

    def shown_in_validation(self) -> Iterator[Shown]:
        """Yield the validation samples of the classes introduced so far."""
        assert self.validation is not None
        for batch in batches(
            self.validation,
            self.preprocessing,
            batch_size=self.table.batch_size,
            device=self.device,
            indices=self.validation_positions(),
        ):
            yield batch.x, batch.y

    def validation_positions(self) -> Indices:
        """Return the positions validated on after the running epoch."""
        assert self.validation is not None
        if self.samples.exposure is None:
            return np.arange(len(self.validation))
        introduced = self.samples.exposure.introduced(self.epoch + 1)
        return np.flatnonzero(np.isin(self.validation.labels, introduced))

    def training_loader(self) -> Iterable[Shown]:
        """Return what Lightning iterates over once an epoch."""
        return _Loader(self.shown, lambda: len(self.chunks()) - self.first_batch)

    def validation_loader(self) -> Iterable[Shown] | None:
        """Return what Lightning validates on after each epoch."""
        if self.validation is None:
            return None
        return _Loader(
            self.shown_in_validation, lambda: math.ceil(len(self.validation_positions()) / self.table.batch_size)
        )

    # -- Lightning's hooks --------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        table, weights = self.table, [p for p in self.network.parameters() if p.requires_grad]
        optimizer: torch.optim.Optimizer
        if table.optimizer == "sgd":
            optimizer = torch.optim.SGD(weights, table.lr, momentum=table.momentum, weight_decay=table.weight_decay)
        else:
            kind = torch.optim.Adam if table.optimizer == "adam" else torch.optim.AdamW
            optimizer = kind(weights, table.lr, weight_decay=table.weight_decay)
        if self.state is not None:
            optimizer.load_state_dict(self.state["optimizer"])
        return optimizer

    def on_fit_start(self) -> None:
        if self.device.type == "cuda":
            self.network.to(memory_format=torch.channels_last)
        if self.state is not None and self.state["precision"]:
            self.trainer.precision_plugin.load_state_dict(self.state["precision"])

    def on_train_start(self) -> None:
        self.state = None
        begins = self.step == 0
        if begins:
            if self.table.save_initial:
                self.written = [self.folder.name(0, 0)]
            self.folder.save_resume(self.resume_state())  # before any other file: the folder is known to be this run's
        self.folder.cut_metrics(self.epoch)
        if begins and self.table.save_initial:
            self.folder.save(self.weights(), 0, 0)

    def on_train_epoch_start(self) -> None:
        self.batches_in_epoch = len(self.chunks())
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.lr()
        self.sums = {"train": self._zeros(*self.totals), "val": self._zeros()}

    def training_step(self, batch: Shown, _: int) -> torch.Tensor:
        seed = draws.seed(self.table.seed, self.epoch, self.batch)  # of dropout, wherever the run began
        torch.default_generator.manual_seed(seed)  # torch.manual_seed formats three stacks where CUDA is not in use
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)
        loss = self._score(batch, "train")
        self.log("loss", loss, prog_bar=True, logger=False, batch_size=len(batch[1]))
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        self.step, self.batch = self.step + 1, self.batch + 1
        every = self.table.save_every_steps
        if every is not None and self.step % every == 0 and self.batch < self.batches_in_epoch:
            self.totals = self.sums["train"].tolist()
            self._means("train")
            self.save()

    def validation_step(self, batch: Shown, _: int) -> None:
        self._score(batch, "val")

    def on_train_epoch_end(self) -> None:
        row: Row = {"epoch": self.epoch + 1, "lr": self.lr()}
        row["train_loss"], row["train_acc"] = self._means("train")
        row["val_loss"], row["val_acc"] = self._means("val") if self.validation is not None else (None, None)
        self.epoch, self.batch, self.first_batch, self.totals = self.epoch + 1, 0, 0, [0.0, 0.0, 0.0]
        self.folder.append_metrics(row)
        by_epochs, by_steps = self.table.save_every_epochs, self.table.save_every_steps
        due = by_epochs is not None and self.epoch % by_epochs == 0
        if due or (by_steps is not None and self.step % by_steps == 0) or self.epoch == self.last:
            self.save()
        if self.on_row is not None:
            self.on_row(row)

    # -- numbers ------------------------------------------------------------------------------------------------------

    def _score(self, batch: Shown, which: str) -> torch.Tensor:
        x, y = batch
        output = self.network(x)
        logits: torch.Tensor = getattr(output, "logits", output)  # Inception and GoogLeNet add auxiliary ones
        if self.samples.exposure is not None:
            hidden = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
            hidden[list(self.samples.exposure.introduced(self.epoch + 1))] = False
            logits = logits.masked_fill(hidden, -torch.inf)
        loss = functional.cross_entropy(logits, y)
        with torch.no_grad():
            right = (logits.argmax(1) == y).sum()
            self.sums[which] += torch.stack((loss * len(y), right, torch.full_like(loss, len(y)))).to(self.sums[which])
        return loss

    def _zeros(self, *values: float) -> torch.Tensor:
        precise = torch.float32 if self.device.type == "mps" else torch.float64
        return torch.tensor(values or (0.0, 0.0, 0.0), dtype=precise, device=self.device)

    def _means(self, which: str) -> tuple[float | None, float | None]:
        loss, right, count = self.sums[which].tolist()
        if count == 0:
            return None, None
        if which == "train" and not math.isfinite(loss):
            raise NonFiniteError(
                f"the training loss of epoch {self.epoch + 1} is {loss / count}; nothing after the last checkpoint was "
                f"saved: lower train.lr (it is {self.lr():g}), and train into another checkpoints.folder"
            )
        return loss / count, right / count

    def lr(self) -> float:
        """Return the learning rate of the running epoch."""
        start, length = task_of(self.samples, self.epoch + 1, self.table.epochs)
        return learning_rate(self.table, self.epoch - start, length)

    # -- what is kept -------------------------------------------------------------------------------------------------

    def weights(self) -> dict[str, torch.Tensor]:
        """Return a copy of the network's tensors on the CPU."""
        tensors = self.network.state_dict().items()
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors}

    def resume_state(self) -> dict[str, Any]:
        """Return all that going on from here needs."""
        return {
            "settings": self.settings,
            "epoch": self.epoch,
            "step": self.step,
            "batch": self.batch,
            "totals": self.totals,
            "written": self.written,
            "model": self.weights(),
            "optimizer": self.trainer.optimizers[0].state_dict(),
            "precision": self.trainer.precision_plugin.state_dict(),
        }

    def save(self) -> None:
        """Write a checkpoint, then the state to resume from."""
        name = self.folder.save(self.weights(), self.epoch, self.step)
        self.written = [*(n for n in self.written if n != name), name]
        self.folder.save_resume(self.resume_state())


class _Loader:
    """An iterable of known length, made anew for each epoch."""

    def __init__(self, shown: Callable[[], Iterator[Shown]], length: Callable[[], int]) -> None:
        self.shown, self.length = shown, length

    def __iter__(self) -> Iterator[Shown]:
        return self.shown()

    def __len__(self) -> int:
        return self.length()
