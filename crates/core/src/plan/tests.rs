//! Literal runs of small layouts.
