"""Tasks: what a network is trained for, its loss and the metric that is reported."""
