"""`lm sign` and `lm verify --key`: signatures made and checked in a process of the user's, by files of the user's."""
