"""The command line: one file per command, plus what they share. Only here click and rich live."""
