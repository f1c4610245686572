"""The command line: one module a group of verbs, put together by ``magi.cli.main``."""
