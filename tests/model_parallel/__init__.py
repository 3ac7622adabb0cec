"""Model parallelism, compared with one device."""
