"""CIFAR-10: which activations train from which initialization in the LSUV paper's FitNet-4, and what `lsuv_residual` is worth.

    python benchmarks/cifar.py                               (all of cifar.ini, seed by seed)
    python benchmarks/cifar.py fitnet4_relu --seeds 0 --out benchmarks/cifar/fitnet4_relu    (then as fastinit-article)

Needs the images in a folder cifar10_20k: train and test, one folder a class.
"""
import sys
from functools import partial
from pathlib import Path
import torch
from torch import nn
from fastinit.article import architectures, main
import residual # noqa: F401 its narrow networks and SkipInit
from sweep import prepare, run_steps

class Maxout(nn.Module):
    "The larger of each two channels"
    def forward(self, x): return torch.maximum(*x.chunk(2, 1))

def fitnet4(act, c=10, act_cls=None):
    "The LSUV paper's thin deep network: 17 convolutions and two linear layers; without its dropout"
    pieces = 2 if act is Maxout else 1
    def _block(ni, *widths):
        for nf in widths:
            yield from (nn.Conv2d(ni, nf*pieces, 3, padding=1), act())
            ni = nf
    return nn.Sequential(*_block(3, 32, 32, 32, 48, 48), nn.MaxPool2d(2), *_block(48, *[80]*6), nn.MaxPool2d(2), *_block(80, *[128]*6),
                         nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(128, 500*pieces), act(), nn.Linear(500, c))

activations = dict(maxout=Maxout, relu=nn.ReLU, leaky=partial(nn.LeakyReLU, 0.333), tanh=nn.Tanh, sigmoid=nn.Sigmoid)
architectures.update({f'fitnet4_{k}':partial(fitnet4, act) for k,act in activations.items()})

sections = 'residual','batchnorm',*(f'fitnet4_{k}' for k in activations),'residual_bfloat16','batchnorm_bfloat16'
steps = [(k, dict(out=str(Path(__file__).with_suffix('')/k))) for k in sections]

if __name__=='__main__':
    given = sys.argv[1:]
    prepare(__file__)
    if given: main()
    else: run_steps(__file__, steps)
