"""How blocks lie in memory: fields packed and unpacked."""
