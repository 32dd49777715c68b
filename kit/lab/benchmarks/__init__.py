"""What the benchmark notebooks and ``pytest --benchmark-only`` measure: the same workloads, the same contenders."""
