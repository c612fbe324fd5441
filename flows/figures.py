"""The key figures of a cube, as markdown for the UI."""

from collections.abc import Callable, Iterable
from functools import partial

import xarray as xr

from neurolens import detectors, dormancy_summary, rows
from neurolens.attribution.reading import accuracy, score_of, texts
from neurolens.pairs import dead_pairs
from neurolens.study import Effects, Study

LAST = 5
"""Of how many checkpoints, the last ones, figures are shown."""


def key_figures(study: Study, plan: rows.Plan, summary: str) -> str:
    """Return the key figures of a cube that was brought up to date: what it says of the last checkpoints."""
    lines = [f"# {study.name}: {plan.cube}", "", summary, "", f"store: `{study.store.url}`"]
    lines += [f"- {note}" for note in plan.notes]
    tables: dict[str, Callable[[xr.Dataset, str], list[str]]] = {
        "samples": _of_samples,
        "units": _of_units,
        "concepts": partial(_of_concepts, effects=study.effects),
        "clusters": _of_clusters,
        "attributions": _of_attributions,
        "pools": _of_pools,
        "pairs": _of_pairs,
        "codes": _of_codes,
    }
    if plan.cube not in tables or not plan.rows:  # without rows, as while they wait for another cube, there may be none
        return "\n".join(lines)
    options = {"endpoint": study.store.endpoint, "region": study.store.region}
    ds = xr.open_dataset(study.store.url, group=plan.cube, engine="neurolens", chunks={}, backend_kwargs=options)
    return "\n".join([*lines, *tables[plan.cube](ds, plan.series)])


def _of_samples(ds: xr.Dataset, series: str) -> list[str]:
    measured: list[bool] = (ds["loss_count"].sum("class") > 0).values.tolist() if "loss_count" in ds.coords else []
    if not any(measured):
        return []
    last = ds.isel({series: measured}).isel({series: slice(-LAST, None)})
    loss = last["loss_sum"].sum("class") / last["loss_count"].sum("class")
    accuracy = last["correct"].mean("sample")
    at = zip(last[series].values, loss.values, accuracy.values)
    return _table((series, "mean loss", "accuracy"), ((p, f"{x:.4f}", f"{right:.2%}") for p, x, right in at))


def _of_units(ds: xr.Dataset, series: str) -> list[str]:
    if not ds["measured"].any():
        return []
    last = ds.isel({series: ds["measured"].values}).isel({series: slice(-LAST, None)})
    names = ("redo", "dead", "lop")
    found = dormancy_summary(last, list(names), non_finite="alive")
    shares = found["pooled_fraction"].transpose(series, "definition").values
    words = ["redo ≤ 0.025", "dead", "lop < 0.01"]
    lines = ((p, *(f"{share:.2%}" for share in row)) for p, row in zip(last[series].values, shares))
    units, layers = last.sizes["unit"], found.sizes["layer"]
    return ["", f"share of {units} units in {layers} layers that are dormant", *_table((series, *words), lines)]


def _of_concepts(ds: xr.Dataset, series: str, effects: Effects | None) -> list[str]:
    if not ds["measured"].any():
        return []
    last = ds.isel({series: ds["measured"].values}).isel({series: slice(-LAST, None)})
    rule = effects or Effects()  # by which the study's pictures follow concepts too
    found = detectors(last, tau=rule.tau, reading=rule.reading).compute()
    names = [str(name) for name in found["category"].values.tolist()]
    counts = found["n_detectors"].transpose(series, "category").values
    lines = (
        (p, *row, all_, unique)
        for p, row, all_, unique in zip(
            last[series].values, counts, found["total_detectors"].values, found["total_unique"].values
        )
    )
    words = f"units, of {last.sizes['unit']}, that detect a concept: IoU of {rule.tau:g}, {rule.reading} reading"
    return ["", words, *_table((series, *names, "all", "different concepts"), lines)]


def _of_clusters(ds: xr.Dataset, series: str) -> list[str]:
    """Say how large clusters are, and how far apart, at the last checkpoint."""
    from neurolens.clusters import cluster_summary, clusters_of

    if not ds["measured"].any() or "unit_cluster" not in ds:
        return []
    last = ds.isel({series: ds["measured"].values}).isel({series: slice(-1, None)})
    if not last["unit_cluster"].notnull().all():
        return []
    found = cluster_summary(last[["rate", "mean", "variance"]], clusters_of(last)).isel({series: 0})
    header = ("layer", *(f"k = {k}" for k in found["k"].values))
    lines = []
    for layer in found["layer"].values.tolist():
        cells = []
        for k in found["k"].values.tolist():
            one = found.sel(layer=layer, k=k)
            sizes = " + ".join(f"{int(size)}" for size in one["size"].values if size == size)  # NaN: no such cluster
            cells.append(f"{sizes}; {float(one['silhouette']):.2f}")
        lines.append((layer, *cells))
    words = f"units of each cluster at {series} {last[series].item()}, and mean silhouette"
    return ["", words, *_table(header, lines)]


def _of_attributions(ds: xr.Dataset, series: str) -> list[str]:
    """Say what maps and filters are worth at the last checkpoints; accuracy is that of the network, whatever filter."""
    if not ds["measured"].any():
        return []
    last = ds.isel({series: ds["measured"].values}).isel({series: slice(-LAST, None)})
    columns: dict[str, list[str]] = {}
    if "label_rank" in last:
        for n in (1, 5):
            found = accuracy(last, top=(n,))["accuracy"].isel(top=0)
            columns[f"top-{n} accuracy"] = [f"{share:.2%}" for share in found.values]
    if {"log_prob", "masked_log_prob"} <= set(map(str, last.data_vars)) and "patch" in texts(last["level"]):
        drop = score_of(last, "drop").mean("sample")
        kinds = {"all units": ("whole",), "without a cluster": ("without", "union"), "a cluster alone": ("only",)}
        for words, some in kinds.items():
            places = [i for i, kind in enumerate(texts(last["kind"])) if kind in some]
            mean = drop.isel(map=places).mean("map").transpose("attribution", series)
            for method, values in zip(texts(last["attribution"]), mean.values if places else ()):
                columns[f"{words}, {method}"] = [f"{value:.4f}" for value in values]
    if not columns:
        return []
    words = (
        f"mean drop of the probability without the top patches, through sets of units, {last.sizes['sample']} images"
    )
    lines = ((p, *row) for p, row in zip(last[series].values, zip(*columns.values())))
    return ["", words, *_table((series, *columns), lines)]


def _of_pools(ds: xr.Dataset, series: str) -> list[str]:
    """Say whether pairs add up to the embeddings, and how many say nothing, at the last checkpoints."""
    if not ds["measured"].any() or "std" not in ds:
        return []
    last = ds.isel({series: ds["measured"].values}).isel({series: slice(-LAST, None)})
    lines = []
    for place in range(last.sizes[series]):
        one = last.isel({series: place}).compute()
        residual = f"{float(one['worst_residual'].max()):.1e}"
        lines.append((one[series].item(), f"{int(one['count'].max()):,}", residual, int(dead_pairs(one, one).sum())))
    words = f"{last.sizes['unit']:,} units through {last.sizes['head']:,} heads"
    return ["", words, *_table((series, "images", "largest residual", "dead pairs"), lines)]


def _of_pairs(ds: xr.Dataset, series: str) -> list[str]:
    """Say whether pairs add up to the embeddings, at the last checkpoints."""
    if not ds["measured"].any():
        return []
    last = ds.isel({series: ds["measured"].values}).isel({series: slice(-LAST, None)})
    worst = last["completeness"].max("sample").values
    lines = ((p, f"{residual:.1e}") for p, residual in zip(last[series].values, worst))
    words = f"{last.sizes['unit']:,} units through {last.sizes['head']:,} heads at {last.sizes['sample']:,} images"
    return ["", words, *_table((series, "largest residual"), lines)]


def _of_codes(ds: xr.Dataset, series: str) -> list[str]:
    """Say how much of a direction its phrases leave, at the last checkpoints."""
    if not ds["measured"].any() or "residual" not in ds:
        return []
    last = ds.isel({series: ds["measured"].values}).isel({series: slice(-LAST, None)})
    left = last["residual"].min("atom").compute()
    told, median = left.notnull().sum("pair"), left.median("pair")
    lines = ((p, int(n), f"{m:.3f}") for p, n, m in zip(last[series].values, told.values, median.values))
    words = (
        f"pairs, of {ds.sizes['pair']}, that are told in words, and what up to {ds.sizes['atom']} words leave of each"
    )
    return ["", words, *_table((series, "pairs", "left (median)"), lines)]


def _table(header: tuple[str, ...], lines: Iterable[tuple[object, ...]]) -> list[str]:
    cells = [header, ("---",) * len(header), *lines]
    return ["", *("| " + " | ".join(map(str, line)) + " |" for line in cells)]
