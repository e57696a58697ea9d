"""What this machine holds, how fast it is, and which level it should run; llama.cpp only in a child process."""
