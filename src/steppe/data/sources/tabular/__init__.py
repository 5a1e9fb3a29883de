"""Tables with columns: CSV, JSON lines and Parquet files, their features and targets, and lists of images."""
