"""Run a task as one of several ranks: `python run_task.py pretrain|finetune CONFIGURATION`. A program of tests."""

from __future__ import annotations

import os
import sys

import torch

from cope_prep.encoders.finetune import FinetuneConfig, FinetuneTask
from cope_prep.encoders.pretrain import PretrainConfig, PretrainTask
from cope_prep.encoders.program import run_training

if __name__ == "__main__":
    torch.set_num_threads(1)
    config, task = {"pretrain": (PretrainConfig, PretrainTask), "finetune": (FinetuneConfig, FinetuneTask)}[
        sys.argv[1]
    ]
    run_training(config.model_validate_json(sys.argv[2]), task)
    sys.stdout.flush()
    os._exit(0)  # with fsdp2, torch 2.13 may crash at exit on a CPU (encoders/distributed.py)
