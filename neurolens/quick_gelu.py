"""Which activation a text tower has, and which its weights were trained with: QuickGELU or GELU.

Both fit the same tensors, so nothing but this check shows that one stands in the place of the other.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from neurolens.errors import ModelMismatchError, SchemaError

if TYPE_CHECKING:
    from torch import nn

OPENAI_ENTRIES = ("input_resolution", "context_length", "vocab_size")
"""What OpenAI's archives hold beside the weights, and nothing else does: they were trained with QuickGELU."""


def is_openai(names: Iterable[str]) -> bool:
    """Tell whether a state dict of these names is that of one of OpenAI's archives."""
    return not set(OPENAI_ENTRIES).isdisjoint(names)


def require_activation(model: "nn.Module", *, quick_gelu: bool) -> None:
    """Refuse weights in a text tower whose activation they were not trained with.

    Parameters
    ----------
    model
        The whole network; one without a text tower is left alone.
    quick_gelu
        Whether the weights were trained with QuickGELU.

    Raises
    ------
    SchemaError
        If it cannot be told what the text tower has.
    ModelMismatchError
        If it has the other one.
    """
    kinds = {
        type(m).__name__
        for name, m in model.named_modules()
        if type(m).__name__ in ("GELU", "QuickGELU") and not name.startswith("visual.")
    }
    if not kinds and not hasattr(model, "encode_text"):
        return
    if len(kinds) != 1:
        raise SchemaError(
            f"found activations {sorted(kinds)} in the text tower, and either GELU or QuickGELU was needed"
        )
    if (kinds == {"QuickGELU"}) != quick_gelu:
        one, other = ("QuickGELU", "GELU") if quick_gelu else ("GELU", "QuickGELU")
        mend = (
            "model.options = { quick_gelu = true }, open_clip.create_model(…, force_quick_gelu=True), or the name with "
            "-quickgelu"
            if quick_gelu
            else "without the option quick_gelu, and the name without -quickgelu"
        )
        raise ModelMismatchError(
            f"the weights were trained with {one}, and the text tower has {other}: its embeddings would be wrong, and "
            f"nothing would show it; build the network anew: {mend}"
        )
