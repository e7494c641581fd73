"""A pretend GPU, `torch.device("pretend")`: strict about devices as CUDA is, and computed on the CPU.

`register` builds `device.cpp` once for each version of torch (some 15 s) and makes the device known to this process, which cannot be taken
back.  So tests on the device are files `check_*.py`, which `test_on_the_device.py` runs in processes of their own; by hand:
`pytest tests/pretend_gpu/check_algorithms.py`.
"""

import contextlib
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import types
from pathlib import Path

import torch
from filelock import FileLock
from torch.utils import cpp_extension

from textrl_env.utils.folders import cache_folder

NAME = "pretend"
SOURCE = Path(__file__).with_name("device.cpp")
LIBRARIES = ("torch", "torch_cpu", "c10", "torch_python")


def includes() -> list[str]:
    return [*cpp_extension.include_paths(), sysconfig.get_path("include")]


def missing() -> str | None:
    """Return what a build lacks; None: nothing."""
    compiler = cpp_extension.get_cxx_compiler()
    if sys.platform != "linux":
        return f"the pretend GPU is built on Linux only, and this is {sys.platform}"
    if shutil.which(compiler) is None:
        return f"the pretend GPU needs a C++ compiler: {compiler} is not there (or set CXX)"
    for header in ("torch/library.h", "Python.h"):
        if not any(Path(folder, header).exists() for folder in includes()):
            return f"the pretend GPU needs {header}, which is in none of {', '.join(includes())}"
    return None


def build() -> Path:
    """Return the compiled device, from the cache folder if it was built there for this Python and torch."""
    key = hashlib.sha256(f"{torch.__version__} {sys.version}".encode() + SOURCE.read_bytes()).hexdigest()[:16]
    library = cache_folder() / "pretend-gpu" / key / "pretend_device.so"
    library.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(library.with_suffix(".lock")):
        if not library.exists():
            unfinished = library.with_suffix(".unfinished")
            abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
            flags = ["-std=c++20", "-O0", "-fPIC", "-shared", "-w", abi, *(f"-I{folder}" for folder in includes())]
            links = [*(f"-L{folder}" for folder in cpp_extension.library_paths()), *(f"-l{name}" for name in LIBRARIES)]
            command = [cpp_extension.get_cxx_compiler(), *flags, str(SOURCE), "-o", str(unfinished), *links]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
            os.replace(unfinished, library)
    return library


@functools.cache
def register() -> torch.device:
    """Make the device known to torch in this process."""
    spec = importlib.util.spec_from_file_location("pretend_device", build())
    native = importlib.util.module_from_spec(spec)
    torch.utils.rename_privateuse1_backend(NAME)
    spec.loader.exec_module(native)
    torch._register_device_module(NAME, _functions(native))
    torch.utils.generate_methods_for_privateuse1_backend()
    # `Module.to` moves what lies under a CUDA model's parameters, and makes new parameters on other devices: an optimizer would lose them
    torch.__future__.set_swap_module_params_on_conversion(True)
    return torch.device(NAME, 0)


def _functions(native: types.ModuleType) -> types.ModuleType:
    """Return `torch.pretend`, as `torch.cuda` is for CUDA."""
    functions = types.ModuleType(f"torch.{NAME}")
    functions.is_available = functions.is_initialized = lambda: True
    functions.device_count = lambda: 1
    functions.current_device = lambda: 0
    functions._is_in_bad_fork = lambda: False
    functions._lazy_init = lambda: None
    functions.set_device = functions.current_stream = functions.synchronize = lambda device=None: None
    functions.device = lambda device=None: contextlib.nullcontext()
    functions.manual_seed = functions.manual_seed_all = lambda seed: native.manual_seed(seed & (2**64 - 1))
    functions.get_rng_state = lambda device=None: native.get_state()
    functions.set_rng_state = lambda state, device=None: native.set_state(state)
    functions.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16, torch.float32]
    return functions
