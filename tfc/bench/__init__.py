"""Benchmarks: cases, peers, device timing, results as data. Ratios are only between runs side by side."""
