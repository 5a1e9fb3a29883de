"""Formats of data other than folders of images: tables, lists of images, texts."""
