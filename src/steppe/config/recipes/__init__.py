"""Recipes: the settings of a paper's tables, each with its source, beside the numbers that were published.

One YAML file per table:

    title, source   what it shows, and where it is printed
    like            another recipe whose settings, sources, where and differs hold here too, unless changed
    data            kinds of data sets, the first one by default; the user says where the files are
    models          networks, the first one by default
    methods         rows of the table: name and method
    settings        fields of `steppe.config.Run`, nested ones with a dot
    where           exceptions: settings or methods for some rows (a row's or a method's name), data or models
    sources         where each setting and each row is printed; an exception has a source of its own
    published       quantity, columns and rows of the table
    differs         what is not as in the paper

Reading needs no torch.
"""

from __future__ import annotations

from steppe.config.recipes.card import card, listing
from steppe.config.recipes.recipe import Choice, Recipe, load, names

__all__ = ["Choice", "Recipe", "card", "listing", "load", "names"]
