"""The command line: one file a command, with its flags and what it prints."""

from .main import main as main
