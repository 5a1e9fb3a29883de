"""Any method on several processes: torchrun --nproc-per-node 2 examples/torchrun_loop.py

Each process takes its part of each batch. With sync="global" all perturb alike, as one process
would; by default each process perturbs along its own gradient, as in the papers.
"""

import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch.nn.parallel import DistributedDataParallel

import steppe


def main() -> None:
    on_gpu = torch.cuda.is_available()
    rank, size = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")

    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32, device=device) / 16
    y = torch.tensor(digits.target, device=device)
    train, test = slice(0, 1400), slice(1400, None)

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step = steppe.SAM(rho=0.05).bind(DistributedDataParallel(model), optimizer, sync="global")

    for _ in range(10):
        for rows in torch.randperm(1400).split(70):  # the same on all processes: they have the same seed
            mine = rows[rank::size]
            step(x[train][mine], y[train][mine])

    if rank == 0:
        accuracy = (model(x[test]).argmax(1) == y[test]).float().mean()
        print(f"{size} processes, test accuracy {accuracy:.1%}, {step.passes}")


dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
main()
dist.barrier()  # no process may exit while another still trains
dist.destroy_process_group()
