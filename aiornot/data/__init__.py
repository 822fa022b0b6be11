"""Rooms of the data: demo parquet, pixels, splits, the HDF5 file."""
