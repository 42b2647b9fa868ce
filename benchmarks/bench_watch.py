"""What watching the first steps adds to a training step, in one fit after the other; writes watch.csv.

    make bench        or        python benchmarks/bench_watch.py
"""
import time, warnings
from pathlib import Path
warnings.filterwarnings('ignore')
import pandas as pd, torch
from fastai.vision.all import Callback, CancelValidException, CrossEntropyLossFlat, DataLoaders, Learner, ProgressCallback, SGD, xresnet50
from fastinit.all import *

here = Path(__file__).parent
ROUNDS,WATCHED,AFTER = 2,2,1 # of each kind in turn: a step to warm up, those that are watched, those after

class Clock(Callback):
    "The CPU seconds that each training step takes, the work of all other callbacks included: other programs do not count"
    order = 300
    def __init__(self): self.seconds,self.at = [],None
    def before_fit(self): self.at = time.process_time()
    def before_validate(self): raise CancelValidException
    def after_batch(self):
        now = time.process_time()
        self.seconds.append(now-self.at)
        self.at = time.process_time()

KINDS = {'plain':lambda: [], 'watched':lambda: [WatchCallback(1+WATCHED)]}

def steps(model, dl, cbs):
    "Seconds of the steps of one short fit"
    learn = Learner(DataLoaders(dl, dl), model, loss_func=CrossEntropyLossFlat(), opt_func=SGD, cbs=[Clock(), *cbs]).remove_cb(ProgressCallback)
    with learn.no_logging(): learn.fit(1, 1e-4)
    return learn.clock.seconds

def main(model=xresnet50, bs=32, size=128):
    rows,x,y,net = [],torch.randn(bs,3,size,size),torch.randint(0,10,(bs,)),model(n_out=10)
    dl = [(x,y)]*(1+WATCHED+AFTER)
    for _ in range(ROUNDS):
        for kind,cbs in KINDS.items():
            s = steps(net, dl, cbs())
            rows += [dict(model=model.__name__, kind=kind, cpu_seconds=o) for o in s[1:1+WATCHED]]
            if kind=='watched': rows += [dict(model=model.__name__, kind='after the watched steps', cpu_seconds=o) for o in s[1+WATCHED:]]
    res = pd.DataFrame(rows).groupby(['model','kind'], sort=False).cpu_seconds.agg(['median','min','max','count'])
    res['ratio'] = res['median']/res['median'].groupby('model').transform('first')
    res['limit'] = [1.3 if kind=='watched' else float('nan') for _,kind in res.index]
    res['batch'],res['threads'],res['torch'] = f'{bs}×3×{size}×{size}',torch.get_num_threads(),torch.__version__
    res.reset_index().to_csv(here/'watch.csv', index=False, float_format='%.4g')
    print(res.to_string())

if __name__=='__main__': main()
