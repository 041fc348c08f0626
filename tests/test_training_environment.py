import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
from straw_jax.training.environment import keep_freed_memory

assert {setting}

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(50_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_used_again():
    def faults(setting):
        script = SCRIPT.format(setting=setting)
        arguments = [sys.executable, "-c", script]
        return int(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)

    # A fault a page of 4 KB, or of 2 MB where the system gives such; two or three at any rate.
    assert faults("keep_freed_memory()") < 10 < faults("True")
