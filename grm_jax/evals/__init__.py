"""Reward-model benchmarks: readers, official metrics, content-blind baselines, reports and comparisons between runs."""
