"""What a run promises to survive, as commands that count: ``python -m studies.survival NAME --count N``.

Each promise is a list of trials of the real commands; ``report`` counts those that were not kept. Tests run the same
trials in small. docs/reliability.md has what was found.
"""
