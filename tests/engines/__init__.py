"""Schedulers and servers for real, in small, on this machine: marked `engines`."""
