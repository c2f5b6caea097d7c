"""Hydra configs: one file per verb, one folder per group."""
