"""Mosaic GPU kernels: operations of the IR turned into Pallas kernels for NVIDIA Hopper."""
