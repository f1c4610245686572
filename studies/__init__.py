"""The paper's claims as small experiments: a command each, a verdict from an interval.

    python -m studies.ctf_vs_mtf

``variants`` is what the studies that train share: models that differ in one setting, trained with a seed, and what is
measured of each. docs/studies.md has what was found.
"""
