import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedKFold

from aiornot.config import InputError
from aiornot.data.splits import SPLITS, digest, folds, plan, thin


def some_labels(rows=1000, share=0.4, seed=7):
    """Exactly this share of ones, shuffled."""
    labels = (np.arange(rows) < share * rows).astype(np.int64)
    return np.random.default_rng(seed).permutation(labels)


def some_clusters(rows, seed=3):
    """Ids out of order and with gaps; about a third of the rows share one."""
    return np.random.default_rng(seed).integers(0, 2 * rows, rows) * 3 - rows


def notebook_folds(labels):
    """The loop of the notebook's split_data."""
    fold = np.full(len(labels), -1)
    splitter = StratifiedKFold(shuffle=True, n_splits=10, random_state=0)
    for i, (_, test_index) in enumerate(splitter.split(X=np.arange(len(labels)), y=labels)):
        fold[test_index] = i
    return fold


@pytest.mark.parametrize("rows, share", [(1000, 0.4), (997, 0.5), (20, 0.5), (5000, 0.9)])
def test_folds_are_the_notebooks(rows, share):
    labels = some_labels(rows, share)
    assert folds(labels).dtype == np.int8
    np.testing.assert_array_equal(folds(labels), notebook_folds(labels))


def test_splits_are_the_notebooks():
    labels = some_labels()
    fold = notebook_folds(labels)
    result = plan(labels)
    assert tuple(result) == SPLITS
    assert set(result["val"]) == set(np.flatnonzero(fold == 0))
    assert set(result["test"]) == set(np.flatnonzero((fold == 1) | (fold == 2)))
    assert set(result["train"]) == set(np.flatnonzero(fold > 2))


@pytest.mark.parametrize("kind", [bool, np.int8, np.uint8, np.float64, object])
def test_the_type_of_the_labels_does_not_matter(kind):
    labels = some_labels()
    np.testing.assert_array_equal(folds(labels.astype(kind)), folds(labels))
    np.testing.assert_array_equal(folds(labels.tolist()), folds(labels))


def test_a_cluster_moves_whole_to_the_fold_of_its_first_row():
    labels, ids = some_labels(), some_clusters(1000)
    fold, alone = folds(labels, clusters=ids), folds(labels)
    assert len(np.unique(ids)) < 900
    for cluster in np.unique(ids):
        members = np.flatnonzero(ids == cluster)
        assert (fold[members] == alone[members[0]]).all()


def test_a_cluster_is_in_one_split():
    labels, ids = some_labels(), some_clusters(1000)
    members = [set(ids[rows]) for rows in plan(labels, clusters=ids).values()]
    assert not (members[0] & members[1] or members[0] & members[2] or members[1] & members[2])


def test_every_row_is_in_exactly_one_split():
    for ids in (None, some_clusters(1000)):
        rows = np.concatenate(list(plan(some_labels(), clusters=ids).values()))
        np.testing.assert_array_equal(np.sort(rows), np.arange(1000))


@settings(deadline=None, max_examples=40)
@given(
    st.integers(40, 400),
    st.floats(0.3, 0.7),
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.floats(0.6, 1.0),
)
def test_every_prefix_has_the_class_share_of_its_split(rows, share, seed, clustered, kept):
    labels = some_labels(rows, share, seed)
    ids = some_clusters(rows, seed) if clustered else None
    try:
        result = plan(labels, clusters=ids, limit=int(rows * kept), seed=seed)
    except InputError:
        return  # a split without both classes, tested below
    for members in result.values():
        ones = np.cumsum(labels[members])
        for length, count in enumerate(ones.tolist(), start=1):
            wanted = Fraction(int(ones[-1]), len(members)) * length
            assert abs(count - wanted) <= 1


@pytest.mark.parametrize("limit", [100, 333, 999, 1000, 5000])
@pytest.mark.parametrize("clustered", [False, True])
def test_a_limited_plan_is_the_full_plan_of_the_first_rows(limit, clustered):
    labels = some_labels()
    ids = some_clusters(1000) if clustered else None
    full, limited = plan(labels, clusters=ids), plan(labels, clusters=ids, limit=limit)
    for split in SPLITS:
        kept = full[split][full[split] < limit]
        assert set(limited[split]) == set(kept)
        for label in (0, 1):
            np.testing.assert_array_equal(
                limited[split][labels[limited[split]] == label], kept[labels[kept] == label]
            )
    assert not set(limited["train"]) & set(full["test"])


def test_the_plan_depends_on_the_seed_and_on_nothing_else():
    labels, names = some_labels(), [f"id-{row}" for row in range(1000)]
    np.random.seed(1)
    first = digest(plan(labels), names)
    np.random.seed(2)
    assert digest(plan(labels), names) == first
    assert digest(plan(labels, seed=1), names) != first


def test_the_order_within_a_class_depends_on_the_seed():
    labels = some_labels()
    a, b = (plan(labels, seed=seed)["train"] for seed in (0, 1))
    a, b = (rows[labels[rows] == 0] for rows in (a, b))
    assert a[np.isin(a, b)].tolist() != b[np.isin(b, a)].tolist()


def test_the_plan_is_frozen():
    """Another scikit-learn or numpy must not silently move rows: files on disk would not fit."""
    names = [str(row) for row in range(1000)]
    assert digest(plan(np.arange(1000) % 2), names) == (
        "94410bf66d5f3927c5f5917e755be42b229aa7d28cc6143158ec5874220f778e"
    )


def test_rows_do_not_stand_in_source_order():
    train = plan(some_labels())["train"]
    assert abs(np.corrcoef(train, np.arange(len(train)))[0, 1]) < 0.2


def test_the_digest_tells_order_split_and_id_apart():
    result = plan(some_labels(100))
    names = [f"id-{row}" for row in range(100)]
    turned = {**result, "train": result["train"][::-1]}
    swapped = {**result, "train": result["val"], "val": result["train"]}
    renamed = [*names[:-1], "other"]
    digests = {
        digest(result, names),
        digest(turned, names),
        digest(swapped, names),
        digest(result, renamed),
    }
    assert len(digests) == 4
    assert digest(result, np.array(names, dtype=object)) == digest(result, names)
    assert all(re.fullmatch("[0-9a-f]{64}", text) for text in digests)


def test_the_digest_does_not_confuse_neighbouring_ids():
    rows = {"train": np.array([0, 1]), "val": np.array([2]), "test": np.array([3])}
    assert digest(rows, ["a", "b,c", "d", "e"]) != digest(rows, ["a,b", "c", "d", "e"])
    assert digest(rows, ['a","b', "c", "d", "e"]) != digest(rows, ["a", 'b","c', "d", "e"])


@pytest.mark.parametrize(
    "wrong, shown",
    [(2, "2"), (-1, "-1"), ("fake", "'fake'"), (None, "None"), (0.5, "0.5"), (float("nan"), "nan")],
)
def test_a_label_other_than_0_or_1_is_shown(wrong, shown):
    labels = some_labels(100).astype(object)
    labels[30] = labels[60] = wrong
    with pytest.raises(InputError, match=f"but {shown} was found, first in row 30"):
        plan(labels)


def test_many_wrong_labels_are_not_all_shown():
    with pytest.raises(InputError, match=r"but 2, 3, 4, 5, 6, \.\.\. was found"):
        plan(np.arange(1000))


@pytest.mark.parametrize("ones", [0, 1, 9])
def test_too_few_rows_of_a_class_are_refused_with_the_counts(ones):
    with pytest.raises(InputError, match=f"100 rows have label 0 and {ones} have label 1"):
        plan([0] * 100 + [1] * ones)


def test_no_rows_are_refused():
    with pytest.raises(InputError, match="0 rows have label 0 and 0 have label 1"):
        plan([])


def test_a_limit_that_empties_a_split_says_raise_it():
    with pytest.raises(InputError, match=r"has no row with label .* first 3 of 1000 .*--limit"):
        plan(some_labels(), limit=3)
    with pytest.raises(InputError, match="label 1 among the first 100 of 200 rows: raise --limit"):
        plan([0] * 100 + [1] * 100, limit=100)
    for limit in (0, -5):
        with pytest.raises(InputError, match="at least 1"):
            plan(some_labels(), limit=limit)


def test_clusters_that_empty_a_split_say_so():
    with pytest.raises(InputError, match="once duplicates are kept together"):
        plan(some_labels(), clusters=np.zeros(1000, dtype=int))


def test_rows_are_left_out_of_train_and_val_and_prefixes_stay_balanced():
    labels = some_labels()
    left_out = (labels == 1) & (np.arange(len(labels)) % 3 == 0)
    whole = plan(labels)
    thinned = thin(whole, labels, left_out=left_out)
    np.testing.assert_array_equal(thinned["test"], whole["test"])
    for split in ("train", "val"):
        rows = thinned[split]
        assert set(rows) == set(whole[split][~left_out[whole[split]]])
        counts, share = np.cumsum(labels[rows]), labels[rows].mean()
        assert np.abs(counts - share * np.arange(1, len(rows) + 1)).max() <= 1
    with pytest.raises(InputError, match="one class only"):
        thin(whole, labels, left_out=labels == 1)
