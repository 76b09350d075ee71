"""Run Triton kernels on a GPU where there is one, else in the interpreter, which must be chosen before imports."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
