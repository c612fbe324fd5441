"""Networks of open_clip by name, random until a checkpoint fills them: images in, embeddings out."""

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from neurolens.errors import MissingExtraError, ModelMismatchError, StudyError, nearest
from neurolens.quick_gelu import require_activation
from neurolens.study import OPEN_CLIP, CheckpointFile, Model, Preprocessing

if TYPE_CHECKING:
    from neurolens.models import Network

RESNETS = tuple(f"{OPEN_CLIP}{name}" for name in ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"))
_OPTIONS = {"quick_gelu": bool, "image_size": int}
_QUICK = "-quickgelu"


def build(table: Model) -> "Network":
    """Make a network of open_clip; its weights are drawn from torch's generator.

    The module is open_clip's own, with the names of its tensors. Its forward gives the embeddings of images, not
    normalised; ``encode_text`` takes what open_clip's tokenizer makes of texts. ``table.classes`` means nothing.

    Parameters
    ----------
    table
        Its name is ``open_clip/`` and one of open_clip's, as ``open_clip/RN50``. Options: ``quick_gelu``, which the
        published weights of ResNets need, and ``image_size``, for which the positions are then made.

    Raises
    ------
    StudyError
        If open_clip has no such network, it has a text tower of another library, or an option does not fit.
    MissingExtraError
        If open_clip is absent.
    """
    from neurolens.models import Network, resolve

    clip = library(f"model.name = {table.name!r}")
    config = _config(clip, table)

    class ImageClip(clip.CLIP):  # type: ignore[misc,name-defined]
        def forward(self, image: Tensor) -> Any:
            return self.encode_image(image)

    module: nn.Module = ImageClip(**config)
    shown = import_module("open_clip.transform").PreprocessCfg()
    size = _side(module, shown.size)
    own = Preprocessing(
        resize=size, crop=size, mean=shown.mean, std=shown.std, interpolation=_interpolation(shown.interpolation)
    )
    preprocessing = resolve(table, own, 3)
    description = {
        "name": _plain(table.name),
        "quick_gelu": bool(config.get("quick_gelu", False)),
        "image_size": size,
        "preprocessing": preprocessing.model_dump(mode="json"),
    }
    return Network(module, preprocessing, 3, preprocessing.crop, description)


def library(purpose: str) -> Any:
    """Import open_clip; MissingExtraError says what it is for."""
    try:
        return import_module("open_clip")
    except ImportError as error:
        raise MissingExtraError.of("open_clip_torch", "clip", purpose) from error


def require_fitting(table: Model, module: nn.Module, files: Iterable[CheckpointFile]) -> None:
    """Refuse weights that open_clip publishes for another network, or for another activation or preprocessing.

    Raises
    ------
    ModelMismatchError
        Naming both, and the mend.
    """
    for name in (file.weights for file in files if file.weights is not None and file.weights.startswith(OPEN_CLIP)):
        network, _, tag = name.removeprefix(OPEN_CLIP).rpartition("/")
        wanted = f"{OPEN_CLIP}{network}"
        if _plain(table.name) != _plain(wanted):
            raise ModelMismatchError(
                f"checkpoints.files has the weights {name!r}, and model.name is {table.name!r}; set it to {wanted!r}"
            )
        library(f"the weights {name!r}")
        found = import_module("open_clip.pretrained").get_pretrained_cfg(network, tag) or {}
        require_activation(module, quick_gelu=bool(found.get("quick_gelu", False)))
        usual = import_module("open_clip.transform").PreprocessCfg()
        for field in ("mean", "std", "interpolation", "resize_mode"):
            given = found.get(field, getattr(usual, field))
            if given != getattr(usual, field) and getattr(table.preprocessing, field, None) is None:
                raise ModelMismatchError(
                    f"the weights {name!r} were trained with {field} {given!r}, and {getattr(usual, field)!r} is this "
                    f"network's; set model.preprocessing, or take weights that were trained as the network's"
                )


def _config(clip: Any, table: Model) -> dict[str, Any]:
    """Return open_clip's configuration with the study's options."""
    name = table.name.removeprefix(OPEN_CLIP)
    config: dict[str, Any] | None = clip.get_model_config(name)
    if config is None:
        known = [f"{OPEN_CLIP}{one}" for one in clip.list_models()]
        raise StudyError(f"model.name {table.name!r} is unknown to open_clip; {nearest(table.name, known)}")
    other = {"custom_text", "multimodal_cfg"} & set(config) or {"hf_model_name"} & set(config["text_cfg"])
    if other:
        raise StudyError(
            f"model.name {table.name!r} has a text tower that is not CLIP's ({min(other)}); networks of CLIP's own two "
            f"towers are built here, as {RESNETS[0]!r}"
        )
    for option, value in table.options.items():
        if option not in _OPTIONS:
            raise StudyError(f"model.options has {option!r}; {nearest(option, _OPTIONS)}")
        if type(value) is not _OPTIONS[option] or (option == "image_size" and int(value) < 1):
            needed = "true or false" if option == "quick_gelu" else "a number of pixels"
            raise StudyError(f"model.options.{option} is {value!r}, and {needed} was needed")
    quick = table.options.get("quick_gelu")
    if quick is False and name.endswith(_QUICK):
        raise StudyError(f"model.name {table.name!r} has QuickGELU, and model.options.quick_gelu is false; drop one")
    config = config | ({"quick_gelu": True} if quick else {})
    vision = dict(config["vision_cfg"])
    if "image_size" in table.options:
        vision["image_size"] = table.options["image_size"]
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    return config | {"vision_cfg": vision}


def _plain(name: str) -> str:
    return name.removesuffix(_QUICK)


def _side(module: nn.Module, usual: Any) -> int:
    size = getattr(getattr(module, "visual", None), "image_size", usual)
    sides = size if isinstance(size, tuple | list) else (size,)
    if len(set(sides)) != 1:
        raise StudyError(f"the network takes images of {tuple(sides)} pixels, and a square was needed")
    return int(sides[0])


def _interpolation(name: str) -> Any:
    return name if name in ("bilinear", "bicubic") else None
