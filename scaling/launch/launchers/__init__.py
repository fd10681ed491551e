"""The launchers: a file or a package a kind, found by its name and imported when it is asked for."""
