"""Runs a range of layers for many requests: schedule, run, update."""
