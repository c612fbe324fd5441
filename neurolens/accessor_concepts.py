"""The methods of ``ds.lens`` that concern concepts: dissection, lives of concepts, and what becomes of their units."""

from typing import TYPE_CHECKING, Any, Literal

import xarray as xr

from neurolens.errors import SchemaError

if TYPE_CHECKING:
    import pandas as pd

    from neurolens.dissection.overlap import Reading
    from neurolens.mortality.inputs import By


class ConceptMethods:
    """Methods of the opened cubes `concepts`, `tallies` and `effects`.

    Where IoU is followed, ``reading`` is that of `neurolens.iou`; adopted tallies have one of their own. All other
    options are those of the function of the same name.
    """

    _data: xr.Dataset

    def iou(self, **options: Any) -> xr.DataArray:
        """Intersection over union of units and concepts: `neurolens.iou`."""
        from neurolens.dissection import iou

        return iou(self._data, **options)

    def iou_interval(self, **options: Any) -> xr.Dataset:
        """How sure each IoU is, over resampled images: `neurolens.dissection.iou_interval`."""
        from neurolens.dissection import iou_interval

        return iou_interval(self._data, **options)

    def best_concept(self, **options: Any) -> xr.Dataset:
        """The concept that each unit coincides with best: `neurolens.best_concept`."""
        from neurolens.dissection import best_concept

        return best_concept(self._data, **options)

    def detectors(self, **options: Any) -> xr.Dataset:
        """How many units detect how many concepts, by category: `neurolens.detectors`."""
        from neurolens.dissection import detectors

        return detectors(self._data, **options)

    def rotation_null(self, **options: Any) -> xr.Dataset:
        """Detectors against those of the same layers turned at random: `neurolens.dissection.rotation_null`."""
        from neurolens.dissection import rotation_null

        return rotation_null(self._data, **options)

    def concept_events(self, *, reading: "Reading" = "paper", **options: Any) -> "pd.DataFrame":
        """The table of the lives of concepts: `neurolens.concept_events` of their IoU."""
        from neurolens.mortality import concept_events

        return concept_events(self._followed(reading), **options)

    def concept_lives(self, *, reading: "Reading" = "paper", **options: Any) -> xr.Dataset:
        """Where concepts are alive, born and dead: `neurolens.concept_lives` of their IoU."""
        from neurolens.mortality import concept_lives

        return concept_lives(self._followed(reading), **options)

    def event_probability(
        self, *, n_draws: int = 100, seed: int = 0, reading: "Reading" = "paper", **options: Any
    ) -> "pd.DataFrame":
        """In how many resamples of the images each event happens: `neurolens.mortality.event_probability`.

        The draws are made here: ``n_draws`` times, blocks of images are drawn with replacement, from ``seed``.

        Raises
        ------
        SchemaError
            If the cube holds no blocks of images, as adopted tallies do not.
        """
        from neurolens.mortality import event_probability

        draws = self._image_draws(n_draws, seed, reading)
        return event_probability(self.iou(reading=reading), draws, n_draws=n_draws, **options)

    def tau_sensitivity(self, *, reading: "Reading" = "paper", **options: Any) -> xr.Dataset:
        """How many events there are under several thresholds: `neurolens.mortality.tau_sensitivity`."""
        from neurolens.mortality import tau_sensitivity

        return tau_sensitivity(self._followed(reading), **options)

    def migrations(self, *, reading: "Reading" = "paper", **options: Any) -> "pd.DataFrame":
        """Whether a concept that died in one unit lives on in others: `neurolens.migrations`."""
        from neurolens.mortality import migrations

        return migrations(self._followed(reading), **options)

    def survival(
        self,
        *,
        by: str | None = None,
        confidence: float = 0.95,
        method: Literal["log-log", "linear"] = "log-log",
        lives: Literal["all", "first"] = "all",
        unseen_births: Literal["include", "drop"] = "include",
        reading: "Reading" = "paper",
        follow: "By | None" = None,
        **options: Any,
    ) -> xr.Dataset:
        """How long concepts live: `neurolens.survival` of :meth:`concept_events`.

        ``by`` groups lives, as it does there; ``follow`` is what `neurolens.concept_events` calls ``by``, and the
        other options are its own.
        """
        from neurolens.mortality import survival

        events = self.concept_events(reading=reading, by=follow, **options)
        return survival(events, by=by, confidence=confidence, method=method, lives=lives, unseen_births=unseen_births)

    def churn(self, *, reading: "Reading" = "paper", **options: Any) -> xr.Dataset:
        """Who reaches the threshold before and after each transition: `neurolens.churn`."""
        from neurolens.mortality import churn

        return churn(self._followed(reading), **options)

    def label_drift(self, *, reading: "Reading" = "paper", **options: Any) -> xr.Dataset:
        """Units that stay detectors, but of another concept: `neurolens.label_drift`."""
        from neurolens.mortality import label_drift

        return label_drift(self._followed(reading), **options)

    def diversity(self, *, reading: "Reading" = "paper", **options: Any) -> xr.Dataset:
        """How many units detect how many concepts, and how evenly: `neurolens.diversity`."""
        from neurolens.mortality import diversity

        return diversity(self._followed(reading), **options)

    def extinctions(self, *, reading: "Reading" = "paper", **options: Any) -> "pd.DataFrame":
        """The lives of concepts in the network as a whole: `neurolens.extinctions`."""
        from neurolens.mortality import extinctions

        return extinctions(self._followed(reading), **options)

    def functional_death(self, events: "pd.DataFrame", **options: Any) -> "pd.DataFrame":
        """Whether units whose concepts died lost their use too: `neurolens.functional_death` of the effects cube."""
        from neurolens.mortality import functional_death

        return functional_death(self._data, events, **options)

    def _followed(self, reading: "Reading") -> xr.DataArray | xr.Dataset:
        """Return what is followed: the IoU of the counts, or scores as they are."""
        from neurolens.dissection import iou

        return iou(self._data, reading=reading) if "intersection" in self._data else self._data

    def _image_draws(self, n: int, seed: int, reading: "Reading") -> Any:
        """Return what gives the IoU of a resample by its number."""
        from neurolens.dissection import image_draws

        if "intersection" not in self._data:
            raise SchemaError(
                f"there are no counts of blocks of images among {sorted(map(str, self._data.data_vars))}, so that "
                "images cannot be drawn again; take the concepts cube of a run"
            )
        return image_draws(self._data, n=n, seed=seed, reading=reading)
