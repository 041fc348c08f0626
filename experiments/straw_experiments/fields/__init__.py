"""Fields: an encoder looks at an image, and writes a coordinate network for it."""
