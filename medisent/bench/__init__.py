"""Knows how methods are set beside each other: rendered heads, fixed seeds, ours and the baselines, one table."""

from medisent.bench.rows import ROWS, Row
from medisent.bench.running import bench
from medisent.bench.tables import Standing

__all__ = ["ROWS", "Row", "Standing", "bench"]
