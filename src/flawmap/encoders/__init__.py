"""Frozen pretrained networks through timm, their weights found offline first."""

from flawmap.encoders.table import ENCODERS, EncoderSpec, find_spec

__all__ = ["ENCODERS", "EncoderSpec", "find_spec"]
