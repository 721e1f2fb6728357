"""Compile src/qianyan/native at install, where a compiler can; without it PyTorch's own ops serve.

The library needs neither torch nor Python to be built: plain C functions on plain arrays. OpenMP's
functions stay undefined when it is linked, because torch brings its own OpenMP library and two of
them would fight for the processor.
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = Path("src/qianyan/native")
LIBRARY = NATIVE / "libqianyan.so"
FEATURES = ("f", "bw", "vl", "dq", "bf16", "vnni")
FLAGS = (
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-fopenmp",
    "-fvisibility=hidden",
    "-mfma",
    "-mf16c",
    *(f"-mavx512{feature}" for feature in FEATURES),
    "-mprefer-vector-width=512",
)
COMPILE_S = 300


class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compile, and say so in the wheel's name; what fails is told and left out."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Run before the wheel is put together; `version` is "standard" or "editable"."""
        root = Path(self.root)
        (root / LIBRARY).unlink(missing_ok=True)
        problem = compile_library(root)
        if problem:
            self.app.display_warning(f"No native kernels, PyTorch's own serve: {problem}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_')}"
        if version == "standard":  # an editable install finds it in the source tree
            build_data["force_include"][str(root / LIBRARY)] = "qianyan/native/libqianyan.so"


def compile_library(root: Path) -> str | None:
    """Compile all sources into the library; give what was in the way, if anything was."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"they are for Linux on x86-64, this is {sys.platform} on {platform.machine()}."
    compiler = shutil.which(os.environ.get("CXX", "")) or shutil.which("g++")
    if compiler is None:
        return "there is no C++ compiler (g++)."
    made = []
    for source in sorted((root / NATIVE).glob("*.cpp")):
        made.append(root / NATIVE / f"{source.stem}.o")
        problem = run([compiler, *FLAGS, "-c", str(source), "-o", str(made[-1])])
        if problem:
            return problem
    problem = run([compiler, "-shared", *map(str, made), "-o", str(root / LIBRARY)])
    for file in made:
        file.unlink()
    return problem


def run(command: list[str]) -> str | None:
    """Run a compiler; give the first line of what it complains about."""
    try:
        done = subprocess.run(  # noqa: S603  (a compiler on our own sources)
            command, capture_output=True, text=True, timeout=COMPILE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    complaints = [line for line in done.stderr.splitlines() if "error" in line]
    return (complaints or done.stderr.splitlines() or [f"{command[0]} failed."])[0]
