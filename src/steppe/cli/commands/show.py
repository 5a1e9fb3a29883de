"""``steppe show``: the card and the fields of a method, or a recipe."""

from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "method",
        type=str,
        help="a method, with settings or not, a recipe or a suite (`steppe list` lists them), or demo",
    )


def run(options: Namespace, command: str) -> int:
    """Print the card and the fields."""
    from steppe import methods
    from steppe.config import demo_text, recipes, suites

    if options.method == "demo":
        print(demo_text(), end="")
        return 0
    if options.method in recipes.names():
        print(recipes.card(recipes.load(options.method)))
        return 0
    if suites.is_suite(options.method):
        print(suites.card(suites.load(options.method)))
        return 0
    method = methods.parse(options.method)
    controls = methods.controls_of(method)
    names = dict.fromkeys(part.partition(":")[0] for part in options.method.split("+"))
    print("\n\n".join(f"{methods.card(name)}\nFields   {_fields(name)}" for name in names))
    print(f"\nControls {', '.join(controls) or 'none besides plain'}\nSettings {method}")
    return 0


def _fields(name: str) -> str:
    """Return a line per setting: its name, its default, what it is, and its possible values."""
    from steppe.core.method.registry import settings

    rows = settings(name)
    name_width, default_width = (max(len(row[i]) for row in rows) for i in (0, 1))
    return "\n         ".join(f"{n:<{name_width}}  {d:<{default_width}}  {text}" for n, d, text in rows)
