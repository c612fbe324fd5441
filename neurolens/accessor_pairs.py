"""The methods of ``ds.lens`` that concern pairs of units and heads: of one checkpoint, as `pairs.at` gives it."""

from typing import Any, Literal

import numpy as np
import xarray as xr

from neurolens import schema
from neurolens.errors import SchemaError, nearest


class PairMethods:
    """Methods of one checkpoint, ``neurolens.pairs.at(run)``; `direction_change` is of the opened cube `pools`.

    Options are those of the function of the same name in `neurolens.pairs`; scalars, factors and embeddings are the
    Dataset's, or its totals where it has no scalars and these suffice. ``texts`` are the name of a set of phrases of
    the store, a list of its phrases, or embeddings (…, feature); absent: all phrases of the store.
    """

    _data: xr.Dataset

    def directions(self, **options: Any) -> xr.Dataset:
        """The direction that each pair writes in: `neurolens.pairs.directions`."""
        from neurolens.pairs import directions

        return directions(self._pairs(), **options)

    def pair_norms(self, **options: Any) -> xr.DataArray:
        """The largest centred contributions of each pair: `neurolens.pairs.pair_norms`."""
        from neurolens.pairs import pair_norms

        return pair_norms(self._pairs(), self._data, **options)

    def unit_norms(self, **options: Any) -> xr.DataArray:
        """The largest centred contributions of each unit: `neurolens.pairs.unit_norms`."""
        from neurolens.pairs import unit_norms

        return unit_norms(self._pairs(), self._data, **options)

    def pair_means(self) -> xr.DataArray:
        """The mean contribution of each pair: `neurolens.pairs.pair_means`."""
        from neurolens.pairs import pair_means

        return pair_means(self._pairs(), self._data)

    def dead_pairs(self) -> xr.DataArray:
        """The pairs that say nothing of any image: `neurolens.pairs.dead_pairs`."""
        from neurolens.pairs import dead_pairs

        return dead_pairs(self._pairs(), self._data)

    def strengths(self, **options: Any) -> xr.DataArray:
        """How strong each pair or unit is at each image: `neurolens.pairs.strengths`."""
        from neurolens.pairs import strengths

        return strengths(self._pairs(), self._data, **options)

    def unit_components(self, **options: Any) -> xr.Dataset:
        """Principal components of each unit through all heads: `neurolens.pairs.unit_components`."""
        from neurolens.pairs import unit_components

        return unit_components(self._pairs(), self._data, **options)

    def head_components(self, **options: Any) -> xr.Dataset:
        """Principal components of each head over all units: `neurolens.pairs.head_components`."""
        from neurolens.pairs import head_components

        return head_components(self._pairs(), self._data, **options)

    def reconstruct(
        self,
        directions: xr.DataArray | None = None,
        *,
        rank: int | None = None,
        codes: xr.Dataset | None = None,
        **options: Any,
    ) -> xr.DataArray:
        """Embeddings from a few directions: `neurolens.pairs.reconstruct`.

        From ``directions``; from the first ``rank`` components of each unit; or from ``codes``, as
        `neurolens.pairs.codes_at` returns them: the direction of a pair is then the sum of its phrases.
        """
        from neurolens.pairs import reconstruct, unit_components
        from neurolens.sparse_codes import reconstruct as decoded

        if sum(given is not None for given in (directions, rank, codes)) != 1:
            raise SchemaError("reconstruct() takes one of directions, rank and codes; give exactly one, e.g. rank=2")
        if rank is not None:
            directions = unit_components(self._pairs(), self._data, k=rank)["direction"]
        elif codes is not None:
            directions = decoded(codes, self._coded_in(codes))
        assert directions is not None
        return reconstruct(self._pairs(), self._data, directions, **options)

    def zero_shot(
        self, texts: Any = "classes", *, embedding: xr.DataArray | None = None, labels: Any = None, **options: Any
    ) -> xr.Dataset:
        """Classify images by the nearest phrase: `neurolens.pairs.zero_shot`.

        Of the stored embeddings, unless others are given, as `ablate` and `reconstruct` return them. Labels are those
        of the images, which count along the classes of the data.
        """
        from neurolens.pairs import zero_shot

        if embedding is None:
            schema.present(self._data, "embedding")
            embedding = self._data["embedding"]
        vectors = self._texts(texts)
        return zero_shot(embedding, vectors, self._labels(vectors, labels), **options)

    def ablate(self, mask: xr.DataArray | None = None, *, percentile: float = 90, top: int = 50) -> xr.DataArray:
        """Embeddings with all but the kept pairs at their mean: `neurolens.pairs.ablate`.

        Without a mask, the pairs whose mean of the ``top`` largest contributions is at or above the percentile are
        kept.
        """
        from neurolens.pairs import ablate, percentile_mask

        keep = percentile_mask(self.pair_norms(top=top), percentile) if mask is None else mask
        return ablate(self._pairs(), self._data, keep)

    def ablation_curve(
        self,
        texts: Any = "classes",
        *,
        level: Literal["pair", "unit"] = "pair",
        score: xr.DataArray | None = None,
        top: int = 50,
        labels: Any = None,
        **options: Any,
    ) -> xr.Dataset:
        """Accuracy by the share of pairs, or units, that vary: `neurolens.pairs.ablation_curve`.

        Scored by their norms, unless a score is given.
        """
        from neurolens.pairs import ablation_curve

        if level not in ("pair", "unit"):
            raise SchemaError(f"level={level!r} is unknown; {nearest(str(level), ('pair', 'unit'))}")
        cube, vectors = self._scalar(), self._texts(texts)
        if score is None:
            score = self.pair_norms(top=top) if level == "pair" else self.unit_norms(top=top)
        given = self._labels(vectors, labels)
        return ablation_curve(cube, self._data, vectors, given, score=score, **options)

    def rank_curve(self, texts: Any = "classes", *, labels: Any = None, **options: Any) -> xr.Dataset:
        """Accuracy by the number of components of each unit: `neurolens.pairs.rank_curve`."""
        from neurolens.pairs import rank_curve

        cube, vectors = self._scalar(), self._texts(texts)
        return rank_curve(cube, self._data, vectors, self._labels(vectors, labels), **options)

    def head_contributions(self) -> xr.DataArray:
        """What each head writes at each image: `neurolens.pairs.head_contributions`."""
        from neurolens.pairs import head_contributions

        return head_contributions(self._pairs(), self._data)

    def describe_unit(self, unit: Any, texts: Any = None, **options: Any) -> xr.Dataset:
        """A unit with its loudest heads, their phrases and images: `neurolens.pairs.describe_unit`."""
        from neurolens.pairs import describe_unit

        vectors = None if texts is None and "text" not in self._data else self._texts(texts)
        return describe_unit(self._scalar(), self._data, unit, texts=vectors, **options)

    def text_scores(self, texts: Any = None, **options: Any) -> xr.DataArray:
        """How near each pair is to each phrase: `neurolens.pairs.text_scores`."""
        from neurolens.pairs import text_scores

        return text_scores(self._pairs(), self._texts(texts), **options)

    def top_pairs(self, texts: Any = None, *, k: int = 10, **options: Any) -> xr.Dataset:
        """The pairs nearest to each phrase: `neurolens.pairs.top_pairs` of :meth:`text_scores`."""
        from neurolens.pairs import top_pairs

        return top_pairs(self.text_scores(texts, **options), k=k)

    def top_phrases(self, unit: Any, head: Any, texts: Any = None, *, k: int = 10, **options: Any) -> xr.Dataset:
        """The phrases nearest to a pair, or a few: `neurolens.pairs.top_phrases` of :meth:`text_scores`."""
        from neurolens.pairs import text_scores, top_phrases

        few = self._pairs()[["value", "output", "constant"]]
        wanted = {"unit": np.atleast_1d(np.asarray(unit)), "head": np.atleast_1d(np.asarray(head))}
        for dim, labels in wanted.items():
            known = few[dim].to_numpy().tolist()
            for label in labels.tolist():
                if label not in known:
                    raise SchemaError(f"there is no {dim} {label} among {len(known)}, from {known[0]} to {known[-1]}")
        few = few.sel(wanted)
        return top_phrases(text_scores(few, self._texts(texts), **options), k=k)

    def logit_attribution(self, texts: Any = None, **options: Any) -> xr.Dataset:
        """What each pair adds to the logits of the images: `neurolens.pairs.logit_attribution`."""
        from neurolens.pairs import logit_attribution

        return logit_attribution(self._pairs(), self._data, self._texts(texts), **options)

    def heat_maps(self, maps: Any, texts: Any = None, **options: Any) -> xr.Dataset:
        """What each patch adds to the dot product of image and phrase: `neurolens.pairs.heat_maps`.

        ``maps`` are of these images, in their order; or name theirs along ``sample``, as ``trunk.maps_of`` does.
        """
        from neurolens.pairs import heat_maps

        measured = self._pairs()
        if isinstance(maps, xr.DataArray) and "sample" in maps.indexes and "sample" in measured.indexes:
            at = measured.indexes["sample"].get_indexer(maps.indexes["sample"])
            if (at < 0).any():
                lost = maps.indexes["sample"][int(np.flatnonzero(at < 0)[0])]
                raise SchemaError(f"image {str(lost)!r} of the maps was not measured; give maps of images that were")
            measured = measured.isel(sample=at)
        return heat_maps(maps, measured, measured, self._texts(texts), **options)

    def retrieve(self, *, text: Any = None, **options: Any) -> xr.Dataset:
        """The images of a unit, a pair or a phrase of the store: `neurolens.pairs.retrieve`."""
        from neurolens.pairs import retrieve

        if isinstance(text, str):
            text = self._texts([text]).isel(phrase=0, drop=True)
        return retrieve(self._pairs(), self._data, text=text, **options)

    def top_images(self, *, k: int = 10, **options: Any) -> xr.Dataset:
        """The images at which each pair or unit is strongest: `neurolens.pairs.top_images` of :meth:`strengths`.

        Of totals, without options, those of each pair by signed strength.
        """
        from neurolens.pairs import top_images

        if "scalar" not in self._pairs() and "top" in self._data and not options:
            return top_images(self._data, k=k, factors=self._data)
        return top_images(self.strengths(**options), k=k)

    def inertia(
        self, *, top: int = 10, level: Literal["pair", "unit"] = "unit", kind: str = "norm", bias: bool = True
    ) -> xr.DataArray:
        """How far apart a unit's images are: `neurolens.pairs.inertia`, by default of the reference's strengths."""
        from neurolens.pairs import inertia

        schema.present(self._data, "embedding")
        return inertia(self.strengths(level=level, kind=kind, bias=bias), self._data["embedding"], top=top)

    def sinks(self, **options: Any) -> xr.Dataset:
        """Tokens that heads attend to whatever the image shows: `neurolens.pairs.sinks`."""
        from neurolens.pairs import sinks

        schema.present(self._data, "attention")
        return sinks(self._data["attention"], **options)

    def phrase_share(self, texts: Any = None, **options: Any) -> xr.DataArray:
        """The share of each image's norm in the pairs of a phrase: `neurolens.pairs.phrase_share`."""
        from neurolens.pairs import phrase_share

        if "embedding" in self._data:
            options.setdefault("embedding", self._data["embedding"])
        vectors = None if options.get("pairs") is not None else self._texts(texts)
        return phrase_share(self._pairs(), self._data, vectors, **options)

    def direction_change(self, **options: Any) -> xr.Dataset:
        """How the pairs of a pools cube turn and grow: `neurolens.pairs.direction_change`."""
        from neurolens.pairs import direction_change

        return direction_change(self._data, **options)

    def text_history(self, **options: Any) -> xr.Dataset:
        """How near pairs are to phrases through training: `neurolens.pairs.text_history`."""
        from neurolens.pairs import text_history

        return text_history(self._data, **options)

    def _pairs(self) -> xr.Dataset:
        """Return the Dataset, or say how to come by one checkpoint with factors."""
        series = [dim for dim in schema.SERIES_DIMS if dim in self._data.dims]
        if series or "value" not in self._data:
            found = f"checkpoints along {series[0]!r}" if series else "no factors of a pool"
            raise SchemaError(f"found {found}, and one checkpoint with them was needed: neurolens.pairs.at(run)")
        return self._data

    def _scalar(self) -> xr.DataArray:
        """Return the scalars, or say that totals are no scalars."""
        data = self._pairs()
        schema.present(data, "scalar")
        return data["scalar"]

    def _texts(self, texts: Any) -> xr.DataArray:
        """Return embeddings: given, of a set, of some phrases, or all."""
        from neurolens.pairs import phrase_set

        if texts is None or isinstance(texts, str):
            schema.present(self._data, "text")
            return self._data["text"] if texts is None else phrase_set(self._data, texts)
        if isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts):
            schema.present(self._data, "text")
            words = [str(word) for word in self._data["words"].to_numpy().tolist()]
            for text in texts:
                if text not in words:
                    raise SchemaError(f"there is no phrase {text!r} in the store; {nearest(text, set(words))}")
            found = self._data["text"].isel(phrase=[words.index(text) for text in texts])
            names = np.array(list(texts), dtype=np.dtypes.StringDType())
            return found.drop_vars(["set", "words"]).assign_coords(phrase=names)
        return texts if isinstance(texts, xr.DataArray) else xr.DataArray(np.asarray(texts), dims=("phrase", "feature"))

    def _coded_in(self, codes: xr.Dataset) -> xr.DataArray:
        """Return the set of phrases that codes are of."""
        from neurolens.pairs import phrase_set

        schema.present(self._data, "text")
        if not isinstance(codes, xr.Dataset) or "phrase" not in codes.coords:
            raise SchemaError("found no codes with their phrases, and those of neurolens.pairs.codes_at were needed")
        named = codes["phrase"].to_numpy().tolist()
        for name in dict.fromkeys(map(str, self._data["set"].to_numpy().tolist())):
            found = phrase_set(self._data, name)
            if found["phrase"].to_numpy().tolist() == named:
                return found
        raise SchemaError("the store has no set of the phrases that the codes are of; open both of the same run")

    def _labels(self, vectors: xr.DataArray, labels: Any) -> Any:
        """Return the row of the vectors that is right for each image."""
        if labels is not None:
            return labels
        if "label" not in self._data.coords:
            raise SchemaError("the images have no label; pass labels=, the row of the texts that is right for each")
        if "class" in self._data.coords:
            classes = [str(name) for name in self._data["class"].to_numpy().tolist()]
            named = "phrase" in vectors.coords and vectors["phrase"].dtype.kind in "TUO"
            names = [str(name) for name in vectors["phrase"].to_numpy().tolist()] if named else classes
            if vectors.sizes.get("phrase") != len(classes) or (set(names) == set(classes) and names != classes):
                raise SchemaError(
                    f"labels count {len(classes)} classes, {', '.join(classes[:3])} …, and the texts are {len(names)}, "
                    f"{', '.join(names[:3])} …; give texts of these classes in their order, or pass labels="
                )
        return self._data["label"].to_numpy()
