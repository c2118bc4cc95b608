"""Clusters that are started from a program."""
