"""Tables, figures and the page of a comparison: records in, files out, no torch."""
