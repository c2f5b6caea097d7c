"""Blocks that at least two backbones use."""
