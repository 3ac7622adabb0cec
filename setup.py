"""Packages tfaccel, with the top-level `strategies/` package installed as `tfaccel.strategies`.

`tfaccel/strategies` is a relative symbolic link to `../strategies`; setuptools follows it, so the
same files reach an editable install, a wheel and an sdist.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def version() -> str:
    """Reads `__version__` as text: a build environment cannot import what tfaccel imports."""
    text = (HERE / "tfaccel" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise RuntimeError('tfaccel/__init__.py has no line `__version__ = "X.Y.Z"`; add one')
    return found.group(1)


def readme() -> str:
    """The long description."""
    path = HERE / "README.md"
    return path.read_text(encoding="utf-8") if path.exists() else ""


if not (HERE / "tfaccel" / "strategies" / "__init__.py").is_file():
    raise RuntimeError(
        "tfaccel/strategies does not lead to the folder strategies/: the checkout made no symbolic "
        "links; run `git config core.symlinks true` and check the files out again"
    )

setup(
    name="tfaccel",
    version=version(),
    description="A strategy is the only thing that changes: Keras 3 on many devices and workers",
    long_description=readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["tfaccel", "tfaccel.*"]),
    package_data={"tfaccel": ["py.typed", "planner/devices.toml"]},
    python_requires=">=3.10",
    # TensorFlow itself is an extra: `tensorflow` and `tensorflow-cpu` hold the same package, and a
    # requirement on either would install it over the other.
    install_requires=["keras>=3.8", "numpy", "absl-py", "rich", "tomli; python_version < '3.11'"],
    extras_require={
        "cpu": ["tensorflow-cpu>=2.18"],
        "gpu": ["tensorflow[and-cuda]>=2.18"],
        "mpi": ["mpi4py>=4", "mpich>=4.2"],
        "ray": ["ray[train]>=2.60"],
        # The check goes through names that JAX keeps to itself: exactly these versions.
        "tpu-check": [
            f"{name}; python_version >= '3.11'"
            for name in ("jax==0.10.2", "jaxlib==0.10.2", "libtpu==0.0.52")
        ],
        # Exact versions: what `tfaccel.fpga` allows and refuses was found out on these.
        "fpga": [
            f"{one}; python_version >= '3.11' and python_version < '3.13'"
            for one in ("hls4ml==1.3.0", "hgq2==0.2.0", "da4ml==0.6.0", "numpy<2.5", "matplotlib")
        ],
        "examples": ["scikit-learn"],
        "docs": [
            f"{one}; python_version >= '3.11'"
            for one in ("mkdocs-material==9.8.*", "mkdocstrings-python==2.*")
        ],
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.8",
            "tensorboard",
            # Run the notebook of the examples; its pictures need the last.
            "nbclient",
            "ipykernel",
            "matplotlib",
            # The API types of Kubernetes and JobSet, against which manifests are checked.
            "kubeflow-trainer-api>=2.3",
            "pyyaml",
            # A run on its datasets resumes at the batch.
            "grain",
            # Reads what checkpoints are written as.
            "safetensors",
            "ruff==0.17.*",
            "mypy==2.4.*",
            "setuptools>=77",
        ],
    },
    entry_points={"console_scripts": ["tfaccel = tfaccel.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
