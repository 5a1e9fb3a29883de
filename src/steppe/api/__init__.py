"""The functions that compare, tune and diagnose any network, data, loss, metric and optimizer from Python."""
