"""FAKE of vLLM."""
