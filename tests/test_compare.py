"Initializations compared by training: what a Learner would do from each, and the Learner as it was."
import math, random, warnings
from copy import deepcopy
import numpy as np, pandas as pd, pytest, torch
import matplotlib.pyplot as plt
from torch import nn
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.hook import ActivationStats
from fastai.callback.schedule import ParamScheduler
from fastai.callback.mixup import MixUp
from fastai.callback.progress import CSVLogger, ProgressCallback
from fastai.callback.tracker import SaveModelCallback
from fastai.callback.training import GradientAccumulation
from fastai.callback.data import PartialDL, WeightedDL
from fastai.basics import accuracy, Callback, CrossEntropyLossFlat, DataLoader, DataLoaders, Learner, OptimWrapper, Recorder, SGD, partial, set_seed
from fastinit.all import *
from fastinit.batch import first_batch
from fastinit.compare import InitComparison, plot_losses
from fastinit.copies import copied
from fastinit.trained import known_of
from fastinit.watch import WatchCallback

@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield
    plt.close('all')

def items(n=96):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 12, generator=g)
    return list(zip(x, (x[:,0]>0).long()))

class Stream(torch.utils.data.IterableDataset):
    def __iter__(self): return iter(items(64))
    def __len__(self): return 64

def torch_loaders(**kwargs):
    ds = items()
    return DataLoaders(torch.utils.data.DataLoader(ds[:64], batch_size=16, **kwargs), torch.utils.data.DataLoader(ds[64:], batch_size=16))

LOADERS = {
    'fastai': lambda: DataLoaders.from_dsets(items()[:64], items()[64:], bs=16, num_workers=0), # four batches an epoch
    'torch': lambda: torch_loaders(shuffle=True),
    'generator': lambda: torch_loaders(shuffle=True, generator=torch.Generator().manual_seed(3)),
    'sampler': lambda: torch_loaders(sampler=torch.utils.data.WeightedRandomSampler([1.]*64, 64, generator=torch.Generator().manual_seed(3))),
    'iterable': lambda: DataLoaders(torch.utils.data.DataLoader(Stream(), batch_size=16), torch.utils.data.DataLoader(items()[64:], batch_size=16))}

def net(): return nn.Sequential(nn.Linear(12,24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24,24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24,2))
def learner(loaders='fastai', model=None, **kwargs):
    set_seed(7)
    return Learner(LOADERS[loaders](), model or net(), **{'loss_func':CrossEntropyLossFlat(), **kwargs}).remove_cb(ProgressCallback)
def fit(learn, n=2, lr=0.01):
    with learn.no_logging(): learn.fit(n, lr)
    return learn

class Batches(Callback):
    "The batches that training sees"
    order = 90
    def __init__(self): self.seen = []
    def before_batch(self):
        if self.training: self.seen.append(self.learn.xb[0].clone())

def rng(): return [torch.get_rng_state(), torch.tensor(np.random.get_state()[1].astype(int)), torch.tensor(random.getstate()[1])]

def state(learn):
    "All of a Learner that a training could move"
    m = learn.model
    return dict(model=m.state_dict(), opt=learn.opt.state_dict()['state'] if learn.opt else None, rec=vars(learn.recorder).get('values'), losses=[o.item() for o in vars(learn.recorder).get('losses', [])],
                rng=rng(), modes=[o.training for o in m.modules()], hooks=[len(o._forward_hooks) for o in m.modules()], grads=[p.grad for p in m.parameters()],
                cbs=[id(o) for o in learn.cbs], seen=[len(o.seen) for o in learn.cbs if isinstance(o, Batches)], attrs=sorted(vars(learn)))

def equal(a, b):
    if isinstance(a, dict): return a.keys()==b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    if isinstance(a, (list,tuple)) or hasattr(a, 'items'): return len(a)==len(b) and all(equal(p, q) for p,q in zip(a, b))
    return a==b

def interrupt_at(model, n):
    "Ctrl-C in the n-th training pass, whatever copy of the model it is in"
    calls = []
    def _hook(m, i, o):
        if torch.is_grad_enabled(): calls.append(0)
        if len(calls)==n: raise KeyboardInterrupt
    return model[0].register_forward_hook(_hook)

@pytest.mark.parametrize('loaders', LOADERS)
@pytest.mark.parametrize('interrupted', [False, True])
@pytest.mark.parametrize('trained', [False, True])
def test_the_learner_stays_as_it_was(loaders, interrupted, trained):
    "Model, optimizer, recorder, random state and callbacks, to the bit; and the next fit is the one that would have been"
    def start():
        learn = learner(loaders, cbs=Batches())
        return fit(learn, 1) if trained else learn
    expected = fit(start())
    learn = start()
    before = deepcopy(state(learn))
    if interrupted:
        h = interrupt_at(learn.model, 10)
        before['hooks'] = state(learn)['hooks']
        with pytest.raises(KeyboardInterrupt): learn.compare_inits(['default','lsuv'], steps=6)
    else: learn.compare_inits(['default','lsuv'], steps=6, lrs=[1e-3,1.], seeds=2)
    after = state(learn)
    for k in before: assert equal(before[k], after[k]), k
    if interrupted: h.remove()
    fit(learn)
    assert equal(learn.batches.seen, expected.batches.seen)
    assert equal(learn.model.state_dict(), expected.model.state_dict()) and learn.recorder.values[-1]==expected.recorder.values[-1]

class Half(Callback):
    "Mixed precision with a scaled loss, as on a GPU, in bfloat16 on the CPU"
    order = MixedPrecision.order
    def before_batch(self):
        self.context = torch.autocast('cpu', torch.bfloat16)
        self.context.__enter__()
    def after_pred(self): self.learn.pred = self.pred.float()
    def after_loss(self): self.context.__exit__(None, None, None)
    def before_backward(self): self.learn.loss_grad = self.learn.loss_grad*1024
    def before_step(self):
        for p in self.model.parameters(): p.grad /= 1024

KINDS = {'plain':{}, 'sgd':dict(opt_func=SGD), 'wd':dict(wd=0.1, moms=(0.9,0.9,0.9)), 'half':dict(cbs=lambda: [Half()]), 'mixup':dict(cbs=lambda: [MixUp()]),
         'accumulation':dict(cbs=lambda: [GradientAccumulation(32)]), 'activation stats':dict(cbs=lambda: [ActivationStats()]), 'fp16':dict(cbs=lambda: [MixedPrecision()]),
         'torch optimizer':dict(opt_func=partial(OptimWrapper, opt=torch.optim.AdamW)), 'smooth':dict(loss_func=CrossEntropyLossFlat(label_smoothing=0.1))}

@pytest.mark.parametrize('kind', KINDS)
def test_it_trains_as_a_learner_does(kind):
    "The losses of a Learner with that callback, to the bit: optimizer, loss and callbacks are this Learner's; through two epochs"
    kwargs = dict(KINDS[kind])
    cbs = kwargs.pop('cbs', lambda: [])
    learn = learner(cbs=cbs(), **kwargs)
    losses = learn.compare_inits(['kaiming','lsuv'], steps=7, lr=3e-3).losses
    for name,cb in dict(kaiming=KaimingCallback, lsuv=LSUVCallback).items():
        set_seed(0)
        dls = DataLoaders(learn.dls.train.new(), learn.dls.valid)
        one = Learner(dls, deepcopy(learn.model), cbs=[*cbs(), cb()], **{'loss_func':CrossEntropyLossFlat(), **kwargs}).remove_cb(ProgressCallback)
        class Losses(Callback):
            def after_batch(self):
                if self.training: mine.append(self.learn.loss.item())
            def before_validate(self): random_state.extend(rng())
            def after_validate(self): torch.set_rng_state(random_state[0])
        mine,random_state = [],[]
        fit(one.add_cb(Losses()), 2, 3e-3)
        assert losses[losses.scheme==name].loss.tolist()==mine[:7]

def test_every_scheme_sees_the_same_batches():
    "In a seed; those of another seed are others"
    class Seen(Batches):
        runs = []
        def before_fit(self): self.runs.append(self.seen)
    for loaders in ('fastai','torch'):
        Seen.runs.clear()
        learn = learner(loaders, cbs=Seen())
        learn.cbs[-1].seen = []
        learn.compare_inits(['default','normal','lsuv'], steps=6, seeds=2)
        runs = list({id(o):o for o in Seen.runs if len(o)==6}.values()) # an initialization may try the callbacks on a batch of its own
        assert len(runs)==6 and all(len(r)==6 for r in runs)
        for i in (1,2,4,5): assert equal(runs[i], runs[i-i%3]), (loaders, i)
        assert not equal(runs[0], runs[3])

class Draws:
    "A data set with a generator of its own, and one that reads a global one"
    def __init__(self, own): self.own = np.random.default_rng(0) if own else None
    def __len__(self): return 64
    def __getitem__(self, i):
        x = torch.tensor((self.own or module_rng).normal(size=12)).float()
        return x,int(x[0]>0)
module_rng = np.random.default_rng(0)
class Loader:
    "Neither fastai's nor PyTorch's"
    def __init__(self): self.rng,self.dataset = random.Random(0),Draws(True)
    def __len__(self): return 4
    def __iter__(self):
        for _ in range(4):
            i = self.rng.randrange(64)
            yield torch.full((16,12), i/64.),torch.full((16,), i%2)
    def to(self, device): return self
@pytest.mark.parametrize('train', [lambda: DataLoader(Draws(True), bs=16), lambda: DataLoader(Draws(False), bs=16), lambda: torch.utils.data.DataLoader(Draws(True), 16), Loader])
def test_every_scheme_sees_the_same_draws_of_the_data(train):
    "Where data set or loader have a generator of their own: equal schemes have equal losses, and it goes on where it was"
    def start():
        module_rng.bit_generator.state = np.random.default_rng(0).bit_generator.state
        learn = learner(cbs=Batches())
        learn.dls.loaders = [train(), learn.dls.valid]
        return learn
    learn,expected = start(),fit(start(), 1)
    learn = start() # both draw from the global one
    losses = learn.compare_inits({'a':'kaiming','b':'kaiming'}, steps=6, lr=1e-3).losses.pivot(index='step', columns='scheme', values='loss')
    assert losses['a'].tolist()==losses['b'].tolist()
    assert equal(fit(learn, 1).batches.seen, expected.batches.seen)

@pytest.mark.parametrize('train,n', [(partial(WeightedDL, wgts=[0.]*32+[1.]*32, shuffle=True), 4), (partial(PartialDL, partial_n=32), 2)])
def test_loaders_that_take_more_than_fastais(train, n):
    "Weights, and what is taken of the data, are those of the training"
    class Epochs(Callback):
        def before_epoch(self): lens.append(len(self.dls.train))
        def before_batch(self): xs.append(self.x)
    lens,xs,ds = [],[],[(torch.full((12,), float(i)), i%2) for i in range(64)]
    learn = learner(cbs=Epochs())
    learn.dls.loaders = [train(ds, bs=16, num_workers=0), learn.dls.valid]
    learn.compare_inits(['kaiming'], steps=6)
    assert set(lens)=={n} and (n==2 or torch.cat(xs).min()>=32)

def test_a_loader_whose_workers_are_alive():
    learn = learner()
    learn.dls.loaders = [torch.utils.data.DataLoader(learn.dls.train_ds, 16, num_workers=1, persistent_workers=True), learn.dls.valid]
    alive = fit(learn, 1).dls.train._iterator
    assert len(learn.compare_inits(['kaiming'], steps=2, lr=1e-3).losses)==2 and learn.dls.train._iterator is alive is not None

class Reads(Callback):
    "Reads what the recorder has"
    order,read = 60,[]
    def after_batch(self):
        if self.training: self.read.append((float(self.smooth_loss), len(self.recorder.losses)))
def test_callbacks_that_read_the_recorder(capsys):
    "They have one of their own, which says nothing"
    Reads.read.clear()
    losses = learner(cbs=Reads(), metrics=accuracy).compare_inits(['kaiming'], steps=6, lr=1e-3).losses.loss
    assert [n for _,n in Reads.read]==[1,2,3,4,5,6] and Reads.read[0][0]==pytest.approx(losses[0], rel=1e-6) and capsys.readouterr().out==''

def test_callbacks_that_show_or_save_stay_out(tmp_path):
    learn = learner(cbs=[SaveModelCallback(), CSVLogger(tmp_path/'a.csv'), ActivationStats(), LSUVCallback()])
    learn.path = tmp_path
    learn.compare_inits(['default'], steps=5)
    assert list(tmp_path.iterdir())==[] and not learn.lsuv.done and known_of(learn).report is None and not hasattr(learn.activation_stats, 'stats')

def test_callbacks_and_options():
    "An `InitCallback` with its options; `layers` for the others; the one that is passed stays unused"
    learn,cb = learner(),LSUVCallback(std=0.5, watch=3)
    res = learn.compare_inits({'half':cb, 'first':'kaiming'}, steps=3, lr=1e-3, layers='0')
    assert list(res)==['half','first'] and not cb.done and cb.report is None
    assert np.allclose(res['half'].df.set_index('layer')['std'][['0','3','6']], 0.5, atol=1e-3)
    assert list(res.after)==[1e-3] and list(res.after[1e-3])==['half','first']
    assert not np.allclose(res.after[1e-3]['half'].df['std'], res['half'].df['std'], atol=1e-6)

def test_what_came_of_it():
    "A rate that is far too high is seen to diverge, and the table is that of the losses"
    learn = learner(model=nn.Sequential(nn.Linear(12,64), nn.ReLU(), nn.Linear(64,64), nn.ReLU(), nn.Linear(64,2)), opt_func=SGD)
    res = learn.compare_inits(['kaiming','lsuv'], steps=10, lrs=[1e-3,1e6], seeds=2)
    assert res.table.diverged.unstack().loc[:,1e6].tolist()==[1.,1.] and res.table.diverged.unstack().loc[:,1e-3].tolist()==[0.,0.]
    last = res.losses[res.losses.step>8].groupby(['scheme','lr','seed']).loss.mean()
    for n in ('kaiming','lsuv'):
        row,seeds = res.table.loc[(n,1e-3)],last[n,1e-3]
        assert [row.loss,row.lowest,row.highest]==pytest.approx([seeds.mean(),seeds.min(),seeds.max()]) and row.seeds==2
    assert ' at 0.001' in res.best and 'after 10 steps' in res.best
    titles = [ax.get_title() for ax in plt.figure(1).axes]
    assert titles==['learning rate 0.001','learning rate 1e+06']

def test_models_that_torch_does_not_copy():
    "The older weight norm keeps a weight that is computed, after a pass"
    learn = learner(model=nn.Sequential(nn.utils.weight_norm(nn.Linear(12,24)), nn.ReLU(), nn.Linear(24,2)))
    learn.model(torch.randn(4,12))
    with pytest.raises(RuntimeError): deepcopy(learn.model)
    res = learn.compare_inits(['lsuv'], steps=3, lr=1e-2)
    assert np.isfinite(res.losses.loss).all() and res['lsuv'].df['std'].iloc[0]==pytest.approx(1., abs=1e-3)

def test_an_optimizer_that_exists_already():
    model = net()
    learn = learner(model=model, opt_func=OptimWrapper(opt=torch.optim.SGD(model.parameters(), lr=0.1)))
    before = deepcopy(model.state_dict())
    res = learn.compare_inits(['lsuv'], steps=4, lr=0.1)
    assert equal(model.state_dict(), before) and res.losses.loss.nunique()==4

def test_rates_of_several_kinds():
    learn = learner(splitter=lambda m: [list(m[0].parameters()), list(m[1:].parameters())])
    res = learn.compare_inits(['lsuv'], steps=3, lrs=[np.float32(0.5), slice(1e-5,1e-3), 1])
    assert list(res.after)==[0.5, 'slice(1e-05, 0.001, None)', 1.] and res.losses.lr.unique().tolist()==list(res.after)
    assert res.best.startswith('lsuv at ') and len(res.plot())==3 and len(res.plot_stats(lr=1.))==4

# What it says and draws

def losses(**runs):
    "Scheme → losses of its seeds, or {rate: losses of its seeds}"
    rows = [(k,lr,seed,i+1,float(l)) for k,v in runs.items() for lr,seeds in (v if isinstance(v, dict) else {0.1:v}).items() for seed,ls in enumerate(seeds) for i,l in enumerate(ls)]
    return pd.DataFrame(rows, columns=['scheme','lr','seed','step','loss'])
def best(**runs): return InitComparison({}, {}, losses(**runs)).best
inf,nan = float('inf'),float('nan')

@pytest.mark.parametrize('runs,said', [
    (dict(a=[[3,1]], b=[[3,2]]), 'a has the lowest loss after 2 steps, 1, 1 below b; one seed does not tell this from chance: `seeds=3`'),
    (dict(a=[[3,2]], b=[[3,1]]), 'b has the lowest loss after 2 steps, 1, 1 below a; one seed does not tell this from chance: `seeds=3`'),
    (dict(a=[[3,1]], b=[[3,1]]), 'no difference between a and b: a has the lowest loss after 2 steps, 1'),
    (dict(a=[[3,1]]), 'a has the lowest loss after 2 steps, 1'), (dict(a=[[1]]), 'a has the lowest loss after 1 step, 1'),
    (dict(a=[[3,1],[3,1.2]], b=[[3,2],[3,1.5]]), 'a has the lowest loss after 2 steps, 1.1 (1 to 1.2): 0.65 below b, 0.3 beyond the spread of 2 seeds'),
    (dict(a=[[3,1],[3,1.2]], b=[[3,1.1],[3,1.5]], c=[[3,2],[3,2]]), 'no clear difference between a and b: the spreads of their 2 seeds overlap. a has the lowest loss after 2 steps, 1.1 (1 to 1.2)'),
    (dict(a=[[3,1],[3,1.2]], b=[[3,1.5],[3,1.6]], c=[[3,1.1],[3,3]]), 'no clear difference between a and c: the spreads of their 2 seeds overlap. a has the lowest loss after 2 steps, 1.1 (1 to 1.2)'),
    (dict(a=[[3,1],[3,1.2]], b=[[3,1.1],[3,1.6]], c=[[3,1.1],[3,3]]), 'no clear difference between a, b and c: the spreads of their 2 seeds overlap. a has the lowest loss after 2 steps, 1.1 (1 to 1.2)'),
    (dict(a=[[3,1],[3,1.2]], b=[[3,1.7],[3,1.8]], c=[[3,1.5],[3,3]]), 'a has the lowest loss after 2 steps, 1.1 (1 to 1.2): 0.65 below b, 0.3 beyond the spread of 2 seeds'),
    (dict(a=[[3,1],[3,1.2]], b=[[3,1.7],[3,1.8]], c=[[3,0.5],[3,inf]]), 'a has the lowest loss after 2 steps, 1.1 (1 to 1.2): 0.65 below b, 0.5 beyond the spread of 2 seeds'),
    (dict(a=[[3,1]], b=[[3,inf]], c=[[3,nan]]), 'a has the lowest loss after 2 steps, 1; every other scheme diverged'),
    (dict(a=[[3,nan]], b=[[3,inf]]), 'every scheme diverged: try a lower learning rate'),
    (dict(a=[[3,7950]], b=[[3,9000]]), 'every scheme diverged: try a lower learning rate'),
    (dict(a=[[3,7950],[3,8000]], b=[[3,inf],[3,9000]]), 'every scheme diverged: try a lower learning rate'),
    (dict(a=[[9,4]], b=[[1,3]], c=[[1,nan]]), 'a has the lowest loss after 2 steps, 4; every other scheme diverged'),
    (dict(a={1.:[[1,3]], 2.:[[9,5]]}, b={1.:[[9,6]], 2.:[[1,2.5]]}), 'a at 2 has the lowest loss after 2 steps, 5, 1 below b at 1; one seed does not tell this from chance: `seeds=3`'),
    (dict(a=[[3,1],[3,1.2]], b=[[3,1.7],[3,1.8]], c=[[1,2.5],[1,2.2]]), 'a has the lowest loss after 2 steps, 1.1 (1 to 1.2): 0.65 below b, 0.5 beyond the spread of 2 seeds'),
    (dict(a={1.:[[3,9]], 2.:[[3,1]]}, b={1.:[[3,4]], 2.:[[3,2]]}), 'a at 2 has the lowest loss after 2 steps, 1, 1 below b at 2; one seed does not tell this from chance: `seeds=3`'),
    (dict(a={1.:[[3,9]], 2.:[[3,1]]}, b={1.:[[3,1.5]], 2.:[[3,2]]}), 'a at 2 has the lowest loss after 2 steps, 1, 0.5 below b at 1; one seed does not tell this from chance: `seeds=3`')])
def test_best(runs, said): assert best(**runs)==said

def test_what_diverged_is_last_in_the_table():
    "So that `plot_stats` draws the rate of the best"
    res = InitComparison({}, {}, losses(a={1.:[[1,3]], 2.:[[9,5]]}, b={1.:[[3,nan]], 2.:[[9,6]]}))
    assert list(res.table.index)==[('a',2.),('b',2.),('a',1.),('b',1.)] and res.table.diverged.tolist()==[0,0,1,1]

@pytest.mark.parametrize('inits', [{'_mine':'lsuv'}, {'_mine':'lsuv', '_other':'kaiming', '':'default', r'a$\frac$':'default'}])
def test_names_that_matplotlib_would_leave_out(inits):
    "All stand in the legends, of one batch and of a training"
    learn = learner()
    with learn.no_bar(), learn.no_logging():
        for steps in (0,2):
            plt.close('all')
            learn.compare_inits(inits, steps=steps)
            figs = [plt.figure(n) for n in plt.get_fignums()]
            assert len(figs)==(2 if steps else 1)
            for fig in figs:
                fig.draw_without_rendering()
                legend = fig.legends[0] if fig.legends else fig.axes[0].get_legend()
                assert [t.get_text().lstrip(' ').replace(r'\$', '$') for t in legend.get_texts()][:len(inits)]==list(inits)
    plt.close('all')

def test_the_end_of_a_run():
    "The mean of the last fifth of the steps; diverged: not finite at some step, or at the end more than twice what it began with"
    ls = list(range(20, 10, -1))
    runs = InitComparison({}, {}, losses(a=[ls], b=[[1,2,2.1]], c=[[1,nan,1]], d=[[1,9,2]], e=[[-1,-1,0.1]], f=[[-1,-1,-0.5]])).runs.set_index('scheme')
    assert runs.loss.to_dict()==dict(a=11.5, b=2.1, c=inf, d=2, e=0.1, f=-0.5)
    assert runs.diverged.to_dict()==dict(a=False, b=True, c=True, d=False, e=True, f=False)

def test_the_chart_of_the_losses():
    "A line a scheme, the mean over seeds; a band from the lowest to the highest; what is not finite ends it; what is far above leaves the panel"
    df = losses(a=[[3,2,1],[3,3,3]], b=[[4,nan,1],[4,4,4]])
    ax = plot_losses(df)
    (xa,ya),(xb,yb) = (l.get_data() for l in ax.get_lines())
    assert list(xa)==[1,2,3] and list(ya)==[3,2.5,2] and yb[0]==4 and np.isnan(yb[1]) and yb[2]==2.5
    band = ax.collections[0].get_paths()[0].vertices
    assert {(1.,3.),(2.,2.),(2.,3.),(3.,1.),(3.,3.)}<={tuple(o) for o in band.tolist()}
    assert [t.get_text() for t in ax.get_legend().get_texts()]==['a','b'] and (ax.get_xlabel(),ax.get_ylabel())==('training step','loss')
    low,high = ax.get_ylim()
    assert (low,high)==pytest.approx((1-0.09, 4+0.09)) # 3 % of what there is
    low,high = plot_losses(losses(a=[[3,2,1]], b=[[9,1e6,inf]])).get_ylim()
    assert (low,high)==pytest.approx((1-0.15, 6+0.15)) # twice what the lowest began with
    assert plot_losses(df, ax=ax) is ax

def test_what_is_not_in_the_panel_is_said():
    "A scheme whose loss lies wholly above it, or is never a number, has no line there"
    df = losses(a=[[3,2,1]], b=[[30,20,9]], c=[[nan,nan,inf]], d=[[30,20,5]])
    assert [t.get_text() for t in plot_losses(df).get_legend().get_texts()]==['a','b (above)','c (not finite)','d']
    axs = InitComparison({}, {}, losses(a={1.:[[3,2]], 2.:[[3,1]]}, b={1.:[[9,8]], 2.:[[9,5]]}, c={1.:[[9,8]], 2.:[[9,8]]})).plot()
    assert [t.get_text() for t in axs[0].figure.legends[0].get_texts()]==['a','b','c (above)'] # b is in one of the panels

def test_losses_on_a_log_scale():
    "From the lowest to the highest, so that no scheme is above; each panel has its own"
    df = losses(a=[[3,2,1]], b=[[30,2e5,inf]], c=[[2,-1,0]])
    ax = plot_losses(df, log=True)
    assert ax.get_ylim()==pytest.approx((1/1.3, 2e5*1.3)) and (ax.get_yscale(),ax.get_ylabel())==('log','loss (log scale)')
    assert [t.get_text() for t in ax.get_legend().get_texts()]==['a','b','c'] and list(ax.get_lines()[0].get_ydata())==[3,2,1]
    axs = InitComparison({}, {}, losses(a={1.:[[3,2]], 2.:[[3e3,1]]})).plot(log=True)
    assert [ax.get_ylim() for ax in axs]==[pytest.approx((2/1.3,3*1.3)), pytest.approx((1/1.3,3e3*1.3))]
    with pytest.raises(ValueError, match='log=True: no loss is a number over 0'): plot_losses(losses(a=[[-1,nan]]), log=True)

def test_one_step_can_be_drawn():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for df in (losses(a=[[3]]), losses(a=[[0]]), losses(a=[[nan]])):
            ax = InitComparison({}, {}, df).plot()[0]
            low,high = ax.get_ylim()
            assert low<high and ax.get_lines()[0].get_marker()==('o' if np.isfinite(df.loss).all() else '') and ax.get_xlim()==(0.5,1.5)

def test_modules_without_parameters_are_left_out():
    "LSUV after the activation lists ReLUs: here only if they are asked for, and then of all"
    learn = learner()
    for steps in (0,2):
        def layers(**kwargs):
            res = learn.compare_inits(['kaiming',LSUVCallback(at='activation')], steps=steps, **kwargs)
            return [list(r.df.layer) for r in [*res.values(), *(r for rs in getattr(res, 'after', {}).values() for r in rs.values())]]
        assert all(o==['0','1','3','6'] for o in layers())
        assert all(set('0236')<=set(o) for o in layers(include_paramless=True))

def test_one_rate_and_a_rate_that_was_not_trained():
    learn = learner()
    res = learn.compare_inits(['lsuv'], steps=1, lrs=1e-3)
    assert list(res.after)==[1e-3] and res.best.startswith('lsuv has the lowest loss after 1 step, ')
    assert list(learn.compare_inits(['lsuv'], steps=1, lrs=slice(1e-4,1e-3)).after)==['slice(0.0001, 0.001, None)']
    assert list(learn.compare_inits(['lsuv'], steps=1, lrs=np.array([1e-3,1e-2])).after)==[1e-3,1e-2]
    with pytest.raises(ValueError, match='not trained at 0.1, but at 0.001'): res.plot_stats(lr=0.1)
    axs = res.plot_stats(lr=1e-3)
    assert axs[2].get_title()=='after 1 step at 0.001' and not any(ax.get_legend() for ax in axs)

def test_the_panels():
    "One a rate, on the same axis; with one rate it is larger"
    axs = InitComparison({}, {}, losses(a={1e-3:[[3,2]], 1e-2:[[3,1]], 1e-1:[[3,5]]})).plot()
    assert [ax.get_title() for ax in axs]==['learning rate 0.001','learning rate 0.01','learning rate 0.1'] and len({ax.get_ylim() for ax in axs})==1
    assert [list(ax.get_lines()[0].get_ydata()) for ax in axs]==[[3,2],[3,1],[3,5]] and len({ax.get_position().y0 for ax in axs})==1
    axs = InitComparison({}, {}, losses(a={'slice(0.0001, 0.01, None)':[[3,2]]})).plot()
    assert [ax.get_title() for ax in axs]==['learning rate slice(0.0001, 0.01, None)']
    def size(n): return tuple(InitComparison({}, {}, losses(a={float(i):[[3,2]] for i in range(n)})).plot()[0].figure.get_size_inches().round(1))
    assert size(1)[0]==7 and size(3)[0]==10.5 and size(6)[0]==size(7)[0]<=10.5 and size(4)[1]>1.8*size(3)[1] # three beside each other at most

def test_as_text():
    "The sentence, then the table with three digits"
    lines = repr(InitComparison({}, {}, losses(a=[[3,1.23456]], b=[[3,123.456]]))).splitlines()
    assert lines[0].startswith('a has the lowest loss') and lines[1].split()==['loss','lowest','highest','diverged','seeds']
    assert [l.split() for l in lines[3:]]==[['a','0.1','1.23','1.23','1.23','0','1'],['b','0.1','123','123','123','1','1']]

def test_statistics_before_and_after():
    learn = learner()
    res = learn.compare_inits(['kaiming','lsuv'], steps=5, lrs=[1e-3,1e-1])
    plt.close('all')
    axs = res.plot_stats()
    assert len(axs)==4 and [ax.get_title() for ax in axs]==['before training']*2+[f'after 5 steps at {res.table.index[0][1]}']*2
    assert len(axs[0].figure.legends)==1
    for ax,reports in ((axs[1],res), (axs[3],res.after[res.table.index[0][1]])):
        assert {l.get_label():list(l.get_ydata()) for l in ax.get_lines() if len(l.get_xdata())==4}=={k:list(r.df['std']) for k,r in reports.items()}
    axs = res.plot_stats(lr=1e-3)
    assert axs[2].get_title()=='after 5 steps at 0.001' and not axs[0].get_xlabel() and axs[2].get_xlabel()

@pytest.mark.parametrize('steps', [0,4])
def test_progress(steps, monkeypatch):
    "A bar, if the Learner has one; it says which training is running"
    import fastinit.compare as compare
    bars = []
    class Bar:
        def __init__(self, it, **kwargs): self.it,self.n,self.comments = list(it),0,[]; bars.append(self)
        def __iter__(self):
            for o in self.it:
                self.n += 1
                yield o
        def __setattr__(self, k, v):
            if k=='comment': self.comments.append(v)
            else: vars(self)[k] = v
    monkeypatch.setattr(compare, 'progress_bar', Bar)
    learn = learner()
    learn.compare_inits(['default','lsuv'], steps=steps)
    assert not bars
    learn.add_cb(ProgressCallback())
    learn.compare_inits(['default','lsuv'], steps=steps, **(dict(lrs=[1e-3,1e-2], seeds=2) if steps else {}))
    assert len(bars)==1 and len(bars[0].it)==bars[0].n==(2*2*2*4 if steps else 2)
    assert bars[0].comments==([f'{n}, rate {lr}' for lr in (1e-3,1e-2) for _ in range(2) for n in ('default','lsuv')] if steps else [])

def test_accelerators_lists():
    "A process has one accelerator, which keeps what it prepared: a training has lists of its own, and all else in common"
    from fastinit.copies import _with_own_lists
    class Accelerator:
        def __init__(self): self._models,self.state,self.names = [1],{'a':1},('x',)
    a = Accelerator()
    b = _with_own_lists(a)
    b._models.append(2)
    assert a._models==[1] and b._models==[1,2] and b.state is a.state and b.names==('x',) and type(b) is Accelerator

@pytest.mark.parametrize('kwargs', [dict(steps=-1), dict(steps=3, seeds=0), dict(steps=3, lr=1e-3, lrs=[1e-2]), dict(steps=3, inits=['kaimng']), dict(steps=2, inits=[]), dict(inits={}),
    dict(steps=2.5), dict(steps='50'), dict(steps=3, lr='1e-3'), dict(steps=3, lrs=[]), dict(steps=3, lrs='1e-3'), dict(lr=1e-2), dict(lrs=[1e-2]), dict(seeds=3), dict(steps=3, seeds=1.5),
    dict(steps=2, zoom=0), *(dict(steps=2, lrs=[1e-3,o]) for o in (-1, 0, math.nan, math.inf, None, slice(-1,1e-3), slice(None))), dict(steps=2, lr=math.nan)])
def test_wrong_arguments(kwargs):
    learn = learner()
    before = deepcopy(learn.model.state_dict())
    with pytest.raises(ValueError): learn.compare_inits(**kwargs)
    assert equal(learn.model.state_dict(), before)

@pytest.mark.parametrize('steps', [0,2])
def test_a_model_that_cannot_be_initialized(steps):
    "It is said what to do, before anything is copied or trained"
    class Uncopied(nn.LazyLinear):
        def __deepcopy__(self, memo): raise AssertionError('copied')
    learn = learner(model=nn.Sequential(Uncopied(4), nn.Linear(4,2)), opt_func=SGD)
    with pytest.raises(ValueError, match='0.weight is not built yet .*run one batch through the model first'):
        learn.compare_inits(['kaiming','lsuv'], steps=steps)

def test_pretrained_body_on_a_batch():
    "As a callback leaves it"
    model = nn.Sequential(nn.Linear(8,8), nn.ReLU(), nn.Linear(8,3))
    ds = [(torch.randn(8), i%3) for i in range(32)]
    groups = lambda m: [list(m[0].parameters()), list(m[2].parameters())]
    learn = Learner(DataLoaders.from_dsets(ds, ds, bs=16), model, loss_func=CrossEntropyLossFlat(), splitter=groups)
    learn.pretrained = True
    reports = learn.compare_inits({'spared':'lsuv', 'not':LSUVCallback(force=True)})
    assert reports['spared']['0'].status=='pretrained' and reports['not']['0'].status=='ok'
    assert reports['spared']['0']['std']==pytest.approx(init_stats(model, *first_batch(learn))['0']['std'], rel=1e-5)
    plt.close('all')

@pytest.mark.parametrize('steps', [0,2])
def test_pretrained_body_that_was_trained_since(steps):
    "It keeps its weights, as a callback would leave it; the head is drawn by each"
    model = nn.Sequential(nn.Linear(8,8), nn.ReLU(), nn.Linear(8,3))
    ds = [(torch.randn(8), i%3) for i in range(32)]
    groups = lambda m: [list(m[0].parameters()), list(m[2].parameters())]
    learn = Learner(DataLoaders.from_dsets(ds, ds, bs=16), model, loss_func=CrossEntropyLossFlat(), splitter=groups).remove_cb(ProgressCallback)
    learn.pretrained = True
    fit(learn, 1)
    reports = learn.compare_inits(['normal','lsuv'], steps=steps)
    now = init_stats(model, *first_batch(learn))
    for r in reports.values(): assert r['0'].status=='pretrained' and r['0']['std']==pytest.approx(now['0']['std'], rel=0.5 if steps else 1e-5)
    assert reports['lsuv']['2']['std']==pytest.approx(1, abs=1e-3) and abs(reports['normal']['2']['std']/now['2']['std']-1)>1e-3

def test_a_rate_that_is_given_twice():
    res = learner().compare_inits(['kaiming','lsuv'], steps=2, lrs=[1e-3, 0.001, np.float64(1e-3), 1, 1.0, slice(1e-4,1e-3), slice(1e-4,1e-3)])
    assert list(res.after)==[1e-3, 1., 'slice(0.0001, 0.001, None)'] and len(res.losses)==2*3*2

class Log(Callback):
    "Takes part in a step, and has an open file"
    def __init__(self, path): self.file = open(path, 'w')
    def after_loss(self): self.file.write('.')

def test_a_callback_that_cannot_be_copied_is_named(tmp_path):
    learn = learner(cbs=Log(tmp_path/'log'))
    with pytest.raises(ValueError, match='callback log cannot be copied, for a training of its own: cannot pickle'): learn.compare_inits(['kaiming'], steps=2)

def test_every_scheme_is_in_the_legend():
    "matplotlib leaves out names that begin with an underscore"
    def _mine(m): kaiming_(m)
    res = learner().compare_inits(['default', _mine], steps=2)
    assert list(res)==['default','mine'] and {'default','mine'}<={t.get_text().split(' ')[0] for f in map(plt.figure, plt.get_fignums()) for o in f.legends for t in o.get_texts()}

def test_what_takes_part_in_a_training():
    "What initializes, watches, shows or schedules one fit stays out, and what is made of it; all else is copied, with a Recorder of its own"
    def shows(kind): return type('Shows', (Callback,), dict(__module__=f'fastai.callback.{kind}'))()
    class OwnStats(ActivationStats): pass
    out = [OwnStats(), ParamScheduler({}), LSUVCallback(), WatchCallback(), SaveModelCallback(), ProgressCallback(), *map(shows, 'tensorboard wandb comet neptune captum azureml'.split())]
    def kinds(learn): return sorted(type(o).__name__ for o in learn.cbs)
    for cb in out:
        learn = learner(cbs=[Batches(), cb])
        assert kinds(copied(learn))==kinds(learner(cbs=[Batches()])), cb
    new = copied(learn)
    assert new.recorder is not learn.recorder and new.batches is not learn.batches and sum(isinstance(o, Recorder) for o in new.cbs)==1
