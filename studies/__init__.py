"""The paper's claims as small experiments: one module a study, results and plots in ``results/``.

    python -m studies.ctf_vs_mtf --help

``arms`` is what every study shares: a model trained with some settings and a seed, what it generates, and what is
measured of it. Arms are named by their settings, so studies that need the same one train it once.
"""
