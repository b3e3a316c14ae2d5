"""Anomaly detection methods, one file each, on the contract of `flawmap.methods.base`."""
