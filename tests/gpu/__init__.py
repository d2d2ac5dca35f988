"""The CUDA programs of attention and loss, compiled for an H100 without one: see ``__main__``."""
