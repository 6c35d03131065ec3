"""Bytes: headers, sources and sinks, checkpoints, staging and commit, digests."""
