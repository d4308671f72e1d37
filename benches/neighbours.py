"""Leave-one-out votes of the 10 nearest neighbours in scikit-learn, of as many states as task decodability reads.

Peer of worker/science/examples/td_speed.rs; run by benches/decodability.sh. Standard errors are not among it.
"""

import argparse
import time

import numpy as np
from sklearn.neighbors import NearestNeighbors

K, EACH = 10, 100

parser = argparse.ArgumentParser()
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--seconds", type=float, default=5.0)
args = parser.parse_args()


def accuracy(points, labels, tasks):
    found = NearestNeighbors(n_neighbors=K, algorithm="brute", n_jobs=args.threads).fit(points)
    nearest = found.kneighbors(return_distance=False)  # without the point itself
    votes = np.apply_along_axis(np.bincount, 1, labels[nearest], minlength=tasks)
    right = votes.argmax(axis=1) == labels
    return np.bincount(labels[right], minlength=tasks) / EACH


for name, layers, tasks, width in [("quickstart", 4, 2, 64), ("paper", 13, 4, 256)]:
    labels = np.arange(tasks * EACH) % tasks
    states = np.random.default_rng(1).normal(size=(layers, len(labels), width))
    accuracy(states[0], labels, tasks)
    start, passes = time.perf_counter(), 0
    while passes == 0 or time.perf_counter() - start < args.seconds:
        for points in states:
            accuracy(points, labels, tasks)
        passes += 1
    each = (time.perf_counter() - start) / passes
    print(f"{name:10} neighbours and votes of {layers} × {len(labels)} points of {width} numbers: scikit-learn {each:.4f} s")
