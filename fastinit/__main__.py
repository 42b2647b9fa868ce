"""`python -m fastinit`: which versions are installed, and does LSUV work here on a tiny model? Exits with 1 if not."""
import argparse, platform, sys, warnings
from importlib.metadata import version
with warnings.catch_warnings():
    warnings.filterwarnings('ignore', '.*torch.jit.script', FutureWarning) # of what fastai imports
    from fastai.basics import *
    from fastai.callback.progress import *
from fastinit import __version__
from fastinit.all import *

def versions()->dict:
    "Name → version of what matters in a bug report"
    return {'fastinit':__version__, **{n:version(n) for n in ('fastai','fastcore')}, 'torch':torch.__version__,
            'device':default_device(), 'python':platform.python_version(), 'platform':platform.platform()}

def tiny()->tuple:
    "(model, its inputs)"
    layers = nn.Conv2d(1,8,3),nn.ReLU(),nn.Flatten(),nn.Linear(288,16),nn.ReLU(),nn.Linear(16,2)
    return nn.Sequential(*layers),torch.randn(64,1,8,8)

def layer_stds(model:nn.Module, x:Tensor)->list:
    "Std of the output of each convolution and linear layer, by hooks of its own"
    res = []
    def _keep(m, i, o): res.append(o.std().item())
    hooks = [m.register_forward_hook(_keep) for m in model if isinstance(m, (nn.Conv2d,nn.Linear))]
    with torch.no_grad(): model(x)
    for h in hooks: h.remove()
    return res

def check_lsuv()->str:
    "Every layer's std is 1 afterwards, in a pass of its own"
    model,x = tiny()
    lsuv_(model, x)
    worst = max(abs(s-1) for s in layer_stds(model, x))
    if not worst<1e-4: raise RuntimeError(f'a layer has |std − 1| = {worst:.1g}')
    return f'largest |std − 1| of a layer: {worst:.1g}'

def check_callback()->str:
    "A fit starts well and gives a finite loss"
    model,x = tiny()
    ds = list(zip(x, (x.mean((1,2,3))>0).long()))
    dls = DataLoaders.from_dsets(ds[:48], ds[48:], bs=16, num_workers=0, device='cpu')
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), cbs=LSUVCallback())
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    loss,report = float(learn.recorder.values[0][0]),learn.lsuv.report
    well = math.isfinite(loss) and report.df.status.eq('ok').all()
    if not well: raise RuntimeError(f'training loss {loss:.2f}; {report}')
    return f'{report.summary}; training loss {loss:.2f}'

def run(check:Callable)->tuple:
    "(is it well, details); the random state stays as it was"
    try:
        with no_random(): return True,check()
    except Exception as e: return False,f'{type(e).__name__}: {e}'

def main(args:Sequence=())->int: # As typed
    "Print versions and the self-check, or help; the exit code"
    argparse.ArgumentParser('python -m fastinit', description=__doc__).parse_args(args)
    if hasattr(sys.stdout, 'reconfigure'): sys.stdout.reconfigure(errors='replace') # a terminal without − gets ?
    for k,v in versions().items(): print(f'{k:10}{v}')
    res = {'lsuv_ on a tiny model':run(check_lsuv), 'LSUVCallback in a fit':run(check_callback)}
    for what,(ok,details) in res.items(): print(f"{'ok' if ok else 'FAILED':10}{what} ({details})")
    return int(not all(ok for ok,_ in res.values()))

if __name__=='__main__': sys.exit(main(sys.argv[1:]))
