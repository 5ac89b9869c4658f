"""Sweepers that Hydra finds by this place: `grid.Grid`, the default, and `tune.Tune`, a search."""
