"""The bindings of llama.cpp, and the objects that own one of its handles."""
