"""Decides with ints and lists what each step computes."""
