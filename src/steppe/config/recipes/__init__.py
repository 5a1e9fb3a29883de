"""Recipes: the settings of a paper's table, the source of each, and the published numbers.

One YAML file per table:

    title, source   what the table shows, and where it is printed
    like            base recipe; its settings, sources, where and differs apply unless they are changed
    data            kinds of data sets, the first one by default; the user gives the path of the files
    models          networks, the first one by default
    methods         rows of the table: name and method
    settings        fields of `steppe.config.Run`, nested ones with a dot
    where           exceptions: settings or methods for some rows (a row's or a method's name), data or models
    sources         where each setting and each row is printed; an exception has its own source
    published       quantity, columns and rows of the table
    differs         differences from the paper

Reading needs no torch.
"""

from steppe.config.recipes.card import card, listing
from steppe.config.recipes.recipe import Choice, Recipe, load, names

__all__ = ["Choice", "Recipe", "card", "listing", "load", "names"]
