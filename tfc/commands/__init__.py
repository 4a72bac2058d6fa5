"""What each `tfc` command does; `tfc.cli` parses the words and imports only the command that was asked for."""
