"""Experiments, each a module that :mod:`lab.experiments.frame` runs cell by cell."""
