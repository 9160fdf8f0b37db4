"""`python -m app.cli` is `snose`."""

from app.cli import main

main()
