"""Connections between the processes of a cluster: TCP, TLS and within one process."""
