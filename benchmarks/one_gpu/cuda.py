"""What the processes need in their environment to use a GPU."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

_LIBDEVICE = (
    "nvvm/libdevice/libdevice.10.bc",
    "nvidia/*/nvvm/libdevice/libdevice.10.bc",
    "jax_plugins/*/cuda/nvvm/libdevice/libdevice.10.bc",
    "jaxlib/cuda/nvvm/libdevice/libdevice.10.bc",
    "triton/backends/nvidia/lib/libdevice.10.bc",
)
_TOOLS = ("bin/{}", "nvidia/*/bin/{}", "jax_plugins/*/cuda/bin/{}", "triton/backends/nvidia/bin/{}")


def environment(library: str, device: str, cache: Path, base: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process.

    Args:
        library: ``"tensorflow"``, ``"jax"`` or ``"torch"``.
        device: ``"gpu"`` or ``"cpu"``.
        cache: a folder for what can be kept from one process to the next.
        base: this process's environment.
    """
    env = {k: v for k, v in base.items() if k != "TF_CONFIG" and not k.startswith("TFACCEL_")}
    env |= {"TF_CPP_MIN_LOG_LEVEL": "1", "KERAS_BACKEND": "tensorflow", "PYTHONUNBUFFERED": "1"}
    if library == "jax":
        env |= {"KERAS_BACKEND": "jax", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        env.pop("XLA_FLAGS", None)  # those are TensorFlow's
    if device == "cpu":
        return env | {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
    # A card newer than TensorFlow's build has its kernels compiled by the driver: once, then kept.
    env.setdefault("CUDA_CACHE_MAXSIZE", str(4 << 30))
    env.setdefault("CUDA_CACHE_PATH", str(cache / "kernels"))
    # The next process is made ready while one trains.
    env["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    if library == "tensorflow" and "XLA_FLAGS" not in env:
        toolkit = cuda_data_dir(cache / "cuda", base)
        if toolkit is not None:
            env["XLA_FLAGS"] = f"--xla_gpu_cuda_data_dir={toolkit}"
    return env


def cuda_data_dir(made: Path, base: Mapping[str, str]) -> Path | None:
    """Where XLA finds `libdevice` and `ptxas`: a folder of links to what is installed.

    Args:
        made: where to make it.
        base: may name a toolkit as ``CUDA_HOME``.

    Returns:
        None when there is no `libdevice`.
    """
    roots = [Path(base[name]) for name in ("CUDA_HOME", "CUDA_PATH") if base.get(name)]
    if compiler := shutil.which("nvcc"):
        roots.append(Path(compiler).resolve().parents[1])
    roots += [Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"))]
    roots += [Path(entry) for entry in sys.path if entry]
    libdevice = _first(roots, _LIBDEVICE)
    if libdevice is None:
        return None
    _link(libdevice, made / "nvvm" / "libdevice" / "libdevice.10.bc")
    for tool in ("ptxas", "nvlink", "fatbinary"):
        found = _first(roots, [pattern.format(tool) for pattern in _TOOLS])
        if found is not None:
            _link(found, made / "bin" / tool)
    return made


def _first(roots: Iterable[Path], patterns: Iterable[str]) -> Path | None:
    patterns = list(patterns)
    for root in roots:
        for pattern in patterns:
            for path in sorted(root.glob(pattern)):
                return path.resolve()
    return None


def _link(target: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        os.symlink(target, link)
