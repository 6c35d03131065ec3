"""Low-rank algebra: the only SVD in the house."""
