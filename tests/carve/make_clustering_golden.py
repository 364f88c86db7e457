"""Writes clustering_golden.txt: marker clusters as the authors' code makes them, with a dense solver.

Follows the steps of the authors' `construct_experts_k_means`: shared neurons by activation rate; the remaining neurons of highest rate as
seeds; L1 distances (cdist, p = 1) to the seeds; every distance column repeated m times and the linear assignment solved; one update of
the centroids to the mean of the assigned columns; the neuron of least L1 distance to it represents the cluster. Only cases whose
optimum is unique are kept (the labels survive random perturbations below the least possible gain of any exchange).
Usage: python make_clustering_golden.py   (numpy, scipy)
"""
import pathlib

import numpy as np
from scipy.optimize import linear_sum_assignment

EPSILON = 1e-9


def assign(distance, m):
    rows, columns = linear_sum_assignment(np.repeat(distance, m, axis=1))
    return columns // m


def smallest(values):  # first index among values equal up to rounding
    return int(np.flatnonzero(values <= values.min() + EPSILON)[0])


def make_case(random, tokens, k_act, clusters, m, shared):
    neurons = shared + clusters * m
    group = random.permutation(np.repeat(np.arange(clusters), m))
    score = random.random((tokens, neurons))
    score[:, :shared] += 2 * (random.random((tokens, shared)) < 0.7)
    topic = random.integers(0, clusters, tokens)
    score[:, shared:] += 0.8 * (topic[:, None] == group[None, :])
    marks = np.sort(np.argsort(-score, axis=1, kind="stable")[:, :k_act], axis=1)
    bits = np.zeros((tokens, neurons))
    np.put_along_axis(bits, marks, 1, axis=1)

    rate = bits.mean(axis=0)
    order = np.argsort(-rate, kind="stable")
    candidates = np.sort(order[shared:])
    columns = bits[:, candidates].T
    seeds = np.argsort(-rate[candidates], kind="stable")[:clusters]
    distance = np.abs(columns[:, None, :] - columns[seeds][None, :, :]).sum(axis=2)
    label = assign(distance, m)
    for _ in range(30):
        if (assign(distance + random.random(distance.shape) / (4 * len(candidates)), m) != label).any():
            return None
    centroids = np.stack([columns[label == j].mean(axis=0) for j in range(clusters)])
    representatives = []
    for j in range(clusters):
        members = np.flatnonzero(label == j)
        representatives.append(int(members[smallest(np.abs(columns[members] - centroids[j]).sum(axis=1))]))
    objective = int(distance[np.arange(len(label)), label].sum())
    return [[tokens, k_act, neurons, shared, clusters, objective], marks.ravel(), candidates, label, representatives]


random, lines, kept = np.random.default_rng(7), [], 0
for tokens, k_act, clusters, m, shared in [(64, 5, 3, 4, 3), (96, 8, 5, 4, 12), (128, 6, 2, 9, 6), (80, 9, 4, 6, 8)] * 2:
    case = None
    for _ in range(2000):
        case = make_case(random, tokens, k_act, clusters, m, shared)
        if case:
            break
    if case:
        kept += 1
        lines += [" ".join(str(int(v)) for v in part) for part in case]
pathlib.Path(__file__).with_name("clustering_golden.txt").write_text("\n".join(lines) + "\n")
print(kept, "cases")
