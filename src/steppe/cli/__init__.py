"""The command line: `steppe COMMAND`, one module per command."""
