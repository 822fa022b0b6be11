"""Rooms of the delivered model: calibration, evaluation, bundle, prediction."""
