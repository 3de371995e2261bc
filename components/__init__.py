"""The steps of the benchmark: plain functions, paths and a config in, paths out."""
