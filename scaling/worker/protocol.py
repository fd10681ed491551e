"""What a launcher and its workers agree on: exit codes, signals, and variables of the environment. No JAX here.

Exit codes of a worker: 0 nothing is left to claim, runs may have failed; 128 + a signal that asked it to stop: the run
is saved and its lease released; `AGAIN` a device or a peer is gone and a new process goes on; `REFUSED` an error that
trying again does not fix. Any other code is a crash.
"""

import signal

AGAIN = 75  # EX_TEMPFAIL of sysexits.h: another process died, or something else that is not the run's fault
REFUSED, CRASHED = 2, 1
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # each asks a worker to save its run and end
LAUNCHER = "SCALING_LAUNCHER_PID"  # the process whose end a worker takes for a request to stop
WORKERS = "SCALING_WORKERS"  # how many workers the launcher started
