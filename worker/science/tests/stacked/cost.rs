//! What a step takes: the floor that docs/performance.md speaks of.
