"""Puts the package on the path, and the fake of vLLM where there is no real one."""

import importlib.util
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

if importlib.util.find_spec("vllm") is None:
    sys.path.append(str(HERE / "fake_vllm"))
