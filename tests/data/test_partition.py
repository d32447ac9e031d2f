"""Drawn partitions, over many seeds: disjoint, complete where promised, repeatable, with the shares it promises."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_sfl.core.errors import ConfigError, DataError
from lightning_sfl.core.randomness import stream
from lightning_sfl.data.partition import IID, Dirichlet, Partition, QuantitySkew, Shards, proportional
from lightning_sfl.data.partition_classes import MainClass, Pathological, ShardDirichlet

SEEDS = range(25)
COMPLETE = [
    IID(),
    QuantitySkew(alpha=0.2),
    Dirichlet(alpha=0.3),
    Dirichlet(alpha=0.01, min_size=0),
    Dirichlet(alpha=50.0, min_size=10),
    Shards(per_client=2),
    Pathological(classes_per_client=3),
]
PARTIAL = [ShardDirichlet(min_size=3), ShardDirichlet(alpha=0.05, labels_per_client=1, min_size=0), MainClass(q=0.7)]


def unbalanced_labels(seed: int, rows: int = 900, classes: int = 7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.choice(classes, size=rows, p=rng.dirichlet(np.full(classes, 5.0)))


def counts(labels: np.ndarray, parts: list[np.ndarray], classes: int) -> np.ndarray:
    return np.stack([np.bincount(labels[rows], minlength=classes) for rows in parts])


@pytest.mark.parametrize("rule", COMPLETE + PARTIAL, ids=lambda rule: f"{type(rule).__name__}-{vars(rule)}")
def test_parts_are_disjoint_complete_where_promised_and_repeatable(rule: Partition) -> None:
    allows_empty = isinstance(rule, Dirichlet) and rule.min_size == 0
    distinct = set()
    for seed in SEEDS:
        labels = unbalanced_labels(seed)
        parts = rule.split(labels, 12, stream(seed, "partition"))
        again = rule.split(labels, 12, stream(seed, "partition"))
        joined = np.concatenate(parts)
        assert len(parts) == 12
        assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
        assert len(np.unique(joined)) == len(joined)
        assert joined.min() >= 0
        assert joined.max() < len(labels)
        assert allows_empty or min(len(part) for part in parts) > 0
        assert rule not in COMPLETE or len(joined) == len(labels)
        assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
        other = rule.split(np.arange(900) % 7, 12, stream(seed, "partition"))
        distinct.add(b"|".join(part.tobytes() for part in other))
    assert len(distinct) == len(SEEDS)


def test_proportional_sums_and_stays_within_one() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        shares, total = rng.dirichlet(np.full(9, 0.2)), int(rng.integers(0, 500))
        sizes = proportional(total, shares)
        assert sizes.sum() == total
        assert sizes.min() >= 0
        assert np.abs(sizes - shares * total).max() < 1 + 1e-9


def test_iid_sizes_differ_by_at_most_one() -> None:
    sizes = [len(part) for part in IID().split(np.zeros(103, int), 10, stream(0, "p"))]
    assert sorted(sizes) == [10] * 7 + [11] * 3


def test_iid_of_a_given_size_leaves_the_rest() -> None:
    parts = IID(size=7).split(np.zeros(103, int), 10, stream(0, "p"))
    assert [len(part) for part in parts] == [7] * 10
    assert len(np.unique(np.concatenate(parts))) == 70
    with pytest.raises(ConfigError, match=r"size=11 is not allowed: at most 10: 103 rows for 10 clients"):
        IID(size=11).split(np.zeros(103, int), 10, stream(0, "p"))
    with pytest.raises(ConfigError, match="size=0 is not allowed"):
        IID(size=0)


def test_dirichlet_shares_have_the_variance_of_the_law() -> None:
    """Var of one share under a symmetric Dirichlet: (1/n)(1 - 1/n)/(n alpha + 1)."""
    n, classes, each = 10, 10, 1000
    labels = np.repeat(np.arange(classes), each)
    for alpha in (0.1, 0.5, 5.0):
        tables = [
            counts(labels, Dirichlet(alpha, min_size=0).split(labels, n, stream(s, "p")), classes) for s in range(30)
        ]
        expected = (1 / n) * (1 - 1 / n) / (n * alpha + 1)
        assert np.var(np.concatenate(tables) / each) == pytest.approx(expected, rel=0.12)


def test_dirichlet_honours_min_size_and_says_when_it_cannot() -> None:
    labels = unbalanced_labels(0)
    for seed in SEEDS:
        assert min(len(p) for p in Dirichlet(0.5, min_size=15).split(labels, 12, stream(seed, "p"))) >= 15
    with pytest.raises(DataError, match=r"min_size=70 rows.*lower min_size"):
        Dirichlet(0.05, min_size=70, max_tries=20).split(labels, 12, stream(0, "p"))
    with pytest.raises(ConfigError, match="min_size=80 is not allowed"):
        Dirichlet(0.5, min_size=80).split(labels, 12, stream(0, "p"))


def test_shards_are_the_mcmahan_split() -> None:
    """60,000 balanced rows, 100 clients: shards of 300 never straddle a class, so at most two classes a client."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 6000))
    table = counts(labels, Shards(2).split(labels, 100, stream(3, "p")), 10)
    assert (table.sum(axis=1) == 600).all()
    assert set(np.unique(table)) == {0, 300, 600}
    assert (table > 0).sum(axis=1).max() == 2


def test_pathological_gives_exactly_k_classes_and_spreads_them() -> None:
    labels = np.repeat(np.arange(10), 60)
    pairs = set()
    for seed in SEEDS:
        table = counts(labels, Pathological(2).split(labels, 13, stream(seed, "p")), 10)
        held = table > 0
        assert (held.sum(axis=1) == 2).all()
        assert set(held.sum(axis=0)) <= {2, 3}
        assert all(np.ptp(column[column > 0]) <= 1 for column in table.T)
        pairs |= {tuple(np.flatnonzero(row)) for row in held}
    assert len(pairs) > 40


def test_shard_dirichlet_deals_each_class_equally_often_and_labels_per_client_each() -> None:
    rule = ShardDirichlet(labels_per_client=2)
    for seed in SEEDS:
        held = rule._deal(100, 10, stream(seed, "deal"))
        assert (held.sum(axis=1) == 2).all()
        # Twenty each from the pool; doubles (about one client in ten) move to the smallest class lacked: 0, or 1.
        assert (held.sum(axis=0)[2:] <= 20).all()
        assert held.sum() == 200
    labels = np.repeat(np.arange(10), 3000)
    for seed in SEEDS:
        table = counts(labels, rule.split(labels, 50, stream(seed, "p")), 10)
        assert table.sum(axis=1).min() >= 10
        assert ((table > 0).sum(axis=1) <= 2).all()
        assert table.sum() == len(labels)


def test_shard_dirichlet_replaces_a_class_dealt_twice_by_the_smallest_one_lacked() -> None:
    class Fixed:
        def choice(self, n: int, size: int, replace: bool) -> np.ndarray:
            return np.arange(size)

        def permutation(self, pool: np.ndarray) -> np.ndarray:
            return np.array([2, 2, 0, 0, 1, 1])

    held = ShardDirichlet()._deal(3, 3, Fixed())  # type: ignore[arg-type]
    assert held.tolist() == [[True, False, True], [True, True, False], [True, True, False]]


def test_shard_dirichlet_lends_to_empty_clients_only_without_a_min_size() -> None:
    labels = np.repeat(np.arange(4), 15)
    rule = ShardDirichlet(alpha=0.02, labels_per_client=1, min_size=0)
    assert all(min(len(p) for p in rule.split(labels, 20, stream(s, "p"))) == 1 for s in SEEDS)
    with pytest.raises(DataError, match="min_size=3"):
        ShardDirichlet(alpha=0.02, labels_per_client=1, min_size=3, max_tries=50).split(labels, 20, stream(0, "p"))


@pytest.mark.parametrize("clients", [10, 15, 20, 37])
@pytest.mark.parametrize("q", [0.0, 0.25, 0.5, 0.95, 1.0])
def test_main_class_holds_its_share(q: float, clients: int) -> None:
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 2000))
    table = counts(labels, MainClass(q).split(labels, clients, stream(0, "p")), 10)
    size = table[0].sum()
    main = table[np.arange(clients), np.arange(clients) % 10]
    assert np.ptp(table.sum(axis=1)) == 0
    assert size >= 0.95 * 2000 / (q * -(-clients // 10) + (1 - q) * clients / 10)
    assert (main >= int(q * size)).all()
    assert main.mean() / size == pytest.approx(q + (1 - q) / 10, abs=0.015)
    rest = table.sum(axis=0) - np.bincount(np.arange(clients) % 10) * int(q * size + 1e-9)
    assert np.ptp(rest) <= 1 + clients * 2


def test_main_class_without_a_main_share_is_iid_on_unbalanced_data() -> None:
    labels = unbalanced_labels(4)
    assert sum(len(part) for part in MainClass(0.0).split(labels, 9, stream(0, "p"))) == 900


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (Dirichlet, {"alpha": 0.0}),
        (Dirichlet, {"alpha": float("nan")}),
        (Dirichlet, {"alpha": float("inf")}),
        (Dirichlet, {"min_size": -1}),
        (Dirichlet, {"max_tries": 0}),
        (QuantitySkew, {"alpha": -1.0}),
        (Shards, {"per_client": 0}),
        (Pathological, {"classes_per_client": 0}),
        (ShardDirichlet, {"alpha": 0.0}),
        (ShardDirichlet, {"labels_per_client": 0}),
        (MainClass, {"q": 1.1}),
        (MainClass, {"q": float("nan")}),
    ],
)
def test_options_out_of_range_are_refused_by_name(rule: type[Partition], options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=rf"^{next(iter(options))}=.* is not allowed"):
        rule(**options)


@pytest.mark.parametrize("rule", COMPLETE + PARTIAL, ids=lambda rule: type(rule).__name__)
def test_impossible_numbers_of_clients_are_one_line(rule: Partition) -> None:
    for num_clients in (None, 0, 31):
        with pytest.raises(ConfigError, match=r"^num_clients=") as caught:
            rule.split(np.arange(30) % 3, num_clients, stream(0, "p"))
        assert "\n" not in str(caught.value)


def test_label_rules_refuse_text() -> None:
    with pytest.raises(DataError, match="one label a row"):
        Dirichlet().split(np.zeros((20, 5), int), 2, stream(0, "p"))
    assert sum(map(len, QuantitySkew().split(np.zeros((20, 5), int), 2, stream(0, "p")))) == 20


def test_label_counts_agree_with_flower_datasets() -> None:
    """The same law from another hand: mean largest share of a client over many draws."""
    flower = pytest.importorskip("flwr_datasets.partitioner")
    datasets = pytest.importorskip("datasets")
    labels = np.repeat(np.arange(10), 200)
    shares: dict[str, list[float]] = {"ours": [], "theirs": []}
    for seed in range(5):
        other = flower.DirichletPartitioner(10, "label", 0.3, min_partition_size=0, self_balancing=False, seed=seed)
        other.dataset = datasets.Dataset.from_dict({"label": labels, "row": np.arange(2000)})
        theirs = [np.array(other.load_partition(i)["row"], dtype=int) for i in range(10)]
        ours = Dirichlet(0.3, min_size=0).split(labels, 10, stream(seed, "p"))
        for name, parts in (("ours", ours), ("theirs", theirs)):
            table = counts(labels, parts, 10)
            assert table.sum() == 2000
            shares[name].append(float((table.max(axis=0) / 200).mean()))
    assert np.mean(shares["ours"]) == pytest.approx(np.mean(shares["theirs"]), abs=0.08)
