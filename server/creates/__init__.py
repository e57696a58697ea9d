"""Models made here: of a model, of uploaded files or of a folder, with settings and texts of their own."""
