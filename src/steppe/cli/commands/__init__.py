"""The commands: ``steppe NAME`` is the module ``NAME`` here, which has its options and its action.

``add_arguments(parser)`` declares the options. ``run(options, command)`` acts and returns the exit code, where
``command`` is the whole command line.
"""

COMMANDS = {
    "compare": "Train methods side by side under equal conditions, and report.",
    "train": "Train one run.",
    "reproduce": "Train the rows of the papers' tables in their order, within a time.",
    "report": "Write a comparison's report again, or serve it while the runs go on.",
    "list": "List methods, models, data sets or recipes.",
    "show": "Show the card of a method or a recipe.",
    "bench": "Measure what a step of each method costs.",
    "tune": "Choose a method's settings on the validation split, within a budget.",
    "diagnose": "Measure trained networks: sharpness, loss landscapes, robustness.",
    "export": "Write the network that a run deploys as a plain module.",
    "soup": "Average the networks of several runs, and write the mean as a plain module.",
    "conformance": "Check the properties that every method must have.",
}
