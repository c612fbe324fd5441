"""What each unit says through each head of an attention pool: a scalar per image times a fixed vector.

Names are loaded when they are first used: reductions need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neurolens.pairs.ablation import ablate, ablation_curve, curve_difference, percentile_mask, zero_shot
    from neurolens.pairs.adapters import check_activation, open_clip_pool, pool_of, state_pool, timm_pool
    from neurolens.pairs.associations import association, association_by_group
    from neurolens.pairs.choosing import class_pairs
    from neurolens.pairs.components import head_components, unit_components
    from neurolens.pairs.describing import describe_unit
    from neurolens.pairs.exported import export_pairs
    from neurolens.pairs.folding import fold_mask, pool_state
    from neurolens.pairs.following import direction_change, text_history
    from neurolens.pairs.heads import head_contributions
    from neurolens.pairs.measure import scalars
    from neurolens.pairs.metrics import confusion, segmentation_scores
    from neurolens.pairs.norms import dead_pairs, directions, majority, pair_means, pair_norms
    from neurolens.pairs.opened import at, codes_at, phrase_set
    from neurolens.pairs.patch_logits import head_similarity, pair_logits, value_logits
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
    from neurolens.pairs.pool import Pool, image_embeddings, resampled
    from neurolens.pairs.ranks import rank_curve
    from neurolens.pairs.reconstruction import reconstruct
    from neurolens.pairs.retrieval import inertia, retrieve, sinks, top_images, without_sink
    from neurolens.pairs.segmentation import segment
    from neurolens.pairs.shift import phrase_share
    from neurolens.pairs.strength import strengths, unit_gram, unit_norms
    from neurolens.pairs.text import heat_maps, logit_attribution, text_scores, top_pairs, top_phrases
    from neurolens.pairs.text_encoders import encoder_of
    from neurolens.pairs.text_files import write_text_files
    from neurolens.pairs.totals import ScalarTotals
    from neurolens.pairs.trunks import Trunk, segmenter, trunk_of
    from neurolens.pairs.writing import along, factors, pair_vectors, vector_norms

_HOMES = {
    "PASCAL_CONTEXT": "phrases",
    "Pool": "pool",
    "ScalarTotals": "totals",
    "Trunk": "trunks",
    "ablate": "ablation",
    "ablation_curve": "ablation",
    "along": "writing",
    "association": "associations",
    "association_by_group": "associations",
    "at": "opened",
    "check_activation": "adapters",
    "class_pairs": "choosing",
    "codes_at": "opened",
    "confusion": "metrics",
    "curve_difference": "ablation",
    "dead_pairs": "norms",
    "describe_unit": "describing",
    "direction_change": "following",
    "directions": "norms",
    "embed_phrases": "phrases",
    "encoder_of": "text_encoders",
    "export_pairs": "exported",
    "factors": "writing",
    "fold_mask": "folding",
    "head_components": "components",
    "head_contributions": "heads",
    "head_similarity": "patch_logits",
    "heat_maps": "text",
    "image_embeddings": "pool",
    "imagenet_classes": "phrases",
    "inertia": "retrieval",
    "logit_attribution": "text",
    "majority": "norms",
    "open_clip_pool": "adapters",
    "openai_templates": "phrases",
    "pair_logits": "patch_logits",
    "pair_means": "norms",
    "pair_norms": "norms",
    "pair_vectors": "writing",
    "percentile_mask": "ablation",
    "phrase_set": "opened",
    "phrase_share": "shift",
    "pool_of": "adapters",
    "pool_state": "folding",
    "rank_curve": "ranks",
    "read_embeddings": "phrases",
    "read_phrases": "phrases",
    "read_templates": "phrases",
    "reconstruct": "reconstruction",
    "resampled": "pool",
    "retrieve": "retrieval",
    "scalars": "measure",
    "segment": "segmentation",
    "segmentation_scores": "metrics",
    "segmenter": "trunks",
    "sinks": "retrieval",
    "state_pool": "adapters",
    "strengths": "strength",
    "text_history": "following",
    "text_scores": "text",
    "timm_pool": "adapters",
    "top_images": "retrieval",
    "top_pairs": "text",
    "top_phrases": "text",
    "trunk_of": "trunks",
    "unit_components": "components",
    "unit_gram": "strength",
    "unit_norms": "strength",
    "value_logits": "patch_logits",
    "vector_norms": "writing",
    "without_sink": "retrieval",
    "write_embeddings": "phrases",
    "write_text_files": "text_files",
    "zero_shot": "ablation",
}

__all__ = [
    "PASCAL_CONTEXT",
    "Pool",
    "ScalarTotals",
    "Trunk",
    "ablate",
    "ablation_curve",
    "along",
    "association",
    "association_by_group",
    "at",
    "check_activation",
    "class_pairs",
    "codes_at",
    "confusion",
    "curve_difference",
    "dead_pairs",
    "describe_unit",
    "direction_change",
    "directions",
    "embed_phrases",
    "encoder_of",
    "export_pairs",
    "factors",
    "fold_mask",
    "head_components",
    "head_contributions",
    "head_similarity",
    "heat_maps",
    "image_embeddings",
    "imagenet_classes",
    "inertia",
    "logit_attribution",
    "majority",
    "open_clip_pool",
    "openai_templates",
    "pair_logits",
    "pair_means",
    "pair_norms",
    "pair_vectors",
    "percentile_mask",
    "phrase_set",
    "phrase_share",
    "pool_of",
    "pool_state",
    "rank_curve",
    "read_embeddings",
    "read_phrases",
    "read_templates",
    "reconstruct",
    "resampled",
    "retrieve",
    "scalars",
    "segment",
    "segmentation_scores",
    "segmenter",
    "sinks",
    "state_pool",
    "strengths",
    "text_history",
    "text_scores",
    "timm_pool",
    "top_images",
    "top_pairs",
    "top_phrases",
    "trunk_of",
    "unit_components",
    "unit_gram",
    "unit_norms",
    "value_logits",
    "vector_norms",
    "without_sink",
    "write_embeddings",
    "write_text_files",
    "zero_shot",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
