"""`python -m apitrace`."""

from apitrace.cli import main

main()
