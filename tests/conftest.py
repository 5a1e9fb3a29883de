"""What must happen before any test module is imported."""

from foreign import declare_operators

declare_operators()
