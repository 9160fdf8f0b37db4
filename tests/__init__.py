"""The tests: a test's name is the situation, its docstring the requirement."""
