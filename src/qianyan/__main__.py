"""Run the command line as `python -m qianyan`."""

from qianyan.cli import main

main()
