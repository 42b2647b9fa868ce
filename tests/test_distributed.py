"Several gloo processes on the CPU: the same weights everywhere, the statistics of the whole batch, and nobody waits for one that failed."
import datetime, os, time, warnings
from contextlib import contextmanager
import pytest, torch
import torch.distributed as dist, torch.multiprocessing as mp
from fastai.basics import Callback, CrossEntropyLossFlat, DataLoaders, Learner, LongTensor, set_seed
from fastai.distributed import DistributedDL
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import distribute_module
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from fastinit.all import *

LIMIT = 60 # seconds after which a process that waits gives up

def make(extra=False): return nn.Sequential(nn.Linear(20,30), nn.ReLU(), nn.Linear(30,30), nn.BatchNorm1d(30), nn.ReLU(), nn.Linear(30,5), *([nn.Linear(5,5)] if extra else []))
def make_acts(): return nn.Sequential(nn.Linear(20,30), GeneralReLU(0.1), nn.Linear(30,30), nn.Tanh(), nn.Linear(30,30), nn.GELU(), nn.Linear(30,5))

def boom(*_): raise RuntimeError('on purpose')

@contextmanager
def group(rank, size, folder):
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=size, timeout=datetime.timedelta(seconds=LIMIT))
    yield
    dist.barrier()
    dist.destroy_process_group()

def try_lsuv(rank, size, case):
    "One call in this process; the group must work afterwards, for the next case"
    torch.manual_seed(rank)
    model,at = (make_acts(),'activation') if case.startswith('acts') else (make(extra=case=='other model' and rank==1),'layer')
    x = torch.randn(40+8*rank, 20)*(1+rank) + rank # parts of different size, mean and std
    if case=='nan' and rank==1: x[0,0] = float('nan')
    if case=='bad batch' and rank==1: x = x[:,1:]
    if 'fails at' in case and rank==size-1: model[int(case[-1])].register_forward_hook(boom)
    hooks = lambda: sum(len(m._forward_hooks)+len(m._forward_pre_hooks) for m in model.modules())
    before,error,df,n = {k:v.clone() for k,v in model.state_dict().items()},None,None,hooks()
    center = 'channel' if case=='channel' else True
    try: df = lsuv_(model, x, pre='kaiming', at=at, center=center).df.filter(['layer','mean','std','std_after','status','converged'])
    except InitError as e: error = str(e)
    same = all(torch.equal(v, before[k]) for k,v in model.state_dict().items())
    return dict(weights=model.state_dict(), x=x, error=error, same=same, df=df, hooks=hooks()-n)

def run(work, size, path):
    mp.spawn(work, (size, str(path)), nprocs=size)
    return [torch.load(path/f'{i}.pt', weights_only=False) for i in range(size)]

FAULTS = ['fails at 0', 'fails at 2', 'fails at 5', 'nan', 'bad batch', 'other model', 'acts fails at 2', 'acts fails at 4']

def work(rank, size, folder):
    "All that one process does, for it takes long to start"
    with group(rank, size, folder):
        res = dict(calls={c:try_lsuv(rank, size, c) for c in (['fine', 'channel', *FAULTS, 'acts'] if size==2 else ['fine', 'channel'])})
        if size==2: res.update(shards={k:try_sharded(k, size) for k in SHARDED}, fits=try_fits(rank, size), watch=try_watch(rank))
        torch.save(res, f'{folder}/{rank}.pt')

@pytest.fixture(scope='module')
def two(tmp_path_factory): return run(work, 2, tmp_path_factory.mktemp('two'))
@pytest.fixture(scope='module')
def four(tmp_path_factory): return run(work, 4, tmp_path_factory.mktemp('four'))

@pytest.mark.parametrize('group,case', [('two','fine'), ('four','fine'), ('two','acts'), ('two','channel'), ('four','channel')])
def test_one_model_of_the_whole_batch(request, group, case):
    res = [r['calls'][case] for r in request.getfixturevalue(group)]
    for r in res[1:]:
        assert all(torch.equal(v, res[0]['weights'][k]) for k,v in r['weights'].items() if k.endswith(('weight','bias','sub')))
        assert r['df'].equals(res[0]['df'])
    assert res[0]['df'].converged.dropna().all() # told of all parts together
    model = make_acts() if case=='acts' else make()
    model.load_state_dict(res[0]['weights'])
    model.eval()
    outs = {1:[], 3:[], 5:[], 6:[]} if case=='acts' else {0:[], 2:[], 5:[]}
    if case!='acts': model[3].train()
    for k in outs: model[k].register_forward_hook(lambda m,i,o,k=k: outs[k].append(o.detach()))
    with torch.no_grad():
        for r in res: model(r['x']) # each part normalized by itself, as in training
    for k,o in outs.items():
        o = torch.cat(o).double()
        if case=='channel': assert o.mean(0).abs().max()<=1e-4, k
        assert abs(o.std()-1)<=(1e-3 if case=='acts' else 1e-4) and (abs(o.mean())<=1e-3 or isinstance(model[k], nn.GELU)), (k, o.std(), o.mean())

@pytest.mark.parametrize('case', FAULTS)
def test_all_raise(two, case):
    res = [r['calls'][case] for r in two]
    assert all(r['error'] and r['same'] for r in res), [r['error'] for r in res]
    assert all(r['hooks']==0 for r in res)
    if 'fails' in case: assert 'process 1 failed' in res[0]['error'] and 'on purpose' in res[1]['error']

# Through a fastai Learner: distrib_ctx, which is accelerate's

def data(rank, n=160):
    "The ranks see parts of one data set; fastai gives each its own order before the first epoch"
    g = torch.Generator().manual_seed(1)
    ds = [(x*(1+i%3), torch.tensor(i%5)) for i,x in enumerate(torch.randn(n, 20, generator=g))]
    return DataLoaders.from_dsets(ds, ds[:40], bs=40, num_workers=0)

class AtStart(Callback):
    "Keep what the model is when training starts"
    order = 100
    def before_fit(self): self.learn.start = {k.removeprefix('module.'):v.clone() for k,v in self.model.state_dict().items()}

def interrupt(*_): raise KeyboardInterrupt

def try_fit(rank, case):
    "One fit of this process"
    from fastinit.callback import first_batch
    set_seed(rank)
    cbs = {'kaiming':[KaimingCallback()], 'both':[KaimingCallback(), LSUVCallback()]}.get(case, [LSUVCallback()])
    learn,error = Learner(data(rank), make(), loss_func=CrossEntropyLossFlat(), cbs=[AtStart(), *cbs]),None
    x = first_batch(learn)[0]
    if case in ('empty','empty kaiming') and rank==1: learn.dls.train.dataset,learn.dls.train.n = [],0
    if case=='interrupt' and rank==1: learn.model[2].register_forward_hook(interrupt)
    before,t = [p.detach().clone() for p in learn.model.parameters()],time.perf_counter()
    try:
        with learn.distrib_ctx(sync_bn=False, cpu=True), learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    except (Exception, KeyboardInterrupt) as e: error = f'{type(e).__name__}: {e}'
    same = all(torch.equal(p, q) for p,q in zip(before, learn.model.parameters()))
    return dict(x=x, error=error, same=same, start=getattr(learn, 'start', None), end=learn.model.state_dict(), seconds=time.perf_counter()-t, done=cbs[-1].done,
                df=None if error else cbs[-1].report.df[['layer','std']])

FITS = ['lsuv', 'kaiming', 'both', 'empty', 'empty kaiming', 'interrupt', 'lsuv again']
def try_fits(rank, size):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR='127.0.0.1', MASTER_PORT='29517') # as a launcher does
    def _broadcast(self, t, rank): # fastai's is for GPUs only
        t = LongTensor(t)
        dist.broadcast(t, rank)
        return t.tolist()
    DistributedDL._broadcast = _broadcast
    return {c:try_fit(rank, c.removesuffix(' again')) for c in FITS}

@pytest.mark.parametrize('case', ['lsuv','both','lsuv again'])
def test_learner(two, case):
    "All processes begin with the same weights, which are right for all of their batches together, and train on"
    a,b = (r['fits'][case] for r in two)
    assert a['error'] is None and b['error'] is None and a['done'] and b['done'], (a['error'], b['error'])
    assert not torch.equal(a['x'], b['x'])
    for k in ('start','end'): assert all(torch.equal(v, b[k][n]) for n,v in a[k].items() if n.endswith(('weight','bias')))
    assert not torch.equal(a['start']['0.weight'], a['end']['0.weight'])
    assert a['df'].equals(b['df'])
    model,outs = make(),{0:[], 2:[], 5:[]}
    model.load_state_dict(a['start'])
    model.eval()[3].train()
    for k in outs: model[k].register_forward_hook(lambda m,i,o,k=k: outs[k].append(o.detach().double()))
    with torch.no_grad():
        for r in (a, b): model(r['x'])
    for o in map(torch.cat, outs.values()): assert abs(o.std()-1)<=1e-3 and abs(o.mean())<=1e-3

def test_learner_kaiming(two):
    a,b = (r['fits']['kaiming'] for r in two)
    assert a['error'] is None and b['error'] is None
    for k in ('start','end'): assert all(torch.equal(v, b[k][n]) for n,v in a[k].items() if n.endswith(('weight','bias')))

@pytest.mark.parametrize('case,mine', [('empty','gives no batch'), ('empty kaiming','gives no batch'), ('interrupt','KeyboardInterrupt')])
def test_learner_all_raise(two, case, mine):
    "One process has no data, or is interrupted: the other hears of it at once, and all weights are as they were"
    a,b = (r['fits'][case] for r in two)
    assert 'process 1 failed' in a['error'] and mine in b['error'], (a['error'], b['error'])
    assert a['same'] and b['same'] and not a['done'] and not b['done']
    assert max(a['seconds'], b['seconds'])<LIMIT/2

# The first steps watched, and trainings compared

class Keep(Callback):
    "What the first and third layer give in each training step, and the gradient there"
    order = 95
    def __init__(self): self.steps,self.handles = [],[]
    def before_batch(self):
        if not self.training: return
        step = {}
        def _keep(k, m, i, o):
            step[k] = o.detach().double()
            o.register_hook(lambda g: step.update({f'{k} grad':g.double()}))
        m = self.model.module
        self.handles = [m[k].register_forward_hook(lambda m,i,o,k=k: _keep(k, m, i, o)) for k in (0,2)]
        self.steps.append(step)
    def after_batch(self):
        for h in self.handles: h.remove()
        self.handles = []
        if self.training: self.steps[-1]['loss'] = float(self.learn.loss)

def try_watch(rank):
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    def start(*cbs):
        set_seed(rank)
        return Learner(data(rank), make(), loss_func=CrossEntropyLossFlat(), cbs=cbs)
    learn,res = start(Keep(), KaimingCallback(watch=3)),{}
    with learn.distrib_ctx(sync_bn=False, cpu=True), learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2)
    w = learn.watch.watched
    res.update(df=w.df, loss=w.loss, mine=learn.keep.steps, hooks=sum(len(m._forward_hooks) for m in learn.model.modules()))
    learn = start()
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    plt.close('all')
    with learn.distrib_ctx(sync_bn=False, cpu=True), learn.no_bar(), learn.no_logging():
        rng = torch.get_rng_state()
        c = learn.compare_inits(['default','lsuv'], steps=3, lr=1e-2, seeds=2)
        res.update(losses=c.losses, best=c.best, figures=len(plt.get_fignums()), same=all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items()),
                   rng=torch.equal(rng, torch.get_rng_state()), stds=c['lsuv'].df['std'].tolist())
        learn.fit(1, 1e-2) # and training goes on
    res['end'] = learn.model.state_dict()
    return res

def test_watched_by_all(two):
    "Every process has the statistics of the whole batch, which are those of plain hooks"
    a,b = (r['watch'] for r in two)
    assert a['df'].equals(b['df']) and a['loss']==b['loss'] and a['hooks']==b['hooks']==0
    df = a['df'].set_index(['step','layer'])
    assert df.index.get_level_values(0).max()==3
    for i in range(3):
        p,q = a['mine'][i],b['mine'][i]
        assert a['loss'][i]==pytest.approx((p['loss']+q['loss'])/2, rel=1e-6)
        for k in (0,2):
            o,row = torch.cat([p[k],q[k]]),df.loc[(i+1, str(k))]
            grad = (p[f'{k} grad'].var()/2 + q[f'{k} grad'].var()/2).sqrt().item()
            assert row['mean']==pytest.approx(o.mean().item(), abs=1e-5) and row['std']==pytest.approx(o.std().item(), rel=1e-5)
            assert row.near_zero==pytest.approx((o<=0.05).double().mean().item(), abs=1e-6) and row.grad_std==pytest.approx(grad, rel=1e-4)

def test_compared_by_all(two):
    "The same losses everywhere, a chart on the first process only, and the model as it was; training goes on in step"
    a,b = (r['watch'] for r in two)
    assert a['losses'].equals(b['losses']) and a['best']==b['best'] and len(a['losses'])==2*2*3 and a['losses'].loss.notna().all()
    assert (a['figures'],b['figures'])==(2,0) and a['same'] and b['same'] and a['rng'] and b['rng']
    assert a['stds']==b['stds']
    assert all(torch.equal(v, b['end'][k]) for k,v in a['end'].items() if k.endswith(('weight','bias')))

# Sharded parameters

def shard(kind, size):
    torch.manual_seed(0)
    model,mesh = nn.Sequential(nn.Linear(8,8), nn.ReLU(), nn.Linear(8,4)),init_device_mesh('cpu', (size,))
    if kind=='fully_shard':
        fully_shard(model[0], mesh=mesh)
        return fully_shard(model, mesh=mesh)
    if kind=='DTensor': return distribute_module(model, mesh)
    if kind=='tensor parallel': return parallelize_module(model, mesh, {'0':ColwiseParallel()})
    return FullyShardedDataParallel(model, use_orig_params=kind=='FSDP, original parameters', device_id=torch.device('cpu'))

SHARDED = ['fully_shard','DTensor','tensor parallel','FSDP','FSDP, original parameters']
def try_sharded(kind, size):
    model,local = shard(kind, size),lambda p: (p.to_local() if hasattr(p, 'to_local') else p).detach().clone()
    before,errors = [local(p) for p in model.parameters()],[]
    for f in (lambda: lsuv_(model, torch.randn(16,8)), lambda: kaiming_(model), lambda: init_stats(model, torch.randn(16,8)), lambda: init_(model, 'xavier', torch.randn(16,8))):
        try: f()
        except Exception as e: errors.append(f'{type(e).__name__}: {e}')
    return dict(errors=errors, same=all(torch.equal(p, local(q)) for p,q in zip(before, model.parameters())))

@pytest.mark.parametrize('kind', SHARDED)
def test_sharded(two, kind):
    "A clear error before anything changes"
    for r in (r['shards'] for r in two):
        assert len(r[kind]['errors'])==4 and all('is sharded over several processes: initialize the model, then shard it' in e for e in r[kind]['errors']), r[kind]['errors']
        assert r[kind]['same']
