"""Powers of ten and two: the only place where they are written.

Inside Meshtune every quantity is in bytes, seconds, FLOPs or tokens; these constants convert at the edge.
"""

KB, MB, GB, TB = 1e3, 1e6, 1e9, 1e12
KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40
NS, US, MS = 1e-9, 1e-6, 1e-3
TFLOPS = 1e12
KILO, MILLION, BILLION = 1e3, 1e6, 1e9
MINUTE_S, HOUR_S, DAY_S = 60.0, 3600.0, 86400.0
KWH_J = 3600.0 * KILO


def gb(n_bytes: float) -> float:
    """Decimal gigabytes, 1e9 bytes."""
    return n_bytes / GB


def gib(n_bytes: float) -> float:
    """Binary gibibytes, 2^30 bytes."""
    return n_bytes / GIB
