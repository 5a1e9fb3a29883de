"""``steppe show``: the card of a method or a recipe."""

from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "method", type=str, help="a method, with settings or not, or a recipe; `steppe list` lists them"
    )


def run(options: Namespace, command: str) -> int:
    """Print the card."""
    from steppe import methods
    from steppe.config import recipes

    if options.method in recipes.names():
        print(recipes.card(recipes.load(options.method)))
        return 0
    method = methods.parse(options.method)
    print("\n\n".join(methods.card(part.partition(":")[0]) for part in options.method.split("+")))
    print(f"\nControls {', '.join(method.controls) or 'none besides plain'}\nSettings {method}")
    return 0
