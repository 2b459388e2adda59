"""Train, measure and ship compact image-copy-detection descriptors."""

__version__ = "0.1.0"
