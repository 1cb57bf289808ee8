"""XLA's flags for tests.

Most of a test is compiling, and most of that is turning what runs for a moment into fast machine
code. QUICK leaves that out, unless XLA_FLAGS is set: `XLA_FLAGS= pytest` compiles in the test
process as users do. Programs that tests start always have QUICK.
"""

from importlib.metadata import version

QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if version("jaxlib").startswith("0.10."):  # later ones end at a flag that they no longer have
    QUICK += " --xla_cpu_use_fusion_emitters=false"
EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"
