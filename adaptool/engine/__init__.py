"""Plan in, bytes out: reading, computing, rounding, writing, on CPU or CUDA."""
