"Initialized on what training gives the model, and the data, their order and the random state as they are without it."
import datetime, functools, itertools, random, warnings
from functools import partial
from types import ModuleType, SimpleNamespace
import numpy as np, pytest, torch
import torch.distributed as dist, torch.multiprocessing as mp
from torch import nn
from torch.utils.data import BatchSampler, DataLoader as TorchLoader, IterableDataset, RandomSampler, Sampler, TensorDataset, WeightedRandomSampler
from fastai.vision.all import BnFreeze, Callback, CrossEntropyLossFlat, DataLoader, DataLoaders, DynamicUnet, ItemTransform, Learner, MixUp, resnet18, set_seed, TfmdDL, TfmdLists, Transform
from fastai.callback.data import PartialDL, WeightedDL
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import ProgressCallback
from fastai.callback.schedule import *
from fastai.learner import before_batch_cb
from fastinit.all import *
from fastinit import batch, loaders

X = torch.randn(64, 12, generator=torch.Generator().manual_seed(3))*40 + 100
Y = (X[:,0]>100).long()
DS = TensorDataset(X, Y)

def net(): return nn.Sequential(nn.Linear(12,24), nn.ReLU(), nn.Linear(24,24), nn.ReLU(), nn.Linear(24,2))
def learner(train=None, model=None, cbs=None, **kwargs):
    set_seed(7)
    train = DataLoader(DS, bs=16, shuffle=True) if train is None else train
    dls = DataLoaders(train, DataLoader(DS, bs=16))
    return Learner(dls, model or net(), loss_func=CrossEntropyLossFlat(), cbs=cbs, **kwargs).remove_cb(ProgressCallback)
def fit(learn, *args, **kwargs):
    with learn.no_logging(): learn.fit(*args, **kwargs)
@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield

class First(Callback):
    "What each linear layer gives in the first training batch, seen by hooks of its own; and all batches"
    order,changes_batch = 2000,False
    def __init__(self): self.xs,self.stds,self.calls = [],{},0
    def before_batch(self):
        if not self.training: return
        self.xs.append(self.x.clone() if isinstance(self.x, torch.Tensor) else None)
        if self.stds: return
        hooks = [m.register_forward_hook(lambda m,i,o,n=n: self.stds.update({n:o.detach().float().std().item()})) for n,m in self.model.named_modules() if isinstance(m, nn.Linear)]
        self.hooks = hooks + [self.model.register_forward_hook(lambda *_: setattr(self, 'calls', self.calls+1))]
    def after_pred(self):
        for h in getattr(self, 'hooks', []): h.remove()
        self.hooks = []

class Raw(nn.Module):
    "Of a type that nobody knows"
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.eye(24))
    def forward(self, x): return x@self.w

# The data stay as they are

class Stream(IterableDataset):
    "A source that can be read once"
    def __init__(self, once=True): self.items,self.once = list(zip(X, Y)),once
    def __len__(self): return 64
    def __iter__(self):
        if not self.once: return iter(self.items)
        if not hasattr(self, 'source'): self.source = iter(self.items*4)
        return (next(self.source) for _ in range(64))
class OwnSampler(Sampler):
    def __init__(self): self.rng = np.random.default_rng(0)
    def __len__(self): return 64
    def __iter__(self): return iter(self.rng.permutation(64).tolist())
class Noisy(torch.utils.data.Dataset):
    "Draws from a generator of its own and from the global one, and counts"
    def __init__(self): self.rng,self.calls = np.random.default_rng(0),0
    def __len__(self): return 64
    def __getitem__(self, i):
        self.calls += 1
        return X[i]+self.rng.normal()+torch.rand(1)*random.random(),Y[i]

def gen(): return torch.Generator().manual_seed(1)
LOADERS = dict(
    fastai=lambda: DataLoader(DS, bs=16, shuffle=True), fastai_workers=lambda: DataLoader(DS, bs=16, shuffle=True, num_workers=2),
    fastai_stream=lambda: DataLoader(Stream(), bs=16, n=64), fastai_noisy=lambda: DataLoader(Noisy(), bs=16, shuffle=True),
    torch=lambda: TorchLoader(DS, 16, shuffle=True), torch_noisy=lambda: TorchLoader(Noisy(), 16, shuffle=True), torch_workers=lambda: TorchLoader(DS, 16, shuffle=True, num_workers=2),
    persistent=lambda: TorchLoader(DS, 16, shuffle=True, num_workers=1, persistent_workers=True),
    generator=lambda: TorchLoader(DS, 16, shuffle=True, generator=gen()), sampler_generator=lambda: TorchLoader(DS, 16, sampler=RandomSampler(DS, generator=gen())),
    weighted=lambda: TorchLoader(DS, 16, sampler=WeightedRandomSampler(torch.ones(64), 64)), own_sampler=lambda: TorchLoader(DS, 16, sampler=OwnSampler()),
    batch_sampler=lambda: TorchLoader(DS, batch_sampler=BatchSampler(OwnSampler(), 16, False)),
    iterable=lambda: TorchLoader(Stream(once=False), 16), stream=lambda: TorchLoader(Stream(), 16))
LOADERS['batches'] = lambda: [(X[i:i+16],Y[i:i+16]) for i in range(0, 64, 16)]
EARLY = ('batches','fastai','fastai_workers','fastai_noisy','torch','torch_noisy','torch_workers','persistent')

@pytest.mark.parametrize('kind', LOADERS)
def test_data_as_without(kind):
    "The same batches, random states and draws from the data as a fit without the callback; and every layer at std 1 on the first batch, or one like it"
    got = []
    for cbs in ([], [LSUVCallback()], [KaimingCallback()]):
        set_seed(3) # a loader of fastai draws when it is made
        learn = learner(LOADERS[kind](), cbs=[First(), *cbs])
        fit(learn, 2, 0.)
        calls = getattr(getattr(learn.dls.train, 'dataset', None), 'calls', 0)
        got.append((torch.stack(learn.first.xs), torch.get_rng_state(), np.random.get_state()[1], random.getstate(), calls))
        if learn.cbs[-1].name=='lsuv':
            late = learn.lsuv.report.notes[:1]
            assert learn.lsuv.done and 'order' not in vars(learn.lsuv) and len(learn.first.xs)==8 and learn.first.calls==1
            assert bool(late and 'initialized at the first training batch' in late[0])==(kind not in EARLY)
            for s in learn.first.stds.values(): assert abs(s-1)<(0.5 if kind in EARLY else 1e-3)
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in learn.model.modules())
    for x,t,n,p,calls in got[1:]:
        assert torch.equal(x, got[0][0]) and torch.equal(t, got[0][1]) and (n==got[0][2]).all() and p==got[0][3] and calls==got[0][4]

SORTED = TensorDataset(X[X[:,0].argsort()]*torch.linspace(0.01, 1, 64)[:,None], Y) # the first batch is much smaller than the others
@pytest.mark.parametrize('kind', ['fastai','torch'])
@pytest.mark.parametrize('shuffle', [False, True])
def test_shuffled_or_not(kind, shuffle):
    "An unshuffled loader gives the very first training batch, a shuffled one a mixed one"
    learn = learner((lambda **kw: DataLoader(SORTED, bs=16, **kw) if kind=='fastai' else TorchLoader(SORTED, 16, **kw))(shuffle=shuffle), cbs=[First(), LSUVCallback()])
    fit(learn, 1, 0.)
    assert learn.lsuv.report.notes==[] and all(abs(s-1)<(0.5 if shuffle else 1e-3) for s in learn.first.stds.values()), learn.first.stds

def test_incomplete_batches():
    "`drop_last`, a batch size, a collate function: those of the loader"
    seen = []
    def collate(items):
        seen.append(len(items))
        return torch.stack([x for x,_ in items])/100,torch.stack([y for _,y in items])
    for drop in (True, False):
        learn = learner(TorchLoader(DS, 48, collate_fn=collate, drop_last=drop), cbs=[First(), LSUVCallback()])
        n = len(seen)
        fit(learn, 1, 0.)
        assert seen[n:]==[48,48]+[16]*(not drop) and all(abs(s-1)<1e-3 for s in learn.first.stds.values()) # one batch more than training has
    none = 'the training DataLoader gives no batch: it is empty, or has fewer items than a batch and drops the last$'
    learn = learner(TorchLoader(DS, 100, drop_last=True), cbs=LSUVCallback())
    with pytest.raises(InitError, match=r'`before_fit`:\s+'+none): fit(learn, 1) # as fastai words it
    learn = learner(TorchLoader(DS, 100, drop_last=True, generator=gen())) # which cannot be asked beforehand
    with pytest.raises(InitError, match='^'+none): learn.init_report()

@pytest.mark.parametrize('kind', ['generator','sampler_generator'])
def test_that_it_was_late_comes_first(kind):
    "Before the other notes"
    learn = learner(LOADERS[kind](), nn.Sequential(nn.Linear(12,24), nn.ReLU(), Raw(), nn.Linear(24,2)), LSUVCallback())
    fit(learn, 1, 0.)
    late,unknown = learn.lsuv.report.notes
    assert late.startswith('initialized at the first training batch') and unknown.startswith('1 weight in 1 module of unknown type (Raw;')

@pytest.mark.parametrize('kind', ['generator','sampler_generator'])
def test_report_and_comparison_of_a_generator_leave_it(kind):
    loader = LOADERS[kind]()
    g = loader.generator or loader.sampler.generator
    learn,was = learner(loader),g.get_state()
    for f in (learn.init_report, learn.compare_inits, partial(learn.compare_inits, ['kaiming'], steps=1)):
        with pytest.warns(UserWarning, match='generator of its own. A batch was taken') as w: f()
        assert w[0].filename==__file__ # the line that asked
        assert torch.equal(was, g.get_state())

class Drawing(torch.utils.data.Dataset):
    "Draws from generators of every kind, and keeps what it drew"
    def __init__(self): self.torch,self.random,self.old,self.new,self.last = torch.Generator().manual_seed(0),random.Random(0),np.random.RandomState(0),np.random.default_rng(0),None
    def __len__(self): return 64
    def __getitem__(self, i):
        self.last = [torch.rand(1, generator=self.torch).item(), self.random.random(), self.old.rand(), self.new.random()]
        return X[i]+sum(self.last),Y[i]
@pytest.mark.parametrize('inside', [False, True])
@pytest.mark.parametrize('error', [False, True])
def test_generators_in_the_data(inside, error):
    "Of a data set, or of one in a `Subset`: they draw on where they were"
    expected = Drawing()
    [expected[0] for _ in range(2)]
    ds = Drawing()
    ds[0]
    try:
        with batch.unmoved_data(TorchLoader(torch.utils.data.Subset(ds, range(64)) if inside else ds, 16)):
            [ds[i] for i in range(5)]
            if error: raise ZeroDivisionError
    except ZeroDivisionError: pass
    last = ds.last
    ds[0]
    assert ds.last==expected.last!=last

class Jitter(ItemTransform):
    "Draws from a generator of its own, and counts"
    calls = 0
    def __init__(self, g=None): self.rng = g or np.random.default_rng(3)
    def encodes(self, o):
        self.calls += 1
        return (o[0]*self.rng.uniform(.5, 1.5) + self.calls/100, *o[1:])
class Inside(ItemTransform):
    def __init__(self): self.aug = dict(first=[Jitter()])
    def encodes(self, o): return self.aug['first'][0](o)
class OfDataSet(torch.utils.data.Dataset):
    def __init__(self, transform): self.transform = transform
    def __len__(self): return 64
    def __getitem__(self, i): return self.transform((X[i],Y[i]))
module_rng = np.random.default_rng(3)
def with_global(b): return Jitter(module_rng)(b)
def closed_over():
    jitter = Jitter()
    return lambda b: jitter(b)
config = ModuleType('config')
def named_noise(i): return module_rng.normal()
class Noisy12:
    "Adds what a function gives"
    def __init__(self, noise): self.noise = noise
    def __len__(self): return 64
    def __getitem__(self, i): return X[i]+self.noise(i),Y[i]
class OfClass(Noisy12):
    def __init__(self): type(self).rng = np.random.default_rng(3)
    @property
    def shift(self): return self.rng.normal()
    def __getitem__(self, i): return X[i]+self.shift,Y[i]
class Named(ItemTransform):
    def encodes(self, o): return (o[0]+named_noise(0), o[1])
class Dispatched(Transform):
    "Different for each type"
    def encodes(self, o:torch.Tensor): return o+module_rng.normal() if o.is_floating_point() else o
class Popped(Noisy12):
    "Takes what it adds from a list"
    def __init__(self): self.left = list(range(1000))
    def __getitem__(self, i): return X[i]+self.left.pop(),Y[i]
def collated(f): return lambda items: f((torch.stack([x for x,_ in items]),torch.stack([y for _,y in items])))
READERS = dict(item=lambda: DataLoader(DS, bs=16, after_item=Jitter()), batch=lambda: TfmdDL(DS, bs=16, num_workers=0, after_batch=Jitter()),
    nested=lambda: TfmdDL(DS, bs=16, num_workers=0, after_item=Inside()), python=lambda: DataLoader(DS, bs=16, after_item=Jitter(random.Random(1))),
    datasets=lambda: TfmdDL(TfmdLists(range(64), [lambda i: (X[i],Y[i]), Inside()]), bs=16, num_workers=0),
    torch=lambda: TorchLoader(OfDataSet(Jitter()), 16), partial=lambda: TorchLoader(OfDataSet(partial(Jitter().encodes)), 16),
    collate=lambda: TorchLoader(DS, 16, collate_fn=collated(closed_over())), module=lambda: DataLoader(DS, bs=16, after_item=with_global),
    named=lambda: DataLoader(Noisy12(named_noise), bs=16), of_class=lambda: DataLoader(OfClass(), bs=16), other_module=lambda: DataLoader(Noisy12(lambda i: config.rng.normal()), bs=16),
    comprehension=lambda: DataLoader(DS, bs=16, after_item=lambda b: (b[0]+sum(module_rng.normal() for _ in range(2)), b[1])), transform=lambda: DataLoader(DS, bs=16, after_item=Named()),
    by_type=lambda: TfmdDL(TfmdLists(range(64), [lambda i: (X[i],Y[i]), Dispatched()]), bs=16, num_workers=0), popped=lambda: DataLoader(Popped(), bs=16))
@pytest.mark.parametrize('kind', READERS)
@pytest.mark.parametrize('how', ['fit','report','compare'])
def test_generators_in_transforms(kind, how):
    "Wherever they are: the batches are those of a fit without fastinit"
    global module_rng
    got = []
    for asked in (False, True):
        module_rng = config.rng = np.random.default_rng(3)
        learn = learner(READERS[kind](), cbs=[First(), *([LSUVCallback()] if asked and how=='fit' else [])])
        if asked and how!='fit': dict(report=learn.init_report, compare=learn.compare_inits)[how]()
        fit(learn, 2, 0.)
        got.append(torch.stack(learn.first.xs))
    assert torch.equal(*got) and not torch.equal(got[0][:4], got[0][4:])

@pytest.mark.parametrize('it', [lambda: itertools.cycle([0.,1.,2.]), lambda: (float(i) for i in range(1000))])
def test_an_iterator_in_the_data_is_not_drawn_from(it):
    "It cannot be put back: the initialization waits for the first batch"
    got = []
    for cbs in ([], [LSUVCallback()]):
        shifts = it()
        learn = learner(DataLoader(Noisy12(lambda i: next(shifts)), bs=16), cbs=[First(), *cbs])
        fit(learn, 1, 0.)
        got.append(torch.stack(learn.first.xs))
    assert torch.equal(*got) and 'takes from an iterator, a ' in learn.lsuv.report.notes[0]

class OwnDL(TfmdDL): pass
@pytest.mark.parametrize('dl', [TfmdDL, OwnDL])
def test_a_loader_in_use_can_be_asked(dl):
    "Also after a fit that was interrupted: it then keeps its iterators"
    learn = learner(dl(DS, bs=16, shuffle=True, num_workers=0))
    it = iter(learn.dls.train)
    next(it)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        learn.init_report()
    fit(learn, 1)
    assert isinstance(batch.training_batch(learn)[0][0], torch.Tensor)

def test_options_that_new_does_not_know():
    "The weights of a `WeightedDL`, what is drawn of a `PartialDL`"
    loud = TensorDataset(torch.cat([X, 100*X]), torch.cat([Y, Y]))
    learn = learner(WeightedDL(loud, bs=16, wgts=[1.]*64+[0.]*64, shuffle=True, num_workers=0), cbs=[First(), LSUVCallback()])
    fit(learn, 1, 0.)
    assert learn.lsuv.report.notes==[] and all(abs(s-1)<0.5 for s in learn.first.stds.values())
    assert len(loaders.anew(PartialDL(DS, bs=16, partial_n=32, num_workers=0)))==2

class Validates(Callback):
    "Logs what the untrained model is worth"
    busy = False
    def before_epoch(self):
        if self.busy: return # `validate` is an epoch too
        self.busy = True
        self.learn.validate()
        self.busy = False
class Louder(Callback):
    def before_batch(self): self.learn.xb = (self.x*20,)
@pytest.mark.parametrize('kind', ['fastai','stream'])
def test_validated_before_the_first_batch(kind):
    "A callback that waits for the first batch waits on, and acts after those that change it"
    learn = learner(LOADERS[kind](), cbs=[LSUVCallback(), First(), Louder(), Validates()])
    fit(learn, 1, 0.)
    assert learn.lsuv.report['0'].std_before>5 and all(abs(s-1)<(0.5 if kind=='fastai' else 1e-3) for s in learn.first.stds.values())

def test_two_at_the_first_batch():
    "The last of them is measured again, not the one whose layers it changed"
    deep = nn.Sequential(*[o for _ in range(8) for o in (nn.Linear(12,12), nn.Tanh())], nn.Linear(12,2))
    learn = learner(LOADERS['stream'](), deep, [KaimingCallback(nonlinearity='linear'), LSUVCallback()])
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        fit(learn, 1, 0.)
    assert not [o for o in w if 'another std' in str(o.message)] and learn.kaiming.report.df['std'].iloc[-1]<0.7

class Asks(Callback):
    "Keeps what it is told of the training, and scales by it"
    def __init__(self): self.told = []
    def before_batch(self):
        if not self.training: return
        self.told.append((self.n_epoch, self.n_iter, self.epoch, self.iter, self.train_iter, self.pct_train, self.training, self.dl is self.dls.train, self.asks is self))
        self.learn.xb = (self.x/self.n_iter/255 + self.epoch + self.iter + self.train_iter + self.pct_train,)
def test_what_a_callback_sees_beforehand():
    "That of the first training batch, and it keeps nothing of it"
    seen = []
    class Outside(Asks):
        name = 'asks'
        def before_batch(self):
            super().before_batch()
            if self.training: seen.append(self.told[-1])
    seen.clear()
    cb = Outside()
    learn = learner(cbs=[First(), LSUVCallback(), cb])
    fit(learn, 3, 0.)
    assert learn.lsuv.report.notes==[] and all(abs(s-1)<0.5 for s in learn.first.stds.values())
    assert len(cb.told)==12 and cb.told[0]==(3,4,0,0,0,0.,True,True,True)
    assert len(seen)==13 and seen[0]==seen[1] # beforehand, then in training

@pytest.mark.parametrize('now,off', [(2.01, True), (1.99, False), (0.51, False), (0.49, True), (float('nan'), True), (float('inf'), True)])
def test_what_is_off(now, off):
    "By more than a factor of 2, of 32 values at least, where there was a spread"
    from fastinit.recheck import off_layers
    report = init_stats(net(), X/40)
    def row(layer, shape=(4,8), std=1.): return SimpleNamespace(layer=layer, shape=shape, std=std*report[layer]['std'])
    got = off_layers(report, [row('0', std=now), row('2', (4,7), now), row('4')])
    assert list(got)==['0']*off and off_layers(report, [SimpleNamespace(layer='another', shape=(64,), std=9.)])=={}
    if off: assert got['0'][1]==report['0']['std'] and (got['0'][0]==pytest.approx(now*report['0']['std']) or now!=now)
    report.df['std'] = 0.
    assert off_layers(report, [SimpleNamespace(layer='0', shape=(64,), std=1.)])=={}

def test_the_likely_cause_first():
    "Callbacks that change the batch, then others of the user's, then what differs in training; fastai's own that only show are no cause"
    class Sees(Callback):
        order = -5
        def before_batch(self): pass
    class Later(Callback):
        def after_batch(self): pass
    live = []
    class Live(Callback):
        changes_batch = False
        def before_train(self): live.append(1)
    class Changes(Callback):
        order = 5
        def before_batch(self): self.learn.xb = (self.x/1e4,) if live else self.xb
    model = nn.Sequential(nn.Linear(12,24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24,24), nn.ReLU(), nn.Linear(24,2))
    learn = learner(model=model, cbs=[LSUVCallback(watch=2), Later(), Sees(), Changes(), Live()])
    with pytest.warns(UserWarning, match=r'the cause could be (CastToTensor, )?Changes, Sees, 1 Dropout \(first: 2\)$'): fit(learn, 1, 0.)

# Other callbacks

class Scale(Callback):
    def before_batch(self): self.learn.xb = tuple(x/255 for x in self.xb)
class InPlace(Callback):
    def before_batch(self): self.x.div_(255)
class Counting(Scale):
    "Draws, counts and keeps"
    def __init__(self): self.n,self.kept,self.rng = 0,[],np.random.default_rng(0)
    def before_batch(self):
        self.n += 1
        self.kept.append(self.x)
        super().before_batch()
        self.learn.xb = (self.learn.xb[0]+self.rng.normal()*1e-3,)
        print('at work')
CALLBACKS = dict(scale=Scale, in_place=InPlace, counting=Counting, function=lambda: before_batch_cb(lambda self,x,y: ((x[0]/255,),y)))
@pytest.mark.parametrize('kind', CALLBACKS)
@pytest.mark.parametrize('loader', ['fastai','torch','stream'])
def test_batch_as_training_gives_it(kind, loader, capsys):
    "What the first training batch gives is what the report says"
    cb = CALLBACKS[kind]()
    learn = learner(LOADERS[loader](), cbs=[First(), LSUVCallback(), cb])
    before = X.clone()
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        fit(learn, 1, 0.)
    for s in learn.first.stds.values(): assert abs(s-1)<0.5
    if kind=='counting': assert cb.n==8==len(cb.kept) and capsys.readouterr().out.count('at work')==8 # four batches to train, four to validate
    assert torch.equal(X, before) or kind=='in_place' and loader=='stream' # whose items these are

def wrapped(f):
    @functools.wraps(f)
    def _inner(*args): return f(*args)
    return _inner
class Bound:
    def scale(self, cb): cb.learn.xb = (cb.x/255,)
@pytest.mark.parametrize('how', ['method','wrapped','helper','nested','partial','bound'])
def test_where_the_code_of_a_callback_is(how):
    "In a method, a decorated one, a method that it calls, a function in it, a partial, a method of something else"
    class Decorated(Callback):
        @wrapped
        def before_batch(self): self.learn.xb = (self.x/255,)
    class Helper(Callback):
        def before_batch(self): self.scale()
        def scale(self): self.learn.xb = (self.x/255,)
    class Nested(Callback):
        def before_batch(self):
            def f(): self.learn.xb = (self.x/255,)
            f()
    cb = dict(method=Scale, wrapped=Decorated, helper=Helper, nested=Nested).get(how, Callback)()
    if how=='partial': cb.before_batch = functools.partial(lambda c: setattr(c.learn, 'xb', (c.x/255,)), cb)
    if how=='bound': cb.before_batch = functools.partial(Bound().scale, cb)
    assert cb in batch.batch_callbacks(learner(cbs=[cb])) and batch.speaks_of(cb, 'before_batch', 'xb', 'x') and not batch.speaks_of(cb, 'before_batch', 'yb')
    learn = learner(cbs=[First(), LSUVCallback(), cb])
    fit(learn, 1, 0.)
    assert learn.lsuv.report.notes==[] and all(abs(s-1)<0.5 for s in learn.first.stds.values())

def test_callbacks_that_do_not_run():
    "One that is switched off, acts in validation only, says that it does not change the batch, or can be seen not to; one that says that it does is asked"
    class Off(Scale): run = False
    class Valid(Scale): run_train = False
    class Says(Scale): changes_batch = False
    class Unread(Callback): before_batch = print # built in: it could be anything
    class Cached(Callback): before_batch = functools.lru_cache(lambda self: self.learn.metrics) # built in, but what it wraps can be read
    class SaysSo(Callback):
        changes_batch = True # where one cannot see it
        def before_batch(self): self.change()
    found = {type(o) for o in batch.batch_callbacks(learner(cbs=[Off(), Valid(), Says(), Unread(), Cached(), SaysSo(), Scale()]))}
    assert {Unread,SaysSo,Scale}<=found and not found & {Off,Valid,Says,Cached}

class Flatten(Callback):
    def before_batch(self): self.learn.xb = (self.x.flatten(1),)
class Cast(Callback):
    def before_batch(self): self.learn.xb = (self.x.float().div(255),)
@pytest.mark.parametrize('cb,x', [(Flatten, X.view(64,3,4)/40), (Cast, X.clamp(0, 255).byte())], ids=['flatten','cast'])
def test_callbacks_that_make_it_fit(cb, x):
    learn = learner(DataLoader(TensorDataset(x, Y), bs=16, shuffle=True), cbs=[First(), LSUVCallback(), cb()])
    fit(learn, 1, 0.)
    assert not learn.lsuv.report.notes and all(abs(s-1)<0.5 for s in learn.first.stds.values())

def elsewhere(cb): cb.learn.xb = (cb.learn.xb[0]/1e4,) # no look at the callback tells
class Hidden(Callback):
    def before_batch(self): elsewhere(self)
def test_warning_names_the_cause():
    learn = learner(cbs=[First(), LSUVCallback(), Hidden()])
    with pytest.warns(UserWarning, match=r'layers? gave another std in the first training batch than in the report, .*cause could be .*Hidden') as ws: fit(learn, 2, 0.)
    said = [str(w.message) for w in ws if 'first training batch' in str(w.message)]
    assert len(said)==1 and said[0] in learn.lsuv.report.notes and f"{learn.first.stds['0']:.3g}" in said[0] and learn.first.stds['0']<0.01

def test_what_differs_in_training_is_said():
    "Dropout is off in the passes; six of them make the first training batch another one"
    layers = [o for _ in range(6) for o in (nn.Linear(24,24), nn.ReLU(), nn.Dropout(0.5))]
    learn = learner(model=nn.Sequential(nn.Linear(12,24), *layers, nn.Linear(24,2)), cbs=[First(), LSUVCallback()])
    with pytest.warns(UserWarning, match=r'first training batch .*6 Dropout .first: 3'): fit(learn, 1, 0.)
    assert learn.lsuv.report.notes[0]=='measured as in evaluation; different in training: 6 Dropout (first: 3)'
    assert max(learn.first.stds.values())>2

def unfit(cb): cb.learn.xb = (cb.learn.xb[0].flatten(1),)
class HiddenFlatten(Callback):
    def before_batch(self): unfit(self)
class Context(Callback):
    "Enters one, and changes the batch"
    def before_batch(self):
        self.ctx = torch.autocast('cpu', dtype=torch.bfloat16)
        self.ctx.__enter__()
        self.learn.xb = (self.x/255,)
    def after_loss(self): self.ctx.__exit__(None, None, None)
def test_why_no_batch_fits_is_said():
    "The callback that would have made it fit, not the batch, is named"
    def wide(): return learner(model=nn.Sequential(nn.Linear(6,24), nn.ReLU(), nn.Linear(24,2)), cbs=Halves())
    for f in (wide().init_report, wide().compare_inits, partial(wide().compare_inits, ['kaiming'], steps=1)):
        with pytest.raises(InitError, match='^Halves uses the model, perhaps to hook it, and the model fails on a batch as the DataLoader gives it: .* waits for the first training batch'): f()
    learn = wide()
    fit(learn.add_cb(LSUVCallback()), 1, 0.)
    assert (learn.init_report().df['std']-1).abs().max()<1e-3
class Halves(Callback):
    "Makes the batch fit, with a look at the model"
    def before_batch(self): self.learn.xb = (self.x[:,:self.model[0].in_features],)

class Freezes(Callback):
    "Freezes a layer when a fit begins, and makes the initialization wait"
    def before_fit(self): self.model[2].requires_grad_(False).eval()
@pytest.mark.parametrize('cb', [LSUVCallback, KaimingCallback])
def test_what_a_callback_freezes_is_initialized(cb):
    "As it is where the initialization is before; what was frozen before the fit is not"
    learn = learner(cbs=[cb(), Freezes()])
    learn.model[4].requires_grad_(False)
    was = [m.weight.clone() for m in learn.model[::2]]
    fit(learn, 1, 0.)
    changed = [not torch.equal(w, m.weight) for w,m in zip(was, learn.model[::2])]
    assert changed==[True,True,False] and learn.init_report().left=={'4':'frozen'} and 'at the first training batch' in learn.init_report().notes[0]
    assert [p.requires_grad for p in learn.model.parameters()]==[True,True]+[False]*4

class Hooks(Callback):
    def before_batch(self):
        if self.training: self.hook = self.model.register_forward_hook(lambda *_: None)
        self.learn.xb = (self.x/255,)
    def after_pred(self):
        if self.training: self.hook.remove()
class Uncopied(Scale):
    def __init__(self): self.items = (o for o in range(3))
@pytest.mark.parametrize('cb,why', [(HiddenFlatten, 'does not fit the model'), (Context, 'enters a context'), (Hooks, 'uses the model'), (Uncopied, 'cannot be copied')])
def test_first_batch_where_nothing_else_will_do(cb, why):
    "Initialized on the first training batch itself: exact, in float32, and said"
    x = X.view(64,3,4) if cb is HiddenFlatten else X
    learn = learner(DataLoader(TensorDataset(x, Y), bs=16, shuffle=True), cbs=[First(), LSUVCallback(), cb()])
    fit(learn, 1, 0.)
    assert why in learn.lsuv.report.notes[0]
    for s in learn.first.stds.values(): assert abs(s-1)<(0.02 if cb is Context else 1e-3) # bfloat16
    assert not torch.is_autocast_enabled('cpu') and not any(m._forward_hooks for m in learn.model.modules())

@pytest.mark.parametrize('cb', [MixedPrecision, MixUp])
def test_fastais_own_need_not_wait(cb):
    learn = learner(cbs=[LSUVCallback(), cb()])
    fit(learn, 1, 0.)
    assert not any('initialized at the first training batch' in o for o in learn.lsuv.report.notes) and not torch.is_autocast_enabled('cpu')

# In the modes that training has

class Normed(nn.Module):
    "Two batchnorms, with running statistics that are far from those of a batch"
    def __init__(self):
        super().__init__()
        self.body,self.head = nn.Sequential(nn.Linear(12,24), nn.BatchNorm1d(24)),nn.Sequential(nn.Linear(24,24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24,2))
        for m in (self.body[1], self.head[1]):
            m.running_mean.fill_(5.)
            m.running_var.fill_(100.)
    def forward(self, x): return self.head(self.body(x))
class Keeps(Normed):
    "Whose body stays in evaluation mode, as detection models have it"
    def train(self, mode=True):
        super().train(mode)
        self.body.eval()
        return self
class Evals(Callback):
    def before_train(self): self.model.body.eval()
def fresh(): return Normed(),[]
def body_in_eval():
    m = Normed()
    m.body.eval() # as after a forward that looked at sizes, which training undoes
    return m,[]
def all_in_eval(): return Normed().eval(),[]
def frozen():
    m = Normed()
    m.body.requires_grad_(False)
    return m,[BnFreeze()]
def frozen_by_hand(): return Normed(),[Evals()]
def keeps(): return Keeps(),[]
@pytest.mark.parametrize('loader', ['fastai','stream'])
@pytest.mark.parametrize('case', [fresh, body_in_eval, all_in_eval, frozen, frozen_by_hand, keeps])
def test_modes(case, loader):
    "Normalization as in the first training batch: what comes after it has std 1 there, and the modes are as before"
    model,cbs = case()
    learn = learner(LOADERS[loader](), model, cbs=[First(), LSUVCallback(), *cbs])
    learn.create_opt() # which `fit` does before any callback
    modes = [m.training for m in model.modules()]
    learn.compare_inits(['lsuv'])
    learn.init_report()
    assert modes==[m.training for m in model.modules()]
    running = model.body[1].running_mean.clone()
    fit(learn, 1, 0.)
    for n,s in learn.first.stds.items(): assert abs(s-1)<(0.5 if loader=='fastai' else 1e-3) or n.startswith('body.0') and case is frozen, (n, s)
    stays = case in (frozen, frozen_by_hand, keeps)
    assert torch.equal(running, model.body[1].running_mean)==stays # the test's own check
    assert any('1 normalization' in o for o in learn.lsuv.report.notes)==stays and not any('another std' in o for o in learn.lsuv.report.notes)
    assert any('puts modules in evaluation mode' in o for o in learn.lsuv.report.notes)==(case is frozen_by_hand)

def test_modes_are_put_back_after_an_error():
    model = Normed()
    model.body.eval()
    learn = learner(model=model, cbs=LSUVCallback())
    model.head[3].register_forward_hook(lambda *_: 1/0)
    with pytest.raises(ZeroDivisionError): fit(learn, 1)
    assert [m.training for m in (model, model.body, model.body[1], model.head[1])]==[True,False,False,True]

def test_fresh_unet():
    "fastai's leaves its encoder in evaluation mode when it is made"
    ds = [(torch.randn(3,32,32), torch.randint(0, 2, (32,32))) for _ in range(8)]
    model = DynamicUnet(nn.Sequential(*list(resnet18().children())[:-2]), 2, (32,32))
    assert model.training and not model.layers[0][1].training
    learn = Learner(DataLoaders.from_dsets(ds, ds, bs=8, num_workers=0), model, loss_func=CrossEntropyLossFlat(axis=1), cbs=[LSUVCallback()]).remove_cb(ProgressCallback)
    fit(learn, 1, 0.)
    assert learn.lsuv.report.notes==[] and (learn.lsuv.report.df['std'][learn.lsuv.report.df.scale.notna()]-1).abs().max()<1e-3

def test_what_looks_at_training():
    "Modules with others in them count where they have a rate that is not 0"
    from fastai.text.all import WeightDropout
    from fastinit.recheck import differs_in_training
    class Layer(nn.Module):
        def __init__(self, dropout):
            super().__init__()
            self.lin,self.dropout = nn.Linear(4,4),dropout
        def forward(self, x): return nn.functional.dropout(self.lin(x), p=self.dropout, training=self.training)
    class Checkpointed(Layer):
        def forward(self, x): return self.lin(x) if self.training and self.dropout>9 else self.lin(x)
    model = nn.Sequential(Layer(0.), Layer(0.3), Layer(0.1), nn.Dropout(0.), nn.BatchNorm1d(4), nn.MultiheadAttention(4, 1, dropout=0.2), nn.MultiheadAttention(4, 1),
                          WeightDropout(nn.LSTM(4,4), 0.5), nn.LSTM(4, 4, 2, dropout=0.1), Checkpointed(16))
    assert differs_in_training(model)==['2 Layer (first: 1)','1 MultiheadAttention (first: 5)','1 WeightDropout (first: 7)','1 LSTM (first: 8)']

def test_not_watched_in_copies():
    "On several devices a model runs in copies, whose hooks are not these"
    from fastinit.recheck import can_watch
    model = nn.DataParallel(net())
    for ids,can in (([], True), ([0], True), ([0,1], False), ([0,1,2], False)):
        model.device_ids = ids
        assert can_watch(model)==can
    assert can_watch(net()) and not can_watch(torch.compile(net(), backend='eager'))

# At the first batch, in the life of a Learner

def weights(learn): return [p.detach().clone() for p in learn.model.parameters()]
def same(a, b): return all(torch.equal(p, q) for p,q in zip(a, b, strict=True))

@pytest.mark.parametrize('cbs', [1, 2])
def test_again_after_lr_find(tmp_path, cbs):
    "`lr_find` puts the old weights back: the fit initializes"
    learn = learner(LOADERS['generator'](), cbs=[First(), LSUVCallback(), *([KaimingCallback(distribution='uniform')] if cbs==2 else [])], path=tmp_path)
    before = weights(learn)
    with learn.no_logging(): learn.lr_find(num_it=6, show_plot=False)
    assert same(before, weights(learn)) and abs(learn.first.stds['2']-1)<1e-3
    learn.first.stds = {}
    fit(learn, 1, 0.)
    assert learn.lsuv.done and all(abs(s-1)<1e-3 for s in learn.first.stds.values()) and set(learn.lsuv.report.df.status)=={'ok'}
    after = weights(learn)
    fit(learn, 1, 0.)
    assert same(after, weights(learn))
    if cbs==2: # LSUV scaled what Kaiming drew
        w = learn.model[2].weight
        assert abs(learn.lsuv.report['2']['scale']*(6/24)**0.5/w.abs().max()-1)<0.02

def test_loaded_stays_at_the_first_batch():
    learn = learner(LOADERS['stream'](), cbs=LSUVCallback())
    learn.model[0].load_state_dict(net()[0].state_dict())
    kept = learn.model[0].weight.clone()
    fit(learn, 1, 0.)
    assert torch.equal(kept, learn.model[0].weight) and list(learn.lsuv.report.df.status)==['loaded','ok','ok']

def test_interrupted_before_the_first_batch(tmp_path):
    "The next `lr_find` does not lose it, and the fit after that has it"
    class Stop(Callback):
        def before_train(self): raise RuntimeError('on purpose')
    learn = learner(LOADERS['generator'](), cbs=[First(), LSUVCallback()], path=tmp_path)
    with pytest.raises(RuntimeError): fit(learn, 1, 0., cbs=Stop())
    assert not learn.lsuv.done
    learn.dls.loaders[0] = LOADERS['fastai']() # which could be asked
    with learn.no_logging(): learn.lr_find(num_it=6, show_plot=False)
    learn.first.stds = {}
    fit(learn, 1, 0.)
    assert learn.lsuv.done and all(abs(s-1)<0.5 for s in learn.first.stds.values()) and 'order' not in vars(learn.lsuv)

def test_watched_from_the_first_batch():
    learn = learner(LOADERS['stream'](), cbs=LSUVCallback(watch=3))
    fit(learn, 1, 1e-3)
    first = learn.lsuv.report.watched.df.query('step==1')
    assert len(learn.lsuv.report.watched)==3 and (first['std']-1).abs().max()<1e-3

# Any batch that trains

class Graph:
    "Nodes and who is a neighbour of whom, as a graph library has them"
    def __init__(self, x, edges): self.x,self.edges = x,edges
    def to(self, device, **kwargs): return Graph(self.x.to(device), self.edges.to(device))
class GraphNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.b = nn.Linear(12,16),nn.Linear(16,2)
    def forward(self, g): return self.b(g.edges@self.a(g.x).relu())
class ListNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.b = nn.Linear(12,16),nn.Linear(16,2)
    def forward(self, xs): return torch.stack([self.b(self.a(x).relu()).mean(0) for x in xs])
class ScalarNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.b = nn.Linear(12,16),nn.Linear(16,2)
    def forward(self, t, x): return self.b(self.a(x*t).relu())

def graphs(items): return Graph(torch.stack([x for x,_ in items]), torch.eye(len(items))),torch.stack([y for _,y in items])
def lists(items): return [x.repeat(i+2, 1) for i,(x,_) in enumerate(items)],torch.stack([y for _,y in items])
def scalars(items): return torch.tensor(0.1),torch.stack([x for x,_ in items]),torch.stack([y for _,y in items])
@pytest.mark.parametrize('loader', ['early','late'])
@pytest.mark.parametrize('model,collate', [(GraphNet,graphs), (ListNet,lists), (ScalarNet,scalars)], ids=['graphs','lists','scalar'])
def test_any_batch(model, collate, loader):
    dl = TorchLoader(DS, 16, shuffle=True, collate_fn=collate, generator=gen() if loader=='late' else None)
    learn = learner(dl, model(), cbs=LSUVCallback())
    learn.dls.loaders = [dl, TorchLoader(DS, 16, collate_fn=collate)]
    fit(learn, 1, 0.)
    assert set(learn.lsuv.report.df.status)=={'ok'} and (learn.lsuv.report.df['std']-1).abs().max()<1e-3
    assert any('initialized at the first training batch' in o for o in learn.lsuv.report.notes)==(loader=='late')
    learn.init_report(hist=True)

# Several processes

class Wrap(Callback):
    "As fastai's distributed training, which needs a GPU"
    order = 11
    def before_fit(self): self.learn.model = nn.parallel.DistributedDataParallel(self.model)
    def after_fit(self): self.learn.model = self.learn.model.module

def work(rank, size, folder):
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    dist.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=size, timeout=datetime.timedelta(seconds=60))
    res = []
    for kind in ('stream','torch','stream' if rank else 'torch'): # in the end one of them has no batch before training
        learn = learner(LOADERS[kind](), cbs=[First(), LSUVCallback(), Wrap()])
        fit(learn, 1, 0.)
        res.append((learn.model.state_dict(), learn.lsuv.report, list(learn.first.stds.values())))
    torch.save(res, f'{folder}/{rank}.pt')
    dist.barrier()
    dist.destroy_process_group()

def test_two_processes_wait_together(tmp_path):
    mp.spawn(work, (2, str(tmp_path)), nprocs=2)
    for i,(a,b) in enumerate(zip(*(torch.load(tmp_path/f'{k}.pt', weights_only=False) for k in (0,1)))):
        for (w,report,stds) in (a,b):
            assert all(torch.equal(v, a[0][k]) for k,v in w.items()) and (report.df['std']-1).abs().max()<1e-3
            assert any('initialized at the first training batch' in o for o in report.notes)==(i!=1) and all(abs(s-1)<(0.5 if i==1 else 0.2) for s in stds) # of other items than those measured, in a head of two

@pytest.mark.parametrize('kind,why', [
    *((k,'') for k in EARLY), *((k,'its data set is a stream') for k in ('fastai_stream','iterable','stream')),
    *((k,'it has a generator of its own') for k in ('generator','sampler_generator')), *((k,'it has a sampler of its own') for k in ('weighted','own_sampler')),
    ('batch_sampler','it has a batch sampler of its own')])
def test_why_a_loader_cannot_be_asked(kind, why): assert batch.cannot_ask(LOADERS[kind]())==why

def test_why_other_loaders_cannot_be_asked():
    class Own(TorchLoader):
        def __iter__(self): return super().__iter__()
    def seed(i): pass
    unbatched = TorchLoader(DS, batch_sampler=BatchSampler(RandomSampler(DS), 16, False))
    for dl,why in [(Own(DS), 'Own has an `__iter__` of its own'), (TorchLoader(DS, worker_init_fn=seed), 'it has a `worker_init_fn`'), ((X,), ''), ({'a':1}, 'it is a dict'),
                   (unbatched, 'it has a batch sampler of its own'), (DataLoader(iter(DS), bs=4), 'its data set is a stream')]:
        assert batch.cannot_ask(dl)==why, why

class AddOne(Callback):
    order = 10
    def after_pred(self): self.learn.pred = self.pred + 1
class Double(Callback):
    order = 20
    def after_pred(self): self.learn.pred = self.pred*2
class Halve(Callback):
    order = 30
    def after_loss(self): self.learn.loss_grad = self.loss_grad/2

@pytest.mark.parametrize('cbs', [(AddOne,Double,Halve), (Halve,Double,AddOne)])
def test_the_loss_with_callbacks(cbs):
    "In their order, however they were added; nothing stays behind"
    learn = learner(cbs=[cb() for cb in cbs])
    pred = torch.randn(16, 2)
    loss = batch.loss_with_callbacks(learn)(pred, Y[:16])
    assert loss==pytest.approx(learn.loss_func((pred+1)*2, Y[:16]).item()/2) and 'pred' not in vars(learn)

class Nothing(IterableDataset):
    "A stream that is at its end"
    def __iter__(self): return iter([])
    def __len__(self): return 0

@pytest.mark.parametrize('train,epochs', [(Nothing, 1), (Stream, 0)])
def test_no_training_batch_came(train, epochs):
    "Nothing is initialized, on validation batches neither; the callback is again where it was, and does it in the next fit"
    learn = learner(TorchLoader(train(), 16), cbs=LSUVCallback())
    before = [p.clone() for p in learn.model.parameters()]
    fit(learn, epochs, 0.)
    assert not learn.lsuv.done and learn.lsuv.report is None and 'order' not in vars(learn.lsuv) and learn.lsuv.order<100
    assert all(map(torch.equal, before, learn.model.parameters()))
    learn.dls.loaders[0] = TorchLoader(Stream(), 16)
    fit(learn, 1, 0.)
    assert learn.lsuv.done and len(learn.lsuv.report)==3

def test_stand_in_is_at_its_first_training_batch():
    "Like a fit of one epoch, or of as many as the Learner is about to do, that has just begun; the Learner is not touched"
    learn = learner()
    was = dict(vars(learn))
    twin = batch.stand_in(learn, [])
    assert (twin.training, twin.iter, twin.epoch, twin.train_iter, twin.pct_train, twin.n_iter, twin.n_epoch)==(True, 0, 0, 0, 0., 4, 1)
    assert twin.dl is learn.dls.train and twin.model is learn.model and not len(twin.cbs) and vars(learn)==was
    learn.n_epoch = 3
    assert batch.stand_in(learn, []).n_epoch==3
    first = First()
    learn.add_cb(first)
    twin = batch.stand_in(learn, [first])
    assert twin.first is not first and twin.first.learn is twin and list(twin.cbs)==[twin.first] and first.learn is learn
