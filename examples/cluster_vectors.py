"""Cluster vectors of your own with the exact k-means of sctok, from an array or from blocks.

python examples/cluster_vectors.py
"""

import numpy as np

from sctok import KMeans

CLUSTERS, WIDTH = 50, 32


def main() -> None:
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((CLUSTERS, WIDTH)) * 10
    vectors = (centers[rng.integers(CLUSTERS, size=20_000)] + rng.standard_normal((20_000, WIDTH))).astype(np.float32)

    model = KMeans(n_clusters=CLUSTERS, random_state=0).fit(vectors)
    print(f"inertia per vector {model.inertia_ / len(vectors):.2f} (the noise alone has {WIDTH})")

    # Each pass over the vectors calls the function again, so blocks may come from files that exceed the memory.
    blocks = KMeans(n_clusters=CLUSTERS, random_state=0).fit(lambda: iter(np.array_split(vectors, 10)))
    print(f"the same from ten blocks: {np.allclose(model.cluster_centers_, blocks.cluster_centers_)}")


if __name__ == "__main__":
    main()
