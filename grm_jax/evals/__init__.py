"""Evaluation: benchmarks with their official metrics, intervals, tables, plots and reports."""
