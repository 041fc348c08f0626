"""Faults on purpose: what a disk, a killed process or another program may do to stored files."""
