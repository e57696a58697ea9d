"""The tools of every kernel: vectors of 16 lanes, the compiler, the cache of compiled code."""
