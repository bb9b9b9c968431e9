"""Each op, the spectra of a network and the whole pipeline, timed against plain PyTorch."""
