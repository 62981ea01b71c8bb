"""Lets the original start on Linux: it asks a library of macOS for the time since boot and for a
name of this boot. Python loads this file by its name when its folder is on PYTHONPATH."""

import ctypes
import sys
import time

LIBRARY = "/usr/lib/libSystem.B.dylib"


class StandIn:
    """The three functions that it calls."""

    @staticmethod
    def mach_timebase_info(reference):
        """Ticks are nanoseconds."""
        reference._obj.numer, reference._obj.denom = 1, 1
        return 0

    @staticmethod
    def mach_continuous_time():
        """Nanoseconds since boot, sleep included."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    @staticmethod
    def sysctlbyname(_name, buffer, _size, _new, _new_size):
        """One boot is as good as another here."""
        buffer.value = b"linux"
        return 0


if sys.platform == "linux":
    real = ctypes.CDLL

    class CDLL(real):
        """The real thing, for every library but that one."""

        def __new__(cls, name=None, *_args, **_named):
            """What is not of this class is not initialised as one of it."""
            return StandIn() if name == LIBRARY else super().__new__(cls)

    ctypes.CDLL = CDLL
