"""Calibration: training a converted model to its new positions."""
