"""What the clusters of units are called, and what they are made from."""

from neurolens.schema.records import SERIES, Variable

_UNIT = (SERIES, "unit")
_CLUSTERING = (SERIES, "k", "layer")
_CLUSTER = (*_CLUSTERING, "cluster")

CLUSTER_RESULTS: dict[str, Variable] = {
    v.name: v
    for v in (
        Variable("rate", _UNIT, "float64", "1", "share of the observations that are above the threshold"),
        Variable("mean", _UNIT, "float64", "activation", "mean activation"),
        Variable("variance", _UNIT, "float64", "activation2", "variance of the activation, over all observations"),
        Variable("standardised", (*_UNIT, "feature"), "float64", "1", "distance from the layer's mean, in its spreads"),
        Variable("unit_cluster", (SERIES, "k", "unit"), "int64", "1", "cluster of the unit, among those of its layer"),
        Variable("size", _CLUSTER, "float64", "1", "units of the cluster; NaN beyond the k clusters"),
        Variable("centroid", (*_CLUSTER, "feature"), "float64", "", "mean of the features over the cluster's units"),
        Variable("spread", (SERIES, "layer", "feature"), "float64", "", "standard deviation over the layer's units"),
        Variable("inertia", _CLUSTERING, "float64", "1", "squared distances to the means of the clusters, added up"),
        Variable(
            "silhouette",
            _CLUSTERING,
            "float64",
            "1",
            "mean over units of (b - a) / max(a, b): distances to the next cluster, and in the own",
            "Rousseeuw 1987",
        ),
        Variable("ari", (*_CLUSTERING, "start"), "float64", "1", "adjusted Rand index", "Hubert and Arabie 1985"),
        Variable("embedding", (*_UNIT, "coordinate"), "float64", "1", "place of the unit among units like it"),
        Variable("stability", _CLUSTERING, "float64", "1", "mean adjusted Rand index with clusters of other seeds"),
    )
}
