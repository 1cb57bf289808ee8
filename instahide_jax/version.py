"""The version, read from here by the package, its metadata and its files."""

__version__ = "0.1.0"
