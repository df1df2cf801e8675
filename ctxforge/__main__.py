"""`python -m ctxforge`."""

from ctxforge.cli import main

main()
