"""Writes assignment_golden.txt: optima of balanced assignments by scipy's dense Jonker-Volgenant solver.

The cost matrix is a formula (a 64-bit linear congruential generator), so that only sizes and optima are stored.
Usage: python make_assignment_golden.py   (numpy, scipy)
"""
import pathlib

import numpy as np
from scipy.optimize import linear_sum_assignment


def costs(n, clusters, modulus):
    state, out = n * 1000 + clusters, []
    for _ in range(n * clusters):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        out.append((state >> 33) % modulus)
    return np.array(out, dtype=np.float64).reshape(n, clusters)


lines = []
for n, clusters, modulus in [(40, 5, 2), (40, 5, 1000), (300, 3, 7), (480, 5, 100), (480, 5, 10**6), (600, 60, 4), (960, 15, 3),
                             (960, 15, 10**5), (1000, 1, 50)]:
    cost = np.repeat(costs(n, clusters, modulus), n // clusters, axis=1)
    rows, columns = linear_sum_assignment(cost)
    lines.append(f"{n} {clusters} {modulus} {int(cost[rows, columns].sum())}")
pathlib.Path(__file__).with_name("assignment_golden.txt").write_text("\n".join(lines) + "\n")
