"""What people really have, generated of independent choices; of each situation the right outcome is known.

A module has ``situation(r, where)``, which draws one situation, tries it and judges it.
"""
