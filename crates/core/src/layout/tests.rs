//! Layouts as vLLM makes them, and near misses.
