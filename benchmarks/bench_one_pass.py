"""How long LSUV takes, next to one forward pass of the same model and to the `lsuv` package; writes one_pass.csv and one_pass.png.

    make bench        or        python benchmarks/bench_one_pass.py
"""
import platform, time, warnings
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
warnings.filterwarnings('ignore')
import matplotlib; matplotlib.use('agg')
import matplotlib.pyplot as plt
import pandas as pd, torch, torchvision
from torch import nn
from fastai.vision.all import xresnet50
from fastprogress.fastprogress import progress_bar
from lsuv import lsuv_with_singlebatch
from fastinit.all import *
from fastinit.article import simple_convnet

here,runs = Path(__file__).parent,7
models = dict(simple_convnet=simple_convnet, resnet18=torchvision.models.resnet18, xresnet50=lambda: xresnet50(n_out=10),
              densenet121=torchvision.models.densenet121, mobilenet_v3_small=torchvision.models.mobilenet_v3_small)

def forward(model, x):
    with torch.no_grad(): model(x)

def passes(model, f):
    "How often `f` calls the forward of the model"
    calls = []
    h = model.register_forward_pre_hook(lambda *_: calls.append(1))
    f()
    h.remove()
    return len(calls)

def worst(model, x):
    "Largest |std − 1| over the layers that are called, in a pass of its own with hooks of its own; batchnorm in training mode"
    stds,model = [],deepcopy(model).eval()
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._NormBase): m.train()
        if isinstance(m, affine_types): m.register_forward_hook(lambda m,i,o: stds.append(o.double().std().item()))
    forward(model, x)
    return max(abs(s-1) for s in stds)

def timed(f):
    t = time.perf_counter()
    f()
    return time.perf_counter()-t

def measure(name):
    "One row: medians of interleaved runs"
    torch.manual_seed(0)
    model,x = models[name]().train(),torch.randn(16,3,64,64)
    evaluating = deepcopy(model).eval()
    ours,theirs = deepcopy(model),deepcopy(model)
    peer = lambda: lsuv_with_singlebatch(theirs, x, verbose=False, do_orthonorm=False)
    row = dict(model=name, layers=len(init_layers(model)), passes=passes(ours, lambda: lsuv_(ours, x, pre=None)), peer_passes=passes(theirs, peer))
    row.update(worst=worst(ours, x), peer_worst=worst(theirs, x))
    times = []
    for _ in range(runs):
        fresh = deepcopy(model)
        times.append([timed(lambda: forward(model, x)), timed(lambda: forward(evaluating, x)), timed(lambda: lsuv_(fresh, x, pre=None)), timed(lambda: init_stats(model, x))])
    theirs = deepcopy(model)
    row['peer_s'] = timed(peer)
    row.update(pd.DataFrame(times, columns=['forward_s','forward_eval_s','lsuv_s','stats_s']).median())
    return {**row, 'ratio':row['lsuv_s']/row['forward_s'], 'ratio_eval':row['lsuv_s']/row['forward_eval_s'], 'speedup':row['peer_s']/row['lsuv_s']}

def main():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        df = pd.DataFrame([measure(n) for n in progress_bar(list(models))])
    machine = f"{torch.get_num_threads()} threads, {platform.machine()}; torch {torch.__version__}, lsuv {version('lsuv')}, Python {platform.python_version()}"
    df['machine'] = machine
    df.to_csv(here/'one_pass.csv', index=False, float_format='%.4g')
    _,ax = plt.subplots(figsize=(8,4), layout='constrained')
    y = range(len(df))
    ax.barh([i+0.2 for i in y], df.lsuv_s/df.forward_s, 0.4, color='#009E73', label='fastinit')
    ax.barh([i-0.2 for i in y], df.peer_s/df.forward_s, 0.4, color='#E69F00', label=f"lsuv {version('lsuv')}")
    for i,r in df.iterrows():
        for dy,v in ((0.2, r.ratio), (-0.2, r.peer_s/r.forward_s)): ax.text(v*1.05, i+dy, f'{v:.3g}', va='center')
    ax.set_yticks(list(y), df.model); ax.set_xscale('log'); ax.set_xlim(0.5, (df.peer_s/df.forward_s).max()*3)
    ax.axvline(1, color='0.5', ls='--', lw=1)
    ax.set_xlabel('time ÷ one forward pass without gradients (log scale)'); ax.legend(frameon=False, loc='lower right')
    ax.figure.savefig(here/'one_pass.png', dpi=110)
    print(df.drop(columns='machine').round(4).to_string(index=False)); print(machine)

if __name__=='__main__': main()
