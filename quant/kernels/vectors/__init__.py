"""What every kernel is compiled with: vectors, the compiler, its cache."""
