"""Which initialization a residual network without normalization needs: the sweeps of `residual.ini`, targets tried, published answers.

    python benchmarks/residual.py compare --out benchmarks/residual/compare_digits    (then as fastinit-article)
    python benchmarks/residual.py losses benchmarks/residual/compare_digits           (of 50 steps, at the best rate of each)
"""
import sys
from functools import partial
from pathlib import Path
import torch, torchvision.models as tv
from torch import nn
from fastai.vision.all import Callback, CancelFitException, ResBlock, noop, xresnet18, xresnet50, xresnet101, pd
from torch.nn.utils.parametrizations import weight_norm
from fastinit.all import *
from fastinit.article import (architectures, best_table, get_data, inits, main, model_changes, new_learner, plain_convnet, prog,
                              read_results, read_run, remove_norm)

here = Path(__file__).parent

# Models

def plain_mlp(c=10, act_cls=nn.ReLU, depth=100, width=128, size=16):
    "`depth` linear layers without shortcuts"
    hidden = [o for _ in range(depth-2) for o in (act_cls(), nn.Linear(width, width))]
    return nn.Sequential(nn.Flatten(), nn.Linear(3*size*size, width), *hidden, act_cls(), nn.Linear(width, c))

def vit(c=10, act_cls=nn.GELU, size=16):
    "A transformer of 12 blocks without LayerNorm"
    m = tv.VisionTransformer(image_size=size, patch_size=4, num_layers=12, num_heads=4, hidden_dim=64, mlp_dim=128,
                             num_classes=c, norm_layer=nn.Identity)
    nn.init.normal_(m.heads.head.weight, std=0.02) # torchvision's zeros would stay zeros under every initialization
    return m

def narrow(arch, norm, c=10, act_cls=nn.ReLU): return norm(arch(n_out=c, act_cls=act_cls, widen=0.25))

for arch in (xresnet18, xresnet50, xresnet101):
    for k,norm in {'':remove_norm, '_bn':noop}.items():
        architectures[f'{arch.__name__}{k}_narrow'] = partial(narrow, arch, norm)
architectures.update(mlp100=plain_mlp, convnet100=partial(plain_convnet, 100, width=32), vit=vit)

# What to aim at

@torch.no_grad()
def by_stage_(model, *xb):
    "Each branch at about 1/√(number of branches in its stage): the layers before it are corrected again after it"
    lsuv_residual_(model, *xb, branch_scale='auto')
    ends = residual_branches(model, *xb)
    sizes = pd.Series([n.split('.')[0] for n in ends]).value_counts()
    for n in ends:
        for p in model.get_submodule(n).parameters(): p *= (len(ends)/sizes[n.split('.')[0]])**0.5
    return lsuv_(model, *xb, pre=None, center='channel', layers=[n for n in init_layers(model) if n not in ends])

@torch.no_grad()
def head_(scale, model, *xb):
    "`lsuv_residual_`, with a quieter classifier"
    report = lsuv_residual_(model, *xb)
    for p in list(init_layers(model).values())[-1].parameters(): p *= scale
    return report

# The published answers

class Scale(nn.Module):
    "A learnable factor"
    def __init__(self, value):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(value)))
    def forward(self, x): return x*self.scale

class Shift(nn.Module):
    "A learnable summand"
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))
    def forward(self, x): return x+self.shift

class Divide(nn.Module):
    "A constant divisor"
    def __init__(self, by):
        super().__init__()
        self.by = by
    def forward(self, x): return x/self.by

def blocks(model): return [m for m in model.modules() if isinstance(m, ResBlock)]

def with_scale(value, model):
    "A learnable factor at the end of each branch (SkipInit: De & Smith 2020, section 3; ReZero: Bachlechner et al. 2020)"
    for b in blocks(model): b.convpath = nn.Sequential(*b.convpath, Scale(value))
    return model

def fixup_model(model):
    "Fixup's learnable factor, and a summand before each convolution of a branch (Zhang et al. 2019, section 4)"
    for b in blocks(model): # after each convolution there is a bias already
        b.convpath = nn.Sequential(*[o for m in b.convpath for o in (Shift(), m)], Scale(1.))
    return model

@torch.no_grad()
def fixup_(model, *xb):
    "Kaiming; in branches times L^(−1/(2m−2)), the last layer and the classifier 0"
    report,bs = kaiming_(model),blocks(model)
    for b in bs:
        convs = [m for m in b.convpath.modules() if isinstance(m, nn.Conv2d)]
        for m in convs[:-1]: m.weight *= len(bs)**(-1/(2*len(convs)-2))
        convs[-1].weight.zero_()
    for p in list(init_layers(model).values())[-1].parameters(): p.zero_()
    return report

def nf_model(model, alpha=0.2):
    """x + α·f(x/β), where β² = 1 + α²·(blocks before it in its stage) is the expected variance (Brock et al. 2021, section 3);
    without their weight standardization"""
    for stage in model:
        if not isinstance(stage, nn.Sequential): continue
        for i,b in enumerate(b for b in stage if isinstance(b, ResBlock)):
            b.convpath = nn.Sequential(Divide((1+alpha**2*i)**0.5), *b.convpath, Divide(1/alpha))
    return model

def weight_norm_model(model):
    "Weight normalization (Salimans & Kingma 2016)"
    for m in init_layers(model).values(): weight_norm(m)
    return model

@torch.no_grad()
def weight_norm_(model, *xb):
    "Its data-dependent initialization (section 3): each channel at mean 0 and std 1, layer after layer"
    def _hook(m, inp, out):
        dims = [d for d in range(out.ndim) if d!=1]
        sd,mean = torch.std_mean(out, dims)
        g = m.parametrizations.weight.original0
        g /= sd.view(-1, *[1]*(g.ndim-1))
        m.bias.copy_((m.bias-mean)/sd)
        shape = (-1, *[1]*(out.ndim-2))
        return (out-mean.view(shape))/sd.view(shape)
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for m in layers:
        m.parametrizations.weight.original1.normal_(0, 0.05)
        m.parametrizations.weight.original0.copy_(torch.norm_except_dim(m.parametrizations.weight.original1, 2, 0))
        m.bias.zero_()
    hooks = [m.register_forward_hook(_hook) for m in layers]
    model(*xb)
    for h in hooks: h.remove()
    return init_stats(model, *xb)

inits.update({f'branch_{v}':('lsuv_residual', dict(branch_scale=v)) for v in (1,0.5,0.1,0.03,'auto')},
    branch_stage=(by_stage_, {}), branch_zero=('lsuv_residual', dict(branch_scale=None)), per_layer=('lsuv_residual', dict(center=True)),
    uncentered=('lsuv_residual', dict(center=False)), **{'head_0.1':(partial(head_, 0.1), {}), 'head_zero':(partial(head_, 0.), {})},
    fixup=(fixup_, {}), skipinit=('kaiming', {}), nf_beta=('kaiming', {}), weight_norm=(weight_norm_, {}))
model_changes.update(branch_zero=partial(with_scale, 0.), skipinit=partial(with_scale, 0.), fixup=fixup_model, nf_beta=nf_model,
                     weight_norm=weight_norm_model)

# The loss of the first steps

class FirstLosses(Callback):
    "Keeps the loss of each of the first `n` batches, then ends the fit"
    def __init__(self, n): self.n,self.losses = n,[]
    def after_loss(self):
        if not self.training: return
        self.losses.append(self.loss.item())
        if len(self.losses)==self.n: raise CancelFitException()

def losses(folder, n=50):
    "Write losses.csv: the loss of the first `n` steps of each initialization's runs at its best rate"
    results,_ = read_results(folder)
    cfg,rows = read_run(folder)[0],[]
    dls = get_data(**{k:cfg[k] for k in ('data','size','bs','n_train','n_valid')})
    for k,lr in best_table(results).best_lr.items():
        for seed in sorted(results.seed.unique()):
            learn,first = new_learner(dls, cfg['model'], k, int(seed), cfg['opt']),FirstLosses(n)
            with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(cfg['epochs'], float(lr), cbs=first)
            rows += [dict(scheme=k, lr=lr, seed=seed, step=i+1, loss=v) for i,v in enumerate(first.losses)]
    pd.DataFrame(rows).to_csv(Path(folder)/'losses.csv', index=False, float_format='%.6g')

if __name__=='__main__':
    prog[:] = ['python','benchmarks/residual.py']
    torch.set_flush_denormal(True) # of a vanishing signal, which would take four times as long
    if sys.argv[1:2]==['losses']: losses(*sys.argv[2:])
    else:
        sys.argv += [] if '--settings' in sys.argv else ['--settings', str(here/'residual.ini')]
        main()
