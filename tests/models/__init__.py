"""Tests of `scaling.models`: small models of every option in `small`, properties over all of them."""
