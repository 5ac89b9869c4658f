"""What `rdi bench` measures: each module gives the rows of one group, as ratios to a plain baseline in the same run."""
