"""Starts runs: on this machine, on the workers of a slice, on Google Cloud; or compiles only."""
