import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
from straw_experiments.runner.environment import return_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

pieces = [bytearray(100_000) for _ in range(2000)]
last = bytearray(100_000)  # keeps the heap from shrinking by itself
del pieces
before = resident()
return_freed_memory()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc")
def test_freed_memory_is_given_back():
    arguments = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 150_000_000
