"""A napari plugin: see filaments, put right what is wrong, and let a network learn from it."""
