"""Values: adapters, deltas, targets, plans, receipts, options and results."""
