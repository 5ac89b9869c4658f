"""Launchers that Hydra finds by this place: `gpu_pool`."""
