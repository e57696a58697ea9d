"""The routes. Each dialect has a room, which decodes bodies into turns and options and writes the answers."""
