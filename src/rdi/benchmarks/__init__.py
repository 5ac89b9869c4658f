"""Measurements of `rdi bench`: each module gives the rows of a group, as ratios to a plain baseline in the same run."""
