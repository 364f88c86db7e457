"""Writes router_golden.txt: the linear router of a small case, solved by NumPy in f64.

    python3 tests/carve/make_router_golden.py > tests/carve/router_golden.txt

Ridge regression about the means, (Xc^T Xc + lambda mean(diag) I) W = Xc^T Yc, b = mean(y) - W mean(x). Numbers come from a
counter, so that the test makes the same x and y itself.
"""
import numpy as np

TOKENS, D, EXPERTS, LAMBDA = 40, 6, 3, 1e-2


def value(i):
    return np.float32((i * 7919 + 13) % 1009 / 512 - 1)


x = np.array([[value(t * D + j) for j in range(D)] for t in range(TOKENS)], dtype=np.float64)
y = np.array([[abs(value(100000 + t * EXPERTS + j)) for j in range(EXPERTS)] for t in range(TOKENS)], dtype=np.float64)
xc, yc = x - x.mean(0), y - y.mean(0)
gram = xc.T @ xc
w = np.linalg.solve(gram + LAMBDA * np.trace(gram) / D * np.eye(D), xc.T @ yc)
b = y.mean(0) - x.mean(0) @ w
for row in w.T:
    print(*(f"{v:.9e}" for v in row))
print(*(f"{v:.9e}" for v in b))
