"""Tests of the analysis: planted laws, published numbers, refusals, figures; they may import `analysis` only."""
