"""Measurements that anyone can repeat: raw floors, peers and ours, interleaved in one run. See docs/benchmarks.md."""
