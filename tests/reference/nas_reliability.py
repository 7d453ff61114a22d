"""The statistics of scores in plain loops: analysis of variance, permutations, halves and least squares."""

import math

import numpy as np
from scipy import stats


def rows_of(labels):
    """For every label its rows, labels in order of first appearance."""
    return [[i for i, each in enumerate(labels) if each == label] for label in dict.fromkeys(labels)]


def standardised(scores, edges):
    """Every repeat (a column) centred on each edge, and divided by its standard deviation within edges."""
    values = np.array(scores, float)
    for repeat in range(values.shape[1]):
        for rows in rows_of(edges):
            values[rows, repeat] -= sum(values[i, repeat] for i in rows) / len(rows)
        freedom = len(edges) - len(rows_of(edges))
        scale = math.sqrt(sum(value**2 for value in values[:, repeat]) / max(freedom, 1))
        values[:, repeat] /= scale or 1
    return values


def least_squares(values, edges, types):
    """Fit of the columns by effects of edges, and of types where given, and its number of free parameters."""
    groups = rows_of(edges) + ([] if types is None else rows_of(types))
    design = np.array([[float(i in rows) for rows in groups] for i in range(len(edges))])
    return design @ np.linalg.lstsq(design, values, rcond=None)[0], np.linalg.matrix_rank(design)


def reliability(values, edges, types=None):
    """The intraclass correlation of standardised values, from mean squares of operators and of what is left."""
    fit, parameters = least_squares(values, edges, types)
    rest, repeats, freedom = values - fit, values.shape[1], len(edges) - parameters
    if freedom < 1:
        return 0.0
    means = [sum(row) / repeats for row in rest]
    operators = sum(repeats * mean**2 for mean in means) / freedom
    error = sum((x - mean) ** 2 for row, mean in zip(rest, means, strict=True) for x in row)
    error /= freedom * (repeats - 1)
    return (operators - error) / (operators + (repeats - 1) * error)


def shrunken(scores, edges, types, share=None, earlier=None):
    """Least-squares effects of types plus λ times the rest of the mean, and λ; all repeats count equally."""
    values = standardised(scores, edges)
    repeats = values.shape[1]
    if share is None:
        single = reliability(values, edges, types) if repeats > 1 else 0.0
        share = repeats * single / (1 + (repeats - 1) * single) if single > 0 else 0.0
    mean = pooled = values.mean(1, keepdims=True)
    if earlier is not None:
        before = standardised(earlier, edges)
        pooled = np.hstack([values, before]).mean(1, keepdims=True)
    common = least_squares(pooled, edges, types)[0]
    return (common + share * (mean - least_squares(mean, edges, types)[0]))[:, 0], share


def permutation_null(scores, edges, random, draws, level):
    """Quantiles of the reliability when the operators of an edge change places in every repeat."""
    values, found = standardised(scores, edges), []
    for _ in range(draws):
        keys, shuffled = random.random(values.shape), np.empty_like(values)
        for rows in rows_of(edges):
            for repeat in range(values.shape[1]):
                order = sorted(rows, key=lambda i, repeat=repeat: keys[i, repeat])
                shuffled[rows, repeat] = values[order, repeat]
        found.append(reliability(shuffled, edges))
    return tuple(np.quantile(found, [(1 - level) / 2, (1 + level) / 2]))


def agreement(scores, edges, random, types, draws, earlier=None):
    """(τ, its interval, share of equal choices, its interval, chance) of halves, one draw after the other."""

    def halved(repeats):
        orders = [random.permutation(repeats) for _ in range(draws)]
        return [(order[: repeats // 2], order[repeats // 2 : repeats // 2 * 2]) for order in orders]

    halves = halved(scores.shape[1])
    before = [(None, None)] * draws if earlier is None else halved(earlier.shape[1])
    members = [rows for rows in rows_of(edges) if len(rows) > 1]
    pairs = [len(rows) * (len(rows) - 1) / 2 for rows in members]
    chosen = random.integers(len(members), size=(len(members), draws))
    taus, same, drawn_taus, drawn_same = [], [], [], []
    for draw in range(draws):
        found = []
        for half, others in zip(halves[draw], before[draw], strict=True):
            if types is None:
                found.append(standardised(scores, edges)[:, half].mean(1))
            else:
                old = None if others is None else earlier[:, others]
                found.append(shrunken(scores[:, half], edges, types, None, old)[0])
        left, right = found
        concordant = [
            sum(np.sign((left[i] - left[j]) * (right[i] - right[j])) for i in rows for j in rows if i < j)
            for rows in members
        ]
        equal = [max(rows, key=left.__getitem__) == max(rows, key=right.__getitem__) for rows in members]
        taus.append(sum(concordant) / sum(pairs))
        same.append(np.mean(equal))
        places = chosen[:, draw]
        drawn_taus.append(sum(concordant[k] for k in places) / sum(pairs[k] for k in places))
        drawn_same.append(np.mean([equal[k] for k in places]))
    chance = np.mean([1 / len(rows) for rows in members])
    return (
        *(np.mean(taus), *np.quantile(drawn_taus, [0.025, 0.975])),
        *(np.mean(same), *np.quantile(drawn_same, [0.025, 0.975]), chance),
    )


def validity(components, accuracy, size, networks, pools):
    """(τ, ρ, partial ρ, τ minus that of the size) of one draw of networks and pools, by scipy."""
    means = []
    for scores in components:
        by_pool = scores.mean(2)
        count, centre = by_pool.shape[1], by_pool.mean(1)
        if count > 1:
            centre = centre + math.sqrt(count / (count - 1)) * (by_pool[:, pools].mean(1) - centre)
        means.append(centre[networks])
    x = means[0] if len(means) == 1 else sum(map(stats.rankdata, means))
    y, z = accuracy[networks], size[networks]
    xy, xz, yz = (stats.spearmanr(a, b).statistic for a, b in ((x, y), (x, z), (y, z)))
    left = (1 - xz**2) * (1 - yz**2)
    partial = (xy - xz * yz) / math.sqrt(left) if left > 1e-9 else math.nan
    tau, of_size = (stats.kendalltau(a, y).statistic for a in (x, z))
    return tau, xy, partial, tau - of_size
