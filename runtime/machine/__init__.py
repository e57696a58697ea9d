"""This machine: its hardware, its speed, and the level of a model that it should run. llama.cpp runs in a child."""
