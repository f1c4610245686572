"""Speed cases by name, each against its baselines in the same process and run; results as JSON and one table.

``case`` says what a case is, ``runner`` measures it, ``suite`` lists all of them, ``report`` prints and compares.
"""
