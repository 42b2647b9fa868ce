"""`lsuv_` on whole architectures, with random weights and small images: one pass, every called layer at std 1, nothing else changed.

A few in `make test`; all of them by `make zoo`, which writes benchmarks/zoo.csv and zoo.png.
"""
import os, time
from functools import partial
from pathlib import Path
import pandas as pd, pytest, torch, torchvision
import fastai.vision.models.xresnet as xresnet
from fastinit.all import *
from conftest import AFFINE, Unchanged, outputs

WHOLE = bool(os.environ.get('FASTINIT_ZOO'))
FEW = ['alexnet','squeezenet1_1','resnext50_32x4d','mobilenet_v2','efficientnet_b0','vit_b_32','maxvit_t','fcn_resnet50','r3d_18','xresnet34_deep']
LEFT_OUT = dict(mvit_v1_b='made for 16 images of 224 pixels only', mvit_v2_s='made for 16 images of 224 pixels only', xsenet154='cannot be built in fastai 2.8')
rows = []

def names():
    fastais = [n for n in xresnet.__all__ if n.startswith(('xresnet','xse','xresnext'))]
    known = [n for n in torchvision.models.list_models()+fastais if n not in LEFT_OUT]
    return known if WHOLE else FEW

def build(name):
    "(model, its inputs)"
    if hasattr(xresnet, name): return getattr(xresnet, name)(n_out=10),(torch.randn(4,3,64,64),)
    kw,size = {},64
    if name.startswith('vit_'): kw['image_size'] = size = 56 if name=='vit_h_14' else 64
    if name.endswith(('googlenet','inception_v3')): kw,size = dict(init_weights=False),128
    if name=='maxvit_t': size = 224
    if name.startswith(('deeplab','fcn','lraspp','fasterrcnn','maskrcnn','keypointrcnn','retinanet','fcos','ssd')): kw['weights_backbone'] = None
    if name.startswith(('fasterrcnn','maskrcnn','keypointrcnn','retinanet','fcos')): kw.update(min_size=96, max_size=128)
    x = torch.randn(4,3,size,size)
    if name.startswith(('fasterrcnn','maskrcnn','keypointrcnn','retinanet','fcos','ssd')): x = list(torch.rand(2,3,96,128)) # a list of images, and no targets in evaluation mode
    if name in ('r3d_18','mc3_18','r2plus1d_18') or 'swin3d' in name: x = torch.randn(2,3,16,64,64)
    elif name=='s3d': x = torch.randn(2,3,16,224,224)
    model = torchvision.models.get_model(name, weights=None, **kw)
    return model,((torch.rand(2,3,128,128), torch.rand(2,3,128,128)) if name.startswith('raft') else (x,))

def timed(f):
    t = time.perf_counter()
    f()
    return time.perf_counter()-t

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', names())
def test_zoo(name):
    model,xb = build(name)
    calls = []
    h = model.register_forward_pre_hook(lambda *_: calls.append(1))
    may = {f'{n}.{k}' for n,m in init_layers(model).items() for k,_ in m.named_parameters()}
    with Unchanged(model, may):
        t = time.perf_counter()
        report = lsuv_(model, *xb, pre=None)
        t = time.perf_counter()-t
    h.remove()
    assert len(calls)==1
    seen = outputs(model, AFFINE, *xb)
    done = report.df[report.df.scale.notna() & report.df.status.ne('zero')] # zero: fed by zeros, as in a branch behind a zero norm
    worst = max(abs(seen[n].std().item()-1) for n in done.layer)
    assert worst<=1e-3, report
    assert not set(report.df.layer[report.df.status.eq('not called')]) & set(seen)
    with torch.no_grad(): forward = min(timed(partial(model.eval(), *xb)) for _ in range(2))
    rows.append(dict(model=name, layers=len(report), scaled=len(done), left='; '.join(f'{c} {s}' for s,c in report.df.status[~report.df.status.isin(['ok','vanishing','exploding','dead'])].value_counts().items()),
                     worst=worst, seconds=t, forward=forward, ratio=t/forward))

def teardown_module():
    if not WHOLE or not rows: return
    import matplotlib; matplotlib.use('agg')
    import matplotlib.pyplot as plt
    out,df = Path(__file__).parent.parent/'benchmarks',pd.DataFrame(rows)
    df.to_csv(out/'zoo.csv', index=False, float_format='%.3g')
    _,axs = plt.subplots(1, 2, figsize=(11,4), layout='constrained')
    axs[0].scatter(df.scaled, df.worst.clip(lower=1e-8), s=18, color='#009E73')
    axs[0].axhline(1e-3, color='0.5', ls='--', lw=1)
    axs[0].set_yscale('log'); axs[0].set_xlabel('layers scaled'); axs[0].set_ylabel('worst |std − 1| of a layer (log scale)')
    axs[1].scatter(df.forward, df.ratio, s=18, color='#009E73')
    axs[1].axhline(1, color='0.5', ls='--', lw=1)
    axs[1].set_xscale('log'); axs[1].set_xlabel('seconds of one forward pass (log scale)'); axs[1].set_ylabel('time of lsuv_ ÷ one forward pass'); axs[1].set_ylim(bottom=0)
    axs[0].set_title(f'{len(df)} architectures'); axs[1].set_title('one run each')
    axs[0].figure.savefig(out/'zoo.png', dpi=110)
