"""What measuring costs: `python -m benchmarks.overhead` and `python -m benchmarks.scaling`."""
