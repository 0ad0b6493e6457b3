"""The commands of the command line: typed functions, a module a family."""

__all__ = []
