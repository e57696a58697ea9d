"""Block formats: one module for each family, compiled for the CPU at hand."""
