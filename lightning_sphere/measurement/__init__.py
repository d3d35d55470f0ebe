"""The hot path: what happens at every optimizer step, and the way from its sums to per-group inner products."""
