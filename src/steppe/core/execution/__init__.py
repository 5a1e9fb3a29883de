"""How a step is executed: its passes, its checks on the device, and the whole of it as a graph."""
