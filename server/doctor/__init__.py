"""`lm doctor`: what is well with this machine and this installation."""
