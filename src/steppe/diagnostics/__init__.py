"""What was trained, measured: sharpness, Hessian, landscapes, filter norms, calibration, bounds, robustness.

Functions to numbers on any network, batches and loss; nothing here draws.
"""
