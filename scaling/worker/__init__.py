"""Claims the runs of a sweep and trains them, alone or with other processes."""
