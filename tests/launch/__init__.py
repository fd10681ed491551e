"""Tests of `scaling.launch`."""
