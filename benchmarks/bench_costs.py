"""What else costs: memory, the callback in a fit, the report, orthogonal weights, the import, and how exact 16-bit models are; writes costs.csv and limit.csv.

    make bench        or        python benchmarks/bench_costs.py
"""
import json, subprocess, sys
from fastai.callback.core import CancelFitException
from fastai.data.core import DataLoaders
from fastai.callback.hook import ActivationStats
from fastai.learner import Learner, Callback
from torch.utils.data import TensorDataset
import matplotlib.pyplot as plt
from fastinit.stats import LayerStats, Moments
from side_by_side import *

class StopAtFirst(Callback):
    "Ends a fit when the first batch is about to be used"
    def before_batch(self): raise CancelFitException()

class StopAfterFirst(Callback):
    "Ends a fit after its first batch"
    def after_batch(self): raise CancelFitException()

def row(what, measured, limit, unit='×', note=''): return dict(what=what, measured=measured, limit=limit, unit=unit, reached=bool(measured<=limit), note=note)

_memory = '''
import resource, sys, torch, torchvision.models as tv
from fastai.vision.all import xresnet50
from fastinit.all import *
torch.manual_seed(0)
from fastinit.article import simple_convnet
model,x = dict(vgg11=tv.vgg11, xresnet50=lambda: xresnet50(n_out=10), simple_convnet=simple_convnet)[sys.argv[1]]().train(),torch.randn(16,3,96,96)
mb = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
def peak(f): # of torch's own allocations, over what was there before
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as p: f()
    now = top = 0
    for e in sorted((e for e in p.profiler.kineto_results.events() if e.name()=='[memory]'), key=lambda e: e.start_ns()):
        now += e.nbytes(); top = max(top, now)
    return top/2**20
def forward():
    with torch.no_grad(): model(x)
fs = dict(forward=forward, lsuv_keep=lambda: lsuv_(model, x, pre=None), lsuv=lambda: lsuv_(model, x))
f = fs[sys.argv[2]]
outs = []
hs = [m.register_forward_hook(lambda m,i,o: outs.append(o.numel()*4/2**20)) for m in model.modules() if not list(m.children())]
if sys.argv[2]=='forward':
    forward()
for h in hs: h.remove()
if sys.argv[2]!='forward': f()
print(mb(), peak(f), sum(p.numel() for p in model.parameters())*4/2**20, max(outs, default=0))
'''

def memory(name, runs=2):
    "Peak beyond that of a forward pass, in MiB, each in a process of its own"
    res = {}
    for k in ('forward','lsuv_keep','lsuv'):
        out = [list(map(float, subprocess.run([sys.executable, '-W', 'ignore', '-c', _memory, name, k], capture_output=True, text=True, check=True).stdout.split())) for _ in range(runs)]
        res[k] = pd.DataFrame(out).median()
    weights,largest = res['forward'][2],res['forward'][3]
    for k,label in (('lsuv_keep','pre=None'),('lsuv',"pre='kaiming'")):
        for i,how in ((0,'process'),(1,'torch')):
            yield row(f'peak memory over that of a forward pass, {name}, {label} ({how})', res[k][i]-res['forward'][i], weights+largest, 'MiB', f'limit: weights {weights:.0f} + largest output {largest:.0f}')

def fit(model=xresnet50, bs=32, size=64, runs=9):
    "What LSUVCallback adds before the first batch of a fit, report included"
    x,y = torch.randn(20*bs,3,size,size),torch.randint(0,10,(20*bs,))
    ds = TensorDataset(x, y)
    dls = DataLoaders.from_dsets(ds, ds, bs=bs, num_workers=0)
    name,model = model.__name__,model(n_out=10)
    def _start(*cbs, stop=StopAtFirst):
        learn = Learner(dls, model, loss_func=nn.functional.cross_entropy, cbs=[stop(), *cbs])
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
    t = medians({'plain':_start, 'lsuv':lambda: _start(LSUVCallback()), 'forward':lambda: forward(model.train(), x[:bs]), 'batch':lambda: dls.train.new().one_batch(),
                 'kaiming':lambda: kaiming_(model), 'stats':lambda: init_stats(model, x[:bs]),
                 'fastai':lambda: _start(ActivationStats(), stop=StopAfterFirst)}, runs=runs)
    yield row(f'time that LSUVCallback adds before the first batch of a fit, {name}, batch {bs}×3×{size}×{size}', t['lsuv']-t['plain'], 2*t['forward']+t['batch'], 's',
              f"limit: 2 forward passes of {t['forward']:.3f} s + a batch of data of {t['batch']:.4f} s; drawing new Kaiming weights alone takes {t['kaiming']:.3f} s of it")

    yield row('init_stats ÷ a fit of one batch with fastai\'s ActivationStats, the same model and batch', t['stats']/t['fastai'], 1.)

def report(depth=150):
    "init_report on a model of 150 layers: statistics, then drawing"
    model,x = deep_convnet(depth//2, 32),torch.randn(32,3,32,32)
    model = nn.Sequential(*[o for m in model for o in ((m, nn.BatchNorm2d(m.out_channels)) if isinstance(m, nn.Conv2d) else (m,))]).train()
    def _draw():
        fig = init_stats(model, x).plot()[0].figure
        fig.canvas.draw()
        plt.close(fig)
    t = medians({'forward':lambda: forward(model, x), 'stats':lambda: init_stats(model, x), 'both':_draw})
    yield row(f'statistics of a model of {depth} layers ÷ a forward pass', t['stats']/t['forward'], 1.5)
    yield row('drawing them', t['both']-t['stats'], 1., 's')

def orthogonal(shapes=((512,512),(512,1152),(512,4608),(2048,512),(1000,4096),(4096,4096),(4096,25088))):
    "Beside `torch.nn.init.orthogonal_`, layer by layer"
    for shape in shapes:
        m,w = nn.Linear(shape[1], shape[0], bias=False),torch.empty(shape)
        big = max(shape)>10000
        t = medians({'torch':lambda: nn.init.orthogonal_(w), 'fastinit':lambda: orthogonal_(m), 'product':lambda: w@w.T}, runs=1 if big else 5, warm=0 if big else 1)
        q = m.weight.detach() if shape[0]<=shape[1] else m.weight.detach().T
        yield row(f'orthogonal_ ÷ torch.nn.init.orthogonal_, weight {shape[0]}×{shape[1]}', t['fastinit']/t['torch'], 1.05 if max(shape)<2*min(shape) else 1., '×',
                  f"{t['fastinit']:.3f} s; |QᵀQ − I| ≤ {(q@q.T-torch.eye(len(q))).abs().max():.0e}; one product WWᵀ takes {t['product']:.3f} s" + ('; torch\'s own way below an aspect of 2' if max(shape)<2*min(shape) else ''))

def imports():
    "What fastinit adds to importing fastai"
    def _run(code): return lambda: subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)
    t = medians({'fastai':_run('import fastai.vision.all'), 'fastinit':_run('import fastai.vision.all, fastinit.all')}, runs=5)
    yield row('import fastinit.all after fastai.vision.all', t['fastinit']-t['fastai'], 0.2, 's', f"fastai itself {t['fastai']:.2f} s")

def precision():
    "The std that the report gives beside that of the very outputs in float64"
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        torch.manual_seed(0)
        model,x,outs = deep_convnet(30, 64).to(dtype),torch.randn(16,3,32,32).to(dtype),{}
        kaiming_(model)
        for n,m in model.named_modules():
            if isinstance(m, nn.Conv2d): m.register_forward_hook(lambda m,i,o,n=n: outs.update({n:o.double().std().item()}))
        report = init_stats(model, x)
        yield row(f'largest relative error of a std in the report, {str(dtype)[6:]} model', max(abs(report[n]['std']/s-1) for n,s in outs.items()), 1e-5, '', 'beside float64 statistics of the same outputs')

def limit(model=xresnet50, runs=21):
    "Where the time of LSUV goes beyond its two forward passes: what must be done, each alone and without gaps, beside all of it"
    torch.manual_seed(0)
    model,x,outs,moments = model(n_out=10).train(),torch.randn(16,3,64,64),{},Moments()
    layers = list(init_layers(model).values())
    hooks = [m.register_forward_hook(lambda m,i,o: outs.update({m:o})) for m in LayerStats(model).modules]
    forward(model, x)
    for h in hooks: h.remove()
    parts = {'forward':lambda: forward(model, x), 'lsuv_':lambda: ours(model, x), 'a copy of the weights':lambda: [m.weight.clone() for m in layers],
             'mean and std of what is corrected':lambda: [moments(outs[m]) for m in layers], 'scaling it':lambda: [outs[m].mul_(1.) for m in layers],
             'scaling the weights':lambda: [m.weight.mul_(1.) for m in layers], 'mean and std in the second pass, normalizations too':lambda: [moments(o) for o in outs.values()]}
    with torch.no_grad(): t = medians(parts, runs=runs)
    t['the rest beyond a second forward pass: Python between the layers, and the report'] = t['lsuv_']-2*t['forward']-sum(t[k] for k in list(parts)[2:])
    return pd.DataFrame([dict(what=k, seconds=v, share_of_forward=v/t['forward']) for k,v in t.items()])

def draw(df):
    "The chart of costs.csv"
    share,units = (df.measured/df.limit).clip(lower=0),df.unit.fillna('') # a file has no empty text
    ax = plt.subplots(figsize=(10,0.36*len(df)+1), layout='constrained')[1]
    ax.barh(range(len(df)), share, color=['#009E73' if o else '#D55E00' for o in df.reached])
    white = dict(facecolor='white', edgecolor='none', pad=0.5) # over the line at the limit
    for i,r in df.iterrows(): ax.text(share[i]+0.02, i, f'{r.measured:.3g} of {r.limit:.3g} {units[i]}', va='center', fontsize=9, bbox=white)
    ax.set_yticks(range(len(df)), df.what, fontsize=9); ax.invert_yaxis(); ax.margins(x=0.42, y=0.01)
    ax.axvline(1, color='0.5', ls='--', lw=1); ax.set_xlabel('measured ÷ the limit that was set beforehand')
    save_png(ax.figure, here/'costs.png', dpi=110)

def main():
    save(limit(), 'limit')
    df = pd.DataFrame([r for f in (lambda: memory('xresnet50'), lambda: memory('vgg11'), fit, report, orthogonal, imports, precision) for r in f()])
    save(df, 'costs', show=False)
    draw(df)
    print(df.to_string(index=False)); print(machine)

if __name__=='__main__':
    keep_memory()
    main()
