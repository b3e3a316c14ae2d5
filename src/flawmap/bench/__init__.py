"""Benchmarks: grids of methods, data and seeds, a results file, tables and plots."""
