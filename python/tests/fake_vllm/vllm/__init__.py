"""FAKE of vLLM: only what KVFerry imports. See README.md beside this package."""

__version__ = "0.32.0"
