"""Semantic IDs: the catalogue's trie, and how to make SIDs for items that have none."""

import numpy as np
import torch


class Trie:
    """All SIDs of a catalogue, level by level, as tables that index with tensors.

    ``children[l][node, code]`` is the node reached from a node of level ``l`` by the code, or -1 where no item lies.
    The nodes of the last level are the distinct SIDs, in lexicographic order. The tables are dense, nodes x codes:
    right for catalogues of thousands of items, not of millions.

    Args:
        sids: int64 ``(items, L)``, a row per item: items may share a SID.
        codes: codes per level; default: the largest code + 1.
    """

    def __init__(self, sids, codes=None):
        distinct, counts = np.unique(sids, axis=0, return_counts=True)
        self.sids, self.counts = torch.from_numpy(distinct), torch.from_numpy(counts)
        self.levels = self.sids.shape[1]
        self.codes = int(self.sids.max()) + 1 if codes is None else codes
        self.children = []
        parent = torch.zeros(len(self.sids), dtype=torch.int64)
        for level in range(self.levels):
            code = self.sids[:, level]
            _, node = torch.unique(parent * self.codes + code, return_inverse=True)
            table = torch.full((int(parent.max()) + 1, self.codes), -1)
            table[parent, code] = node
            self.children.append(table)
            parent = node

    @staticmethod
    def cells(sids):
        """How many cells of 8 bytes the tables for these SIDs have, without making them."""
        nodes = sum(len(np.unique(sids[:, :level], axis=0)) for level in range(1, sids.shape[1]))
        return (1 + nodes) * (int(sids.max()) + 1)

    def __len__(self):
        return len(self.sids)

    def nodes(self, sids):
        """The node that each code leads to: int64 ``(..., L)``, -1 from the first code on that leads to no item."""
        node, reached = torch.zeros_like(sids[..., 0]), []
        for level in range(self.levels):
            code = sids[..., level]
            known = (node >= 0) & (code >= 0) & (code < self.codes)
            node = self.children[level][node.where(known, 0), code.where(known, 0)].where(known, -1)
            reached.append(node)
        return torch.stack(reached, dim=-1)

    def path(self, responses):
        """The node each code is chosen at: int64 ``(..., L)``, 0 (the root) first. Raises for a SID outside the catalogue."""
        reached = self.nodes(responses)
        lost = reached[..., -1] < 0
        if lost.any():
            raise ValueError(f"responses: expected SIDs of the catalogue, got {tuple(responses[lost][0].tolist())}")
        return torch.cat([torch.zeros_like(reached[..., :1]), reached[..., :-1]], dim=-1)

    def items(self, sids):
        """How many items have each SID: int64 ``(...)`` for ``(..., L)``, 0 outside the catalogue."""
        node = self.nodes(sids)[..., -1]
        return self.counts[node].where(node >= 0, 0)


def residual_kmeans(vectors, levels=3, codes=64, seed=0):
    """SIDs by residual quantisation: k-means, then k-means on what is left over, and so on.

    Args:
        vectors: float ``(items, d)``.
        levels: codes per SID.
        codes: clusters per level; fewer where there are fewer distinct vectors left.
        seed: of the k-means initialisations.

    Returns:
        int64 ``(items, levels)``. Items may collide; nothing is done about it here.
    """
    from sklearn.cluster import KMeans  # heavy; only this way of making SIDs needs it

    residual = np.asarray(vectors, dtype=np.float64)
    sids = []
    for level in range(levels):
        distinct = len(np.unique(residual.round(12), axis=0))
        clusters = KMeans(n_clusters=min(codes, distinct), n_init=1, random_state=seed + level).fit(residual)
        sids.append(clusters.labels_)
        residual = residual - clusters.cluster_centers_[clusters.labels_]
    return np.stack(sids, axis=1).astype(np.int64)


def collisions(sids):
    """How many items share their SID with another item."""
    _, counts = np.unique(sids, axis=0, return_counts=True)
    return int(counts[counts > 1].sum())
