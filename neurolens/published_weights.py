"""Weights that torchvision publishes, by name: where their file lies on this machine, fetched where that is allowed."""

from pathlib import Path
from urllib.error import URLError

from neurolens.errors import CheckpointError, MissingCheckpointError, StudyError, nearest
from neurolens.fingerprints import digest


def published(name: str, *, download: bool) -> Path:
    """Return the file of weights that torchvision publishes, in the cache that torch keeps of them.

    Parameters
    ----------
    name
        As torchvision has it: ``DenseNet121_Weights.IMAGENET1K_V1``.
    download
        Allow it to be fetched, if it is not there.

    Raises
    ------
    StudyError
        If torchvision knows no such weights.
    MissingCheckpointError
        If the file is not on this machine, and may not or cannot be fetched.
    CheckpointError
        If it has not the hash that its name says.
    """
    import torch
    import torchvision

    try:
        url: str = torchvision.models.get_weight(name).url
    except (ValueError, KeyError, TypeError):
        raise StudyError(
            f"torchvision has no weights {name!r}; {nearest(name, _names())} Those of open_clip are named by network "
            "and tag, as 'open_clip/RN50/openai'"
        ) from None
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    begins = found[1] if (found := torch.hub.HASH_REGEX.search(path.name)) else ""
    if not path.is_file():
        if not download:
            raise MissingCheckpointError(
                f"torchvision's weights {name} are not on this machine; set checkpoints.download = true, or copy {url} "
                f"to '{path}'"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=begins, progress=False)
        except (URLError, OSError, RuntimeError) as error:
            raise MissingCheckpointError(
                f"torchvision's weights {name} cannot be fetched ({error}); try again, or copy {url} to '{path}'"
            ) from error
    if not digest(path).startswith(begins):
        raise CheckpointError(
            f"'{path}' is not whole: its sha256 does not begin with {begins}; delete it to fetch it anew"
        )
    return path


def _names() -> list[str]:
    """Return the names of all weights for classification that torchvision publishes."""
    from torchvision import models

    return [str(weights) for model in models.list_models(module=models) for weights in models.get_model_weights(model)]
