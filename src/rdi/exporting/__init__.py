"""Networks as files for devices: one per stage, the exit policy beside them, and a runner that needs no torch."""
