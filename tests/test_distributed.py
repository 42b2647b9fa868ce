"Several gloo processes on the CPU: the same weights everywhere, the statistics of the whole batch, and nobody waits for one that failed."
import datetime, warnings
import pytest, torch
import torch.distributed as dist, torch.multiprocessing as mp
from torch import nn
from fastinit.all import *

LIMIT = 60 # seconds after which a process that waits gives up

def make(extra=False): return nn.Sequential(nn.Linear(20,30), nn.ReLU(), nn.Linear(30,30), nn.BatchNorm1d(30), nn.ReLU(), nn.Linear(30,5), *([nn.Linear(5,5)] if extra else []))

def boom(*_): raise RuntimeError('on purpose')

def work(rank, size, folder, case):
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=size, timeout=datetime.timedelta(seconds=LIMIT))
    torch.manual_seed(rank)
    model = make(extra=case=='other model' and rank==1)
    x = torch.randn(40+8*rank, 20)*(1+rank) + rank # parts of different size, mean and std
    if case=='nan' and rank==1: x[0,0] = float('nan')
    if case=='bad batch' and rank==1: x = x[:,1:]
    if case.startswith('fails at') and rank==size-1: model[int(case[-1])].register_forward_hook(boom)
    before,error,df = [p.detach().clone() for p in model.parameters()],None,None
    try: df = lsuv_(model, x, pre='kaiming').df[['layer','mean','std','status']]
    except InitError as e: error = str(e)
    same = all(torch.equal(p, q) for p,q in zip(before, model.parameters()))
    torch.save(dict(weights=model.state_dict(), x=x, error=error, same=same, df=df, hooks=sum(len(m._forward_hooks) for m in model.modules())), f'{folder}/{rank}.pt')
    dist.barrier() # the group still works
    dist.destroy_process_group()

def run(tmp_path, size, case='fine'):
    mp.spawn(work, (size, str(tmp_path), case), nprocs=size)
    return [torch.load(tmp_path/f'{i}.pt', weights_only=False) for i in range(size)]

@pytest.mark.parametrize('size', [2, 4])
def test_one_model_of_the_whole_batch(tmp_path, size):
    res = run(tmp_path, size)
    for r in res[1:]:
        assert all(torch.equal(v, res[0]['weights'][k]) for k,v in r['weights'].items() if k.endswith(('weight','bias')))
        assert r['df'].equals(res[0]['df'])
    model = make()
    model.load_state_dict(res[0]['weights'])
    model[3].train()
    outs = {0:[], 2:[], 5:[]}
    for k in outs: model[k].register_forward_hook(lambda m,i,o,k=k: outs[k].append(o.detach()))
    with torch.no_grad():
        for r in res: model(r['x']) # each part normalized by itself, as in training
    for o in outs.values():
        o = torch.cat(o).double()
        assert abs(o.std()-1)<=1e-4 and abs(o.mean())<=1e-4

@pytest.mark.parametrize('case', ['fails at 0', 'fails at 2', 'fails at 5', 'nan', 'bad batch', 'other model'])
def test_all_raise(tmp_path, case):
    res = run(tmp_path, 2, case)
    assert all(r['error'] and r['same'] for r in res), [r['error'] for r in res]
    assert res[0]['hooks']==0
    if case.startswith('fails'): assert 'process 1 failed' in res[0]['error'] and 'on purpose' in res[1]['error']
