"""SliceServe: a large language model cut in two, its head on the device, its tail on a server."""

import os

__version__ = "0.1.0"

# Read by OpenMP when torch loads it: threads that wait must sleep. With one busy neighbour on the
# machine, spinning threads make a step thirty times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
