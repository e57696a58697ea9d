"""Templates in Go's language (`text/template`), as Modelfiles write them: read, and rendered within bounds."""
