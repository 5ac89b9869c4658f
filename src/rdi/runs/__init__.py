"""The run: its folder, network, data, banks, thresholds and records. Knows files and values, never Hydra."""
