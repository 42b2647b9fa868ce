"What the benchmarks share: the models, fastinit's peers, interleaved timing, and the machine that the figures come from."
import ctypes, platform, sys, time, warnings
from copy import deepcopy
from functools import partial
from importlib.metadata import version
from pathlib import Path
warnings.filterwarnings('ignore')
import matplotlib; matplotlib.use('agg')
import pandas as pd, torch, torchvision.models as tv
from torch import nn
from fastai.vision.all import xresnet50
from fastinit.all import *
from fastinit.article import simple_convnet
from fastinit.article.runs import processor
from fastinit.looks import save_png
from lsuv import lsuv_with_singlebatch
from torchbearer.callbacks.lsuv import LSUV as TorchbearerLSUV

here = Path(__file__).parent
libs = ('torch','torchvision','fastai','lsuv','torchbearer')
device = torch.device(sys.argv[sys.argv.index('--device')+1] if '--device' in sys.argv else 'cpu')
on_gpu = device.type=='cuda'
suffix = f'_{device.type}' if on_gpu else '' # of the files that are written
threads = '' if on_gpu else f', {torch.get_num_threads()} threads'
machine = f"{processor()}{threads}; Python {platform.python_version()}, {', '.join(f'{o} {version(o)}' for o in libs)}"

def without_norm(model):
    "`model` with every batchnorm replaced by an identity"
    for n,m in list(model.named_modules()):
        if isinstance(m, nn.BatchNorm2d): model.set_submodule(n, nn.Identity())
    return model

def deep_mlp(depth=200, width=512): return nn.Sequential(*[o for _ in range(depth) for o in (nn.Linear(width,width), nn.ReLU())])

def deep_convnet(depth, width=16):
    hidden = [o for _ in range(depth-1) for o in (nn.ReLU(), nn.Conv2d(width,width,3,padding=1))]
    return nn.Sequential(nn.Conv2d(3,width,3,padding=1), *hidden)

#: Name → function of the image size that makes the model
models = dict(simple_convnet=lambda size: simple_convnet(), vgg11=lambda size: tv.vgg11(), resnet18=lambda size: tv.resnet18(),
    xresnet50=lambda size: xresnet50(n_out=10), xresnet50_no_norm=lambda size: without_norm(xresnet50(n_out=10)),
    densenet121=lambda size: tv.densenet121(), mobilenet_v3_large=lambda size: tv.mobilenet_v3_large(),
    efficientnet_b0=lambda size: tv.efficientnet_b0(), convnext_tiny=lambda size: tv.convnext_tiny(),
    swin_t=lambda size: tv.swin_t(), vit_b_32=lambda size: tv.vit_b_32(image_size=size), mlp_200=lambda size: deep_mlp())

def make(name, size):
    "A new model in training mode, on the device"
    return models[name](size).to(device).train()

def batch(name, bs, size, vectors=512): # vectors come in larger batches
    return (torch.randn(vectors,512) if name=='mlp_200' else torch.randn(bs,3,size,size)).to(device)

def ours(model, x): lsuv_(model, x, pre=None)
def unverified(model, x): lsuv_(model, x, pre=None, verify=False)
def lsuv_pkg(model, x): lsuv_with_singlebatch(model, x, do_orthonorm=False, verbose=False)
def torchbearer_pkg(model, x): TorchbearerLSUV().init_model(model, x, do_orthonorm=False)

@torch.no_grad()
def course(model, x, tol=1e-3, most=10):
    """The fastai course's way, written anew: hook a layer, run the whole model until its mean and std are right; `most` attempts,
    or some layers would loop forever"""
    seen = {}
    for m in model.modules():
        if not isinstance(m, (nn.Linear, nn.modules.conv._ConvNd)): continue
        h = m.register_forward_hook(lambda m,i,o: seen.update(std=o.std(), mean=o.mean()))
        for _ in range(most):
            seen.clear()
            model(x)
            if not seen or abs(seen['std']-1)<=tol and (m.bias is None or abs(seen['mean'])<=tol): break
            if m.bias is not None: m.bias -= seen['mean']
            m.weight /= seen['std']
        h.remove()

peers = {'fastinit':ours, 'lsuv':lsuv_pkg, 'torchbearer':torchbearer_pkg, 'course':course}
colors = {'fastinit':'#009E73', 'lsuv':'#E69F00', 'torchbearer':'#CC79A7', 'course':'#0072B2', 'forward':'0.5'}

def forward(model, x):
    with torch.no_grad(): model(x)

def passes(model, f):
    "How often `f` calls the forward of the model"
    calls = []
    h = model.register_forward_pre_hook(lambda *_: calls.append(1))
    f()
    h.remove()
    return len(calls)

def worst(model, x, train_norm):
    """Largest |std − 1| over the linear and convolution layers that are called and not zero, in a pass and with hooks of its own;
    batchnorm as the method saw it"""
    stds,model = [],deepcopy(model).eval()
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._NormBase): m.train(train_norm)
        if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd)) and m.weight.any():
            m.register_forward_hook(lambda m,i,o: stds.append(o.double().std().item()))
    forward(model, x)
    errors = [abs(s-1) for s in stds]
    return max(errors) if all(e==e for e in errors) else float('nan') # a NaN hides in `max`

def finish():
    "Wait for what the GPU still has to do"
    if on_gpu: torch.cuda.synchronize()

def timed(f):
    finish()
    t = time.perf_counter()
    f()
    finish()
    return time.perf_counter()-t

def peak_mib(f):
    "Memory that `f` needs on the GPU at most, beyond what is there already"
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    f()
    return (torch.cuda.max_memory_allocated()-before)/2**20

def keep_memory():
    """Memory once taken stays with the process. Otherwise glibc gives it back and takes it anew, and what that costs a call depends on the
    call before it: the same forward pass of a resnet18 took 206 ms or 249 ms, with 10,000 or 35,000 page faults."""
    if sys.platform!='linux': return
    M_TRIM_THRESHOLD,M_MMAP_MAX = -1,-4
    libc = ctypes.CDLL(None)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31-1)
    libc.mallopt(M_MMAP_MAX, 0)

def interleaved(fs, runs=7, warm=1, limit=float('inf')):
    "Name → list of seconds: the functions in turn, `runs` times; one that takes longer than `limit` in all is not started again"
    res = {k:[] for k in fs}
    for i in range(runs+warm):
        for k,f in fs.items():
            if sum(res[k])>limit: continue
            t = timed(f)
            if i>=warm or t>limit/runs: res[k].append(t)
    return res

def medians(fs, **kwargs): return {k:pd.Series(v).median() for k,v in interleaved(fs, **kwargs).items()}

def save(df, name, show=True):
    "Write the figures, each row with the machine it comes from"
    if 'machine' not in df: df = df.assign(machine=machine)
    df.to_csv(here/f'{name}{suffix}.csv', index=False, float_format='%.4g')
    if show: print(f'{name}\n{df.drop(columns="machine").round(4).to_string(index=False)}\n{machine}\n')
