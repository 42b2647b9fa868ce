"The first steps watched: the numbers are those of plain hooks, the training is that of an unwatched Learner, and nothing stays behind."
import math, pickle, random, warnings
from copy import deepcopy
import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest, torch
from torch import nn
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.hook import ActivationStats
from fastai.callback.mixup import MixUp
from fastai.callback.progress import ProgressCallback
import fastai.callback.schedule # adds lr_find and fine_tune to Learner
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.basics import Callback, CancelBatchException, CancelValidException, CrossEntropyLossFlat, DataLoader, DataLoaders, Learner, params, set_seed
from fastinit.all import *
from fastinit.trained import known_of
from fastinit.watched import Watched, plot_losses, plot_watched

@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield

def data(n=96, bs=16):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 12, generator=g)
    ds = list(zip(x, (x[:,0]>0).long()))
    return DataLoaders.from_dsets(ds[:n*2//3], ds[n*2//3:], bs=bs, num_workers=0) # four batches an epoch

def net(): return nn.Sequential(nn.Linear(12,24), nn.BatchNorm1d(24), nn.ReLU(inplace=True), nn.Linear(24,24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24,2))
def learner(model=None, **kwargs):
    set_seed(7)
    learn = Learner(data(), model or net(), loss_func=CrossEntropyLossFlat(), **kwargs)
    return learn.remove_cb(ProgressCallback)
def fit(learn, n=2, lr=0.01):
    with learn.no_logging(): learn.fit(n, lr)
    return learn
def n_hooks(model): return sum(len(m._forward_hooks)+len(m._forward_pre_hooks)+len(m._backward_hooks) for m in model.modules())

class Plain(Callback):
    "What every layer gives and its gradient, step by step, by hooks of the test's own, in double precision"
    order = -50
    def __init__(self): self.steps = []
    def before_batch(self):
        if not self.training: return
        self.outs,self.kept = {},{}
        def _keep(n, m, i, o):
            self.outs[n] = o.detach().double().clone()
            o.register_hook(lambda g: self.kept.update({n: g.double().clone()}))
        self.handles = [m.register_forward_hook(lambda m,i,o,n=n: _keep(n, m, i, o)) for n,m in self.model.named_children() if list(m.parameters())]
    def after_batch(self):
        if not self.training: return
        for h in self.handles: h.remove()
        self.steps.append((self.outs, self.kept, float(self.learn.loss)))

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

CASES = {'plain':(lambda: [], 1.), 'half':(lambda: [Half()], 1024.), 'accumulation':(lambda: [GradientAccumulation(64)], 16/64),
         'half and accumulation':(lambda: [Half(), GradientAccumulation(32)], 1024*16/32), 'clipped':(lambda: [GradientClip(0.1)], 1.),
         'mixup':(lambda: [MixUp()], 1.), 'activation stats':(lambda: [ActivationStats()], 1.), 'fp16':(lambda: [MixedPrecision()], 1.)}

@pytest.mark.parametrize('case', CASES)
def test_the_numbers_are_those_of_plain_hooks(case):
    "To 1e-5, in every step; the gradient is that of the loss, whatever it was multiplied by on the way back"
    cbs,scale = CASES[case]
    plain = Plain()
    learn = fit(learner(cbs=[plain, *cbs()]).watch_init(6))
    df = learn.watch.watched.df.set_index(['step','layer'])
    assert len(df)==6*4 and len(plain.steps)==8
    for i,(outs,grads,loss) in enumerate(plain.steps[:6]):
        assert list(df.loc[i+1].index)==list(outs)==['0','1','3','6']
        assert learn.watch.watched.loss[i]==pytest.approx(loss, rel=1e-6)
        for n,o in outs.items():
            row,grad = df.loc[(i+1, n)],grads[n]/scale
            assert row['mean']==pytest.approx(o.mean().item(), abs=1e-5) and row['std']==pytest.approx(o.std().item(), rel=1e-5), (i, n)
            assert row.grad_std==pytest.approx(grad.std().item(), rel=1e-4), (i, n)
            assert row.near_zero==pytest.approx((o<=0.05).double().mean().item(), abs=1e-9), (i, n)

class Batches(Callback):
    "The batches that training sees"
    order = 90
    def __init__(self): self.seen = []
    def before_batch(self): self.seen.append(self.learn.xb[0].clone())

def outcome(learn):
    "All that a fit leaves behind"
    return dict(model=learn.model.state_dict(), opt=learn.opt.state_dict()['state'], rec=learn.recorder.values, losses=[o.item() for o in learn.recorder.losses],
                batches=learn.batches.seen, rng=[torch.get_rng_state(), torch.tensor(np.random.get_state()[1].astype(int)), torch.tensor(random.getstate()[1])])

def equal(a, b):
    if isinstance(a, dict): return a.keys()==b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    if isinstance(a, (list,tuple)) or hasattr(a, 'items'): return len(a)==len(b) and all(equal(p, q) for p,q in zip(a, b))
    return a==b

@pytest.mark.parametrize('case', ['plain','half and accumulation','mixup','activation stats'])
@pytest.mark.parametrize('init', [False, True])
def test_training_stays_the_same(case, init):
    "Weights, buffers, optimizer, recorder, batches and random state, to the bit"
    def run(watch):
        learn = learner(cbs=[Batches(), *CASES[case][0](), *([LSUVCallback(watch=watch)] if init else [])])
        if watch and not init: learn.watch_init(watch)
        return outcome(fit(learn))
    a,b = run(0),run(5)
    for k in a: assert equal(a[k], b[k]), k

def test_an_activation_stats_of_ones_own_is_left_alone():
    a = fit(learner(cbs=ActivationStats(with_hist=True)))
    b = fit(learner(cbs=ActivationStats(with_hist=True)).watch_init(3))
    assert len(b.activation_stats.stats)==8
    for p,q in zip(a.activation_stats.stats, b.activation_stats.stats):
        for r,s in zip(p, q): assert r['mean']==s['mean'] and r['std']==s['std'] and torch.equal(r['hist'], s['hist'])

class Count(Callback):
    "Hooks on the model in each step and at the end of the fit"
    order = 95
    def __init__(self): self.hooks,self.valid = [],[]
    def after_pred(self): (self.hooks if self.training else self.valid).append(n_hooks(self.model))

def test_nothing_after_n_steps():
    learn = fit(learner(cbs=Count()).watch_init(5))
    assert learn.count.hooks==[5]*5+[0]*3 and set(learn.count.valid)=={0} and n_hooks(learn.model)==0
    fit(learn)
    assert set(learn.count.hooks[8:])=={0} and len(learn.watch.watched)==5

def test_several_fits_and_again():
    learn = learner(net(), splitter=lambda m: [params(m[:3]), params(m[3:])]).watch_init(6)
    with learn.no_logging(): learn.fine_tune(1, freeze_epochs=1)
    w = learn.watch.watched
    assert len(w)==6 and w.df.step.max()==6
    frozen = w.df.set_index(['step','layer']).grad_std
    assert np.isnan(frozen[1,'0']) and frozen[5,'0']>0 # the body is frozen at first, and no gradient reaches its first layer
    fit(learn.watch_init(2))
    assert len(learn.watch.watched)==2 and known_of(learn).report.watched is learn.watch.watched

def test_short_fit():
    learn = fit(learner().watch_init(50), 1)
    assert len(learn.watch.watched)==4 and learn.watch.watched.summary.startswith('after 4 steps ')
    assert n_hooks(learn.model)==0

def test_lr_find_is_not_watched():
    learn = learner(cbs=LSUVCallback(watch=3))
    with learn.no_logging(): learn.lr_find(num_it=5, show_plot=False, suggest_funcs=())
    assert len(learn.watch.watched)==0 and n_hooks(learn.model)==0
    fit(learn)
    assert len(learn.watch.watched)==3

class Interrupt(Callback):
    def __init__(self, at, event): self.at,self.when = at,event
    def _maybe(self, event):
        if self.when==event and self.training and self.learn.train_iter==self.at: raise KeyboardInterrupt
    def after_pred(self): self._maybe('after_pred')
    def before_step(self): self._maybe('before_step')
    def before_batch(self): self._maybe('before_batch')

@pytest.mark.parametrize('event', ['before_batch','after_pred','before_step'])
@pytest.mark.parametrize('then', ['forward','validate','fit','one_batch'])
def test_interrupt(event, then):
    "The next pass takes the hooks away and is not recorded; the watch goes on in the next fit"
    learn = learner(cbs=Interrupt(2, event)).watch_init(5)
    with pytest.raises(KeyboardInterrupt): fit(learn)
    assert len(learn.watch.watched)==2
    learn.interrupt.at = -1
    if then=='forward': learn.model(learn.dls.train.new().one_batch()[0])
    elif then=='validate': learn.validate()
    elif then=='one_batch': learn.one_batch(0, learn.dls.train.one_batch()) # by hand: a training step, too
    else: fit(learn)
    assert n_hooks(learn.model)==0 and len(learn.watch.watched)==dict(fit=5, one_batch=3).get(then, 2)
    assert len(known_of(learn).report.watched)==len(learn.watch.watched)

class Break(Callback):
    "Do something to the model just before a step"
    order = 5
    def __init__(self, **at): self.at = at
    @torch.no_grad()
    def before_batch(self):
        if self.training and (f := self.at.get(f'step{self.learn.train_iter+1}')): f(self.model)

def relus(n=4): return nn.Sequential(*[o for i in range(n) for o in (nn.Linear(12 if i==0 else 24, 24), nn.ReLU())], nn.Linear(24,2))
def small(m): m[4].weight.mul_(1e-4); m[4].bias.mul_(0)
def big(m): m[4].weight.mul_(1e4)
def unsmall(m): m[4].weight.mul_(1e4)
def undo(m): m[4].weight.div_(1e4)
def die(m): m[2].bias.fill_(-1e3)
def nan(m): m[2].weight[0,0] = math_nan
math_nan = float('nan')

@pytest.mark.parametrize('at,said', [
    (dict(step4=die), 'died (first: 4, at step 4)'),
    (dict(step3=small), 'have vanished (first: 4, at step 3)'),
    (dict(step1=small), 'have vanished (first: 4, from the start)'),
    (dict(step5=big), '3 layers of 5 have exploded (first: 4, at step 5)'),
    (dict(step2=nan), 'layers of 5 have gone to NaN or inf (first: 2, at step 2)'),
    (dict(step3=big, step5=undo), 'had exploded in between (first: 4, at step 3)'),
    (dict(step1=small, step4=unsmall), '3 layers of 5 had vanished at first (first: 4, until step 3)'),
    (dict(), 'after 6 steps none of 5 layers has vanished, exploded or died')])
def test_the_step_at_which_it_happened(at, said):
    learn = learner(relus(), cbs=[LSUVCallback(watch=6), Break(**at)])
    fit(learn, lr=0.) # so that nothing else changes
    report = learn.lsuv.report
    assert said in report.watched.summary, report.watched.summary
    assert report.summary.endswith('. A'+report.watched.summary[1:]) and report.watched.summary[1:] in repr(report)

def test_layers_that_are_zero_by_design_have_not_vanished():
    model = nn.Sequential(nn.Linear(12,24), nn.BatchNorm1d(24), nn.Linear(24,2))
    nn.init.zeros_(model[1].weight)
    learn = fit(learner(model).watch_init(6), lr=1e-4)
    s = learn.watch.watched.grid('status').loc['1']
    assert s[1]=='zero' and s[6]=='vanishing' and '1' not in set(learn.watch.watched.changes.layer)

def test_without_an_initialization_the_report_is_that_of_the_first_batch():
    plain = Plain()
    learn = fit(learner(cbs=plain).watch_init(2))
    report = learn.init_report()
    assert list(report.df.layer)==list(plain.steps[0][0]) and report.notes==['measured on the first batch that was watched']
    for n,o in plain.steps[0][0].items(): assert report[n]['std']==pytest.approx(o.std().item(), rel=1e-5)
    axs = report.plot_steps()
    assert len(axs)==3 and axs[0].images[0].get_array().shape==(4,2)

def test_the_picture():
    "log10 of std over target; at a target of 0.5 too"
    learn = fit(learner(relus(), cbs=LSUVCallback(std=0.5, watch=3)), lr=0.)
    left,right,top = learn.init_report().plot_steps()
    w = learn.lsuv.report.watched
    assert np.allclose(left.images[0].get_array(), np.log10(w.grid('std')/0.5)) and abs(left.images[0].get_array()).max()<0.3
    g = w.grid('grad_std')
    assert np.allclose(right.images[0].get_array(), np.log10(g/g[1].median()).clip(-2,2))
    assert np.allclose(top.get_lines()[0].get_ydata(), w.loss)

def test_what_is_seen_in_the_picture():
    "A column a step and a row a layer, black where not finite, grey where 0, crosses where it happened, three words a layer"
    learn = learner(relus(8), cbs=[LSUVCallback(watch=6), Break(step3=nan, step5=big)])
    fit(learn, lr=0.)
    left,right,top = learn.init_report().plot_steps()
    im = left.images[0]
    assert im.get_extent()==[0.5,6.5,8.5,-0.5] and im.get_clim()==(-2,2)==right.images[0].get_clim()
    assert im.cmap.get_over().tolist()==[0,0,0,1] and im.cmap.get_bad()[:3].tolist()==[0.8]*3
    crosses = {(l.get_xdata()[0],l.get_ydata()[0]) for l in left.get_lines()}
    assert crosses=={(4,0), *((3,i) for i in range(1,9))} # from the layer whose weight is NaN on; then the gradients, so all
    for ax in (left, right):
        rgb = ax.images[0].to_rgba(ax.images[0].get_array())[...,:3]
        assert (rgb[1:,2:]==0).all() and (rgb[:,:2].max(-1)>0.8).all()
    text = left.figure.axes[1].texts[0].get_text()
    assert text.splitlines()==['2: not finite at step 3','4: not finite at step 3','6: not finite at step 3, and 6 more layers']
    assert [t.get_text() for t in left.get_yticklabels()]==[str(2*i) for i in range(9)] and not any(t.get_text() for t in right.get_yticklabels())
    for ax in (left, right, top): assert all(float(t).is_integer() for t in ax.get_xticks())
    assert top.get_xlim()==(0.5,6.5) and top.get_ylabel()=='loss'

@pytest.mark.parametrize('at,words', [(dict(step3=big, step5=undo), '4: exploding at step 3, until step 4'), (dict(step3=big, step4=undo), '4: exploding at step 3 only'),
    (dict(step1=big, step2=undo), '4: exploding from the start, until step 1'), (dict(), 'no layer has vanished, exploded or died')])
def test_the_words_in_the_picture(at, words):
    learn = learner(relus(), cbs=[LSUVCallback(watch=6), Break(**at)])
    fit(learn, lr=0.)
    assert learn.init_report().plot_steps()[0].figure.axes[1].texts[0].get_text().splitlines()[0]==words

def test_the_loss_is_on_a_log_scale_where_it_spans_decades():
    learn = learner(relus(), cbs=[LSUVCallback(watch=6), Break(step3=big)])
    fit(learn, lr=0.)
    top = learn.init_report().plot_steps()[2]
    w = learn.lsuv.report.watched
    assert max(w.loss)>30*min(w.loss) and top.get_yscale()=='log' and top.get_ylabel()=='loss (log scale)'

def test_a_picture_of_many_layers():
    "As many are named as there is room for, long names without a middle"
    learn = learner(relus(34), cbs=LSUVCallback(watch=2))
    fit(learn, 1, lr=0.)
    left = learn.init_report().plot_steps()[0]
    assert [t.get_text() for t in left.get_yticklabels()]==[str(4*i) for i in range(18)] and list(left.get_yticks())==list(range(0, 35, 2))
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.a_name_of_twenty_two_c,self.a_name_of_twenty_three_ = nn.Linear(12,8),nn.Linear(8,2)
        def forward(self, x): return self.a_name_of_twenty_three_(self.a_name_of_twenty_two_c(x))
    learn = learner(Deep(), cbs=LSUVCallback(watch=2))
    fit(learn, 1, lr=0.)
    names = [t.get_text() for t in learn.init_report().plot_steps()[0].get_yticklabels()]
    assert names==['a_name_of_twenty_two_c','a_name_of_…enty_three_'] and all(len(n)<=22 for n in names)

def test_pickle():
    learn = fit(learner(cbs=LSUVCallback(watch=3)))
    again = pickle.loads(pickle.dumps(learn.remove_cb(learn.recorder)))
    assert len(again.watch.watched)==3 and again.watch.watched.summary==learn.watch.watched.summary
    assert pickle.loads(pickle.dumps(learn.lsuv.report)).watched.df.equals(learn.lsuv.report.watched.df)

def test_other_outputs_and_calls():
    "A recurrent layer's first tensor, a layer called twice (its first call), one that some batches do not reach"
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn,self.lin,self.rare,self.n = nn.GRU(3,8,batch_first=True),nn.Linear(8,8),nn.Linear(8,2),0
            self.out = nn.Linear(8,2)
        def forward(self, x):
            self.n += 1
            h = self.lin(self.lin(self.rnn(x.view(-1,4,3))[0][:,-1]))
            return self.out(h) + (self.rare(h) if self.n%2 else 0)
    learn = fit(learner(Odd()).watch_init(4), 1)
    counts = learn.watch.watched.df.groupby('layer').size()
    assert counts.to_dict()=={'rnn':4, 'lin':4, 'out':4, 'rare':2}
    assert pd.isna(learn.watch.watched.grid('std').loc['rare',2]) and learn.watch.watched.changes.set_index('layer')['first'].get('rare', 3) in (1,3)

class Nested(nn.Module):
    "Two linear layers, between them a nested tensor of pairs of items, or none"
    def __init__(self, nested):
        super().__init__()
        torch.manual_seed(0)
        self.a,self.b,self.nested = nn.Linear(12,24),nn.Linear(24,2),nested
    def forward(self, x):
        if not self.nested: return self.b(self.a(x).relu())
        nt = torch.nested.as_nested_tensor(list(x.split(2)))
        return self.b(self.a(nt).relu()).to_padded_tensor(0.).flatten(0, 1)

def test_nested_tensors():
    "What is in them is watched as if it were dense, the gradient too"
    nested,dense = (fit(learner(Nested(o)).watch_init(4), 1).watch.watched.df for o in (True, False))
    assert len(nested)==8 and nested.grad_std.gt(0).all()
    for k in ('mean','std','near_zero','grad_std'): assert nested[k].tolist()==pytest.approx(dense[k].tolist(), rel=1e-4, abs=1e-6), k

def test_what_is_not_recorded():
    "A part that runs without gradients, whole numbers, nothing at all; of a layer called twice the second call"
    class Part(nn.Module):
        def __init__(self, f): super().__init__(); self.f,self.p = f,nn.Parameter(torch.ones(1))
        def forward(self, x): return self.f(x)
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.teacher,self.student,self.twice = nn.Linear(12,8),nn.Linear(12,8),Part(lambda x: x*self.twice.p)
            self.index,self.empty,self.out = Part(lambda x: x.argmax(-1)),Part(lambda x: x[:0]),nn.Linear(8,2)
        def forward(self, x):
            with torch.no_grad(): aim = self.teacher(x)
            h = self.student(x)
            self.index(h), self.empty(h)
            return self.out(self.twice(h) + self.twice(9*aim))
    learn = learner(Odd()).watch_init(2)
    stds = []
    learn.model.student.register_forward_hook(lambda m,i,o: stds.append(o.std().item()))
    fit(learn, 1)
    rows = learn.watch.watched.df.query('step==1').set_index('layer')
    assert list(rows.index)==['student','twice','out'] and rows['std']['twice']==pytest.approx(stds[0], rel=1e-5)
    assert rows['type'].tolist()==['Linear','Part','Linear'] and rows['shape']['student']==(16,8)

def test_no_targets():
    "fastai takes no step then: there is nothing to watch, and nothing stays behind"
    ds = [(torch.randn(12),) for _ in range(32)]
    dl = DataLoader(ds, bs=8)
    learn = fit(Learner(DataLoaders(dl, dl), net(), loss_func=CrossEntropyLossFlat(), cbs=LSUVCallback(watch=3)).remove_cb(ProgressCallback), 1)
    assert len(learn.watch.watched)==0 and n_hooks(learn.model)==0 and learn.lsuv.done

@pytest.mark.parametrize('n', [0, -1, 2.5])
def test_wrong_n(n):
    for f in (lambda: learner().watch_init(n), lambda: WatchCallback(n), lambda: LSUVCallback(watch=n or -1)):
        with pytest.raises(ValueError, match='whole number from 1'): f()

# The record alone, of made-up steps

def record(stds, grads=None, losses=None, means=None, **kwargs):
    "`stds`: layer → its std in each step, None where it was not called"
    w = Watched(**kwargs)
    for i in range(len(next(iter(stds.values())))):
        rows = {n:dict(type='Linear', shape=(4,8), mean=means[n][i] if n in (means or ()) else 0., std=s[i], near_zero=0.5, grad_std=grads[n][i] if grads else 1e-3)
                for n,s in stds.items() if s[i] is not None}
        w.add(rows, losses[i] if losses else 1.)
    return w

def test_summary_counts_its_words():
    "One step, one layer; then several; the worst kind first, what is over last"
    assert record({'a':[1.], 'b':[1.]}).summary=='after 1 step none of 2 layers has vanished, exploded or died'
    assert record({'a':[1.]}).summary=='after 1 step the one layer has not vanished, exploded or died'
    assert record({'a':[1.,1.], 'b':[1.,1e3]}).summary=='after 2 steps 1 layer of 2 has exploded (first: b, at step 2)'
    two = record({'a':[1.,1e3,1e3], 'b':[1e-5,1e-5,1e-5], 'c':[1.,1e3,1.], 'd':[1.,1.,1e3]})
    assert two.summary==('after 3 steps 2 layers of 4 have exploded (first: a, at step 2), 1 has vanished (first: b, from the start), '
                         '1 had exploded in between (first: c, at step 2)')==repr(two)

def test_changes():
    "Layer, what is wrong, when it began, and when it ended, if it did"
    w = record({'late':[1.,1.,1e3], 'gone':[1.,1.,1.], 'burst':[1e3,1e3,1.], 'gap':[1e-5,None,1e-5], 'fine':[1.,1.,1.], 'twice':[1e3,1.,1e3]},
               means={'gone':[0.,math.nan,math.inf]})
    rows = [tuple(o) for o in w.changes.astype(object).itertuples(index=False)]
    assert [r[:3] for r in rows]==[('gone','not finite',2), ('late','exploding',3), ('twice','exploding',3), ('gap','vanishing',1), ('burst','exploding',1)]
    assert [r[3] is pd.NA for r in rows]==[True]*4+[False] and rows[-1][3]==2
    assert str(w.changes['last'].dtype)=='Int64' and not len(record({'a':[1.]}).changes)

def test_an_explosion_that_ends_as_nan_began_where_it_began():
    "One spell, from the first step of the unbroken run that ends the record"
    w = record({'a':[1.,20.,1e9,1.,1.], 'b':[1.,1.,1.,1.,1.], 'c':[1.,20.,1.,1e9,1e9]}, means={'a':[0.,0.,0.,math.nan,math.inf], 'b':[0.,0.,0.,math.nan,math.nan], 'c':[0.]*4+[math.nan]})
    assert w.changes.drop(columns='last').values.tolist()==[['a','not finite after exploding',2], ['c','not finite after exploding',4], ['b','not finite',4]]
    assert w.summary==('after 5 steps 2 layers of 3 have exploded and gone to NaN or inf (first: a, at step 2), 1 has gone to NaN or inf (first: b, at step 4)')
    back = record({'a':[1.,1.,20.,20.], 'b':[1.]*4}, means={'a':[0.,math.nan,0.,0.]}) # finite again, and too large
    assert back.changes.drop(columns='last').values.tolist()==[['a','exploding',2]]
    left = plot_watched(w)[0]
    assert [(l.get_xdata()[0],l.get_ydata()[0]) for l in left.get_lines()]==[(2,0),(4,2),(4,1)]

@pytest.mark.parametrize('n', [5,16,18,22,26,30,31,45,60,100])
@pytest.mark.parametrize('figsize', [None, (7,4)])
def test_layer_names_do_not_overlap(n, figsize):
    left = plot_watched(record({f'4.convpath.{i}':[1.,1.] for i in range(n)}), figsize=figsize)[0]
    left.figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in left.get_yticklabels()]
    assert not any(a.overlaps(b) for a,b in zip(boxes, boxes[1:])) and len(boxes)>=min(n, 7)
    plt.close(left.figure)

@pytest.mark.parametrize('figsize', [None, (6,4)])
def test_long_words_leave_the_picture_its_place(figsize):
    "They are wrapped, and fewer of a kind, so that they stay right of the loss and above the gradients"
    def of(long):
        bad = {f'{i}.{"encoder_self_attention_output_projection" if long else "a"}':[1.,s,s] for i,s in enumerate([1e3]*6+[1e-5]*6+[0.]*6)}
        left,right,top = plot_watched(record(bad), figsize=figsize)
        fig = left.figure
        fig.draw_without_rendering()
        return fig,right,fig.axes[1].texts[0].get_window_extent()
    fig,right,box = of(True)
    assert box.x1<=fig.bbox.width and box.y0>=right.title.get_window_extent().y1-2
    assert right.get_window_extent().width > 0.7*of(False)[1].get_window_extent().width

def test_a_loss_on_a_dark_background():
    with plt.style.context('dark_background'):
        assert plot_watched(record({'a':[1.,1.]}))[2].get_lines()[0].get_color()=='white'

def test_zero_by_design_and_targets():
    "A layer that begins at 0 by design may grow slowly; one with a target of its own is judged by that"
    w = record({'a':[0.,1e-5,1e-4], 'b':[0.01,0.01,0.01], 'c':[1.,1.,1.]}, target=2., targets={'b':0.01}, zero=['a'])
    assert not len(w.changes) and w.grid('target').loc['b'].tolist()==[0.01]*3 and w.grid('target').loc['c'].tolist()==[2.]*3
    assert w.grid('status').loc['a'].tolist()==['zero','vanishing','vanishing']
    assert record({'a':[0.,0.], 'b':[1.,1.]}, targets={'a':0.}).grid('status').loc['a'].tolist()==['zero','zero']

def test_table_of_the_steps():
    w = record({'a':[1.,2.], 'b':[3.,None], 'c':[None,4.]}, grads={'a':[.1,.2], 'b':[.3,None], 'c':[None,.4]}, losses=[2.,1.])
    assert list(w.df.columns)==['step','layer','type','shape','mean','std','near_zero','grad_std','target','status'] and w.loss==[2.,1.] and len(w)==2
    assert w.df[['step','layer','std']].values.tolist()==[[1,'a',1.],[1,'b',3.],[2,'a',2.],[2,'c',4.]] and list(w.layers)==['a','b','c']
    assert w.df['shape'].tolist()==[(4,8)]*4 and w.df['near_zero'].tolist()==[0.5]*4 and w.df.grad_std.tolist()==[.1,.3,.2,.4]
    assert w.first_step().layer.tolist()==['a','b'] and list(w.first_step().columns)==['layer','type','shape','mean','std','near_zero','status']
    w.add({'a':dict(type='Linear', shape=(4,8), mean=0., std=5., near_zero=0., grad_std=8.)}, torch.tensor(0.5), scale=torch.tensor(4.))
    assert w.df.iloc[-1][['step','layer','std','grad_std']].tolist()==[3,'a',5.,2.] and w.loss==[2.,1.,0.5] # a table of two steps is made anew
    assert w.grid('std').shape==(3,3) and w.grid('std').columns.tolist()==[1,2,3]

def test_a_table_that_was_looked_at_after_a_step_without_layers():
    w = Watched()
    for rows in ({}, {'a':dict(type='Linear', shape=(4,8), mean=0., std=2., near_zero=0., grad_std=1.)}, {}):
        w.add(rows, 1.)
        assert len(w.df)<2
    assert w.df[['step','layer','std']].values.tolist()==[[2,'a',2.]] and w.df is w.df and len(w)==3

def test_steps_of_several_processes():
    "Moments of all values together, the gradient's mean square, the mean loss; a layer that only one process called"
    class Two:
        size = 2
        def __init__(self, *other): self.other = iter(other)
        def gather(self, t): return [t.tolist(), torch.as_tensor(next(self.other)).tolist()]
    a,b = torch.randn(32).double(),torch.randn(64).double()*3+1
    def row(v, grad): return dict(type='Linear', shape=tuple(v.shape), mean=v.mean().item(), std=v.std().item(), near_zero=(v<=0.05).double().mean().item(), grad_std=grad)
    other = [[64., b.mean(), b.std(), (b<=0.05).double().mean(), 3.], [0.]+[math.nan]*4]
    w = Watched()
    w.add({'x':row(a, 1.), 'y':row(a, 1.)}, torch.tensor(2.), pool=Two(other, 5.), names=['x','y'])
    both = torch.cat([a, b])
    x,y = w.df.set_index('layer').loc['x'],w.df.set_index('layer').loc['y']
    for r,v,grad in ((x, both, math.sqrt((32+64*9)/96)), (y, a, 1.)):
        assert r['mean']==pytest.approx(v.mean().item(), abs=1e-6) and r['std']==pytest.approx(v.std().item(), rel=1e-6)
        assert r.near_zero==pytest.approx((v<=0.05).double().mean().item()) and r.grad_std==pytest.approx(grad)
    assert w.loss==[3.5]

def test_what_the_picture_is_called():
    w = record({'a':[1.,1e3], 'b':[1.,1.], 'c':[1.,0.]}, grads={'a':[1.,1e-9], 'b':[2.,1e9], 'c':[4.,0.]}, losses=[1.,2.])
    left,right,top = plot_watched(w)
    assert left.get_title()=='std of the output ÷ target' and right.get_title()=='std of the gradient ÷ median of step 1'
    assert left.get_xlabel()==right.get_xlabel()=='training step' and left.get_ylabel()=='layer, in order of execution'
    bar = left.figure.axes[-1]
    assert [t.get_text() for t in bar.get_yticklabels()]==['÷100','÷10','1','×10','×100'] and bar.get_yticks().tolist()==[-2,-1,0,1,2]
    im = left.images[0].get_array()
    assert im[:,1].filled(9).tolist()==[2,0,9] and right.images[0].get_array()[:,1].filled(9).tolist()==[-2,2,9] # at most two decades; 0 is grey
    assert right.images[0].get_array()[:,0].tolist()==pytest.approx([math.log10(o/2) for o in (1,2,4)])
    assert [(l.get_xdata()[0],l.get_ydata()[0],l.get_color()) for l in left.get_lines()]==[(2,2,'black'),(2,0,'black')] and not right.get_lines()
    assert top.get_lines()[0].get_xdata().tolist()==[1,2] and top.get_yscale()=='linear' and not left.figure.axes[1].axison

@pytest.mark.parametrize('losses,scale', [([1.,29.],'linear'), ([1.,31.],'log'), ([-1.,31.],'linear'), ([0.,31.],'linear')])
def test_the_scale_of_the_loss(losses, scale): assert plot_watched(record({'a':[1.,1.]}, losses=losses))[2].get_yscale()==scale

@pytest.mark.parametrize('n,height', [(3,4.5), (40,6.), (200,9)])
def test_the_height_of_the_picture(n, height):
    w = record({f'l{i}':[1.] for i in range(n)})
    assert plot_watched(w)[0].figure.get_size_inches().tolist()==pytest.approx([10.5,height])
    assert plot_watched(w, figsize=(6,5))[0].figure.get_size_inches().tolist()==[6,5]

def test_crosses_are_white_where_the_picture_is_black():
    w = record({'a':[1.,1.], 'b':[1.,1e3], 'c':[1e3,1e3]}, means={'a':[0.,math.nan]})
    assert [(l.get_ydata()[0],l.get_color()) for l in plot_watched(w)[0].get_lines()]==[(0,'white'),(1,'black')] # c was so from the start

def test_three_layers_of_a_kind_are_named():
    w = record({**{f'e{i}':[1.,1e3] for i in range(3)}, **{f'v{i}':[1e-5,1e-5] for i in range(5)}})
    assert plot_watched(w)[0].figure.axes[1].texts[0].get_text().splitlines()==[
        *(f'e{i}: exploding at step 2' for i in range(3)), 'v0: vanishing from the start', 'v1: vanishing from the start',
        'v2: vanishing from the start, and 2 more layers']
    w = record({f'e{i}':[1.,1e3] for i in range(4)})
    assert plot_watched(w)[0].figure.axes[1].texts[0].get_text().endswith('e2: exploding at step 2, and 1 more layer')

def panel(ax): return ax.images[0].get_array().filled(9)

def test_gradients_of_which_most_are_0_at_first():
    "Over the median of those above 0 at the first step that has any; black is only what is not finite"
    w = record({k:[1.]*3 for k in 'abcde'}, grads={'a':[1.,1.,1.], 'b':[4.,1.,1e9], **{k:[0.,1e-3,2.] for k in 'cde'}})
    left,right,_ = plot_watched(w)
    assert panel(right)[:,0].tolist()==pytest.approx([math.log10(1/2.5), math.log10(4/2.5), 9,9,9]) and (panel(right)!=3).all()
    assert panel(right)[:,1:].tolist()==[pytest.approx([math.log10(o/2.5) for o in (1,1)]), pytest.approx([math.log10(1/2.5), 2])] + [pytest.approx([-2, math.log10(2/2.5)])]*3
    assert [t.get_text() for t in left.figure.legends[0].get_texts()]==['exactly 0, or not recorded']
    late = plot_watched(record({'a':[1.]*3, 'b':[1.]*3}, grads={'a':[0.,0.,2.], 'b':[0.,8.,8.]}))[1]
    assert late.get_title()=='std of the gradient ÷ median of step 2' and panel(late).tolist()==[[9,9,pytest.approx(math.log10(2/8))], [9,0,0]]
    none = plot_watched(record({'a':[1.,1.]}, grads={'a':[0.,0.]}))[1]
    assert none.get_title()=='std of the gradient ÷ median of step 1' and panel(none).tolist()==[[9,9]]

def test_black_is_what_is_not_finite():
    "Not what is far from its target; its patch is in the legend where it occurs"
    w = record({'a':[0.,1e-3], 'b':[1e-300,1e300], 'c':[1.,1.]}, targets={'a':0.}, grads={'a':[1e-300,1e300], 'b':[1.,1e-300], 'c':[math.inf,1.]}, means={'c':[0.,math.nan]})
    left,right,_ = plot_watched(w)
    assert panel(left).tolist()==[[9,-2],[-2,2],[0,3]] and panel(right)[2].tolist()==[3,3] and (panel(right)[:2]!=3).all()
    assert [t.get_text() for t in left.figure.legends[0].get_texts()]==['exactly 0, or not recorded','not finite']
    assert not plot_watched(record({'a':[1.,1.]}))[0].figure.legends

def test_names_are_no_mathematics_and_one_step_has_one_tick():
    w = record({r'a$\frac$':[1e3], 'b':[1.], r'$\foo$':[1e3]}, losses=[1.])
    axs = plot_watched(w)
    axs[0].figure.draw_without_rendering()
    assert [t.get_text() for t in axs[0].get_yticklabels()]==list(w.layers) and r'a$\frac$: exploding' in axs[0].figure.axes[1].texts[0].get_text()
    for ax in axs: assert [t for t in ax.get_xticks() if 0.5<=t<=1.5]==[1]

def test_a_loss_between_two_that_are_missing_is_seen():
    line = plot_watched(record({'a':[1.]*4}, losses=[1.,math.nan,2.,1.]))[2].get_lines()[0]
    assert line.get_marker()=='o' and line.get_markevery().tolist()==[True,False,False,False]

def test_nothing_watched():
    with pytest.raises(ValueError, match='no steps were watched'): plot_watched(Watched())
    w = Watched()
    w.add({}, 1.)
    with pytest.raises(ValueError, match='none of the layers was called'): plot_watched(w)

def test_fifty_steps_unless_said():
    assert learner().watch_init().watch.n==50==WatchCallback().n and not WatchCallback().include_paramless
    learn = fit(learner().watch_init(3, include_paramless=True))
    assert learn.watch.n==3 and set(learn.watch.watched.df.type)=={'Linear','BatchNorm1d','ReLU','Dropout'}

def test_the_model_is_let_go_of():
    "After a fit nothing in the callback holds it"
    learn = fit(learner().watch_init(50))
    assert learn.watch.step_stats is None and not learn.watch.on

def test_zero_by_its_gain():
    "A layer that a gain of 0 silences is zero by design, to begin with"
    class Gained(nn.Linear):
        def __init__(self, *args): super().__init__(*args); self.gain = nn.Parameter(torch.zeros(1))
        def forward(self, x): return self.gain*super().forward(x)
    learn = fit(learner(nn.Sequential(nn.Linear(12,24), Gained(24,24), nn.Linear(24,2))).watch_init(3), 1, 1e-5)
    assert learn.watch.watched.grid('status').loc['1',1]=='zero' and '1' not in set(learn.watch.watched.changes.layer)

def test_targets_of_their_own():
    "The ends of residual branches have one, the other layers that of the report"
    class Block(nn.Module):
        def __init__(self): super().__init__(); self.a,self.b = nn.Linear(24,24),nn.Linear(24,24)
        def forward(self, x): return x + self.b(torch.relu(self.a(x)))
    model = nn.Sequential(nn.Linear(12,24), Block(), nn.BatchNorm1d(24), nn.Linear(24,2))
    learn = fit(learner(model, cbs=LSUVCallback(watch=2, std=2., branch_scale=0.25)), 1, 0.)
    target = learn.watch.watched.grid('target')[1]
    assert target['1.b']==0.5 and target[['0','1.a','2','3']].tolist()==[2.]*4

# What the report speaks of

def test_a_report_of_watched_steps_is_of_the_model_that_was_watched():
    "Weights that changed since are measured again, and the next record begins a report of its own"
    learn = fit(learner(relus()).watch_init(2), 1, 0.)
    first = learn.init_report()
    assert first is learn.init_report() and first.watched is learn.watch.watched # no weight moved
    for m in (learn.model[0],learn.model[2]): nn.init.normal_(m.weight, std=10.)
    now = learn.init_report()
    assert now['2']['std']>100*first['2']['std'] and now.watched is first.watched and now.notes==[]
    again = fit(learn.watch_init(2), 1, 0.).init_report()
    assert again['2']['std']==pytest.approx(now['2']['std'], rel=0.5) and again.watched is learn.watch.watched
    fit(learn, 1, 0.1) # the two steps are over: nothing is recorded
    assert learn.init_report() is not again and learn.init_report().watched is again.watched
    learn.model = net()
    assert list(learn.init_report())==list(init_stats(net(), torch.randn(4,12))) and learn.init_report().watched is None

def test_steps_that_come_later_are_further_ones():
    "Since the initialization the weights have moved: summary and chart say so; not of those right after it"
    learn = fit(learner(relus(), cbs=LSUVCallback(watch=2)), 1)
    first = learn.init_report()
    assert first.watched.summary.startswith('after 2 steps ') and first.plot_steps()[0].get_xlabel()=='training step'
    later = fit(learn.watch_init(3), 1).init_report()
    assert later is first and ': 5 ok. After 3 further steps none of 5 layers' in later.summary
    assert [ax.get_xlabel() for ax in later.plot_steps()[:2]]==['further training step']*2
    assert fit(learn.watch_init(1), 1).init_report().watched.summary.startswith('after 1 further step none')
    learn = learner(cbs=LSUVCallback(watch=5))
    with learn.no_logging(): learn.lr_find(num_it=3, show_plot=False, suggest_funcs=()) # which puts the weights back
    assert fit(learn, 2).init_report().watched.summary.startswith('after 5 steps ')

@pytest.mark.parametrize('partly', [True, False])
def test_loaded_layers_make_no_step_a_further_one(partly):
    "They are not what they were when they were seen first, but what they were at the initialization"
    learn,other = learner(relus(), cbs=LSUVCallback(watch=2)),relus()
    (learn.model[2] if partly else learn.model).load_state_dict((other[2] if partly else other).state_dict())
    report = fit(learn, 1, 0.).init_report()
    assert report.df.status.eq('loaded').sum()==(1 if partly else 5) and report.when=='' and '. After 2 steps ' in report.summary

@pytest.mark.parametrize('init', [False, True])
def test_another_model_begins_another_record(init):
    "And another report, which is of its layers; the steps of the old one are not counted"
    learn = learner(relus(2), cbs=LSUVCallback() if init else None).watch_init(6)
    fit(learn, 1)
    old = learn.init_report()
    learn.model = relus(3)
    learn.create_opt()
    new = fit(learn, 1).init_report()
    assert new is not old and list(new)==['0','2','4','6'] and new.watched is learn.watch.watched
    assert len(new.watched)==4 and set(new.watched.df.layer)==set(new) and len(old.watched)==4 and set(old.watched.df.layer)==set(old)

def test_another_initialization_begins_another_record():
    learn = fit(learner(relus(2), cbs=LSUVCallback()).watch_init(6), 1)
    with learn.no_logging(): learn.fit(1, cbs=KaimingCallback(force=True))
    report = learn.init_report()
    assert report.scheme=='kaiming' and len(report.watched)==4 and not report.watched.further

def test_what_an_interrupted_fit_watched_is_out_of_date():
    "The weights went on: `init_report` measures them, and goes on to do so"
    learn = learner(relus(), cbs=Interrupt(3, 'before_step')).watch_init(2)
    with pytest.raises(KeyboardInterrupt): fit(learn, lr=0.1)
    with torch.no_grad(): learn.model[2].weight *= 50
    for _ in range(2): assert learn.init_report()['2']['std']>10*known_of(learn).report['2']['std'] and learn.init_report().watched is learn.watch.watched
    learn.model = net()
    assert learn.init_report().watched is None

class Predicts(Callback):
    "Asks for predictions in each epoch"
    def after_train(self): self.learn.get_preds(dl=self.dls.valid)
def test_predictions_within_a_fit():
    "The record is that of a fit without them, and it is known to be that of the model"
    alone,learn = (fit(learner(cbs=cbs).watch_init(2), 2) for cbs in (None, Predicts()))
    assert learn.watch.watched.df.equals(alone.watch.watched.df)
    assert learn.init_report() is known_of(learn).report

class Cancels(Callback):
    "Ends every second batch"
    order = 5
    def __init__(self, event): setattr(self, event, self.cancel)
    def cancel(self):
        if self.training and self.iter%2: raise CancelBatchException
@pytest.mark.parametrize('event,n', [('before_batch',4), ('after_pred',4), ('before_backward',8)])
def test_a_batch_that_was_cancelled_is_no_step(event, n):
    "Unless it has a loss; each step has its own"
    learn,losses = learner(relus(), cbs=Cancels(event)).watch_init(20),[]
    learn.loss_func = lambda *o, f=learn.loss_func: losses.append(f(*o)) or losses[-1]
    with learn.no_logging(), learn.removed_cbs([cb for cb in learn.cbs if cb.name=='recorder']): learn.fit(2, 0.01, cbs=NoValidation())
    watched = learn.watch.watched
    assert len(watched)==len(losses)==n and watched.loss==pytest.approx([float(o) for o in losses], abs=1e-7) and n_hooks(learn.model)==0

class NoValidation(Callback):
    def before_validate(self): raise CancelValidException
class Branches(nn.Module):
    def __init__(self): super().__init__(); self.a,self.b,self.out = nn.Linear(12,12),nn.Linear(12,12),nn.Linear(12,2)
    def forward(self, x): return self.out(x + self.b(self.a(x).relu()))
class Looks(Callback):
    "Passes another batch, with gradients, just before the step"
    order = 1500
    def before_batch(self): self.learn.model(9*self.x)
def drawn(model, x):
    model(9*x)
    for m in (model.a,model.b): nn.init.normal_(m.weight)
@pytest.mark.parametrize('scheme', ['lsuv_residual','lsuv','xavier',drawn])
def test_the_first_step_is_the_initialized_model(scheme):
    "Also where the initialization waits for the first batch, and passes it with gradients"
    g = torch.Generator() # of the loader: it cannot be asked beforehand
    train = torch.utils.data.DataLoader(data().train_ds, 16, shuffle=True, generator=g)
    learn = learner(Branches(), cbs=[InitCallback(scheme, watch=2), Plain(), Looks()])
    learn.dls.loaders = [train, learn.dls.valid]
    learn.plain.order = 2000
    fit(learn, 1)
    rows = learn.watch.watched.df.query('step==1').set_index('layer')
    assert 'initialized at the first training batch' in learn.init_report().notes[0]
    for n,o in learn.plain.steps[0][0].items(): assert rows['std'][n]==pytest.approx(o.std().item(), abs=1e-5)

def compiled(): return torch.compile(relus(), backend='eager')
def with_a_compiled_part():
    m = relus()
    m[2] = torch.compile(m[2], backend='eager')
    return m
def compiled_in_place():
    m = relus()
    m.compile(backend='eager')
    return m

@pytest.mark.parametrize('model', [compiled, with_a_compiled_part, compiled_in_place])
@pytest.mark.parametrize('how', ['callback','watch_init'])
def test_a_compiled_model_is_not_watched(model, how):
    "It trains, and a warning says so"
    learn = learner(model(), cbs=LSUVCallback(watch=2) if how=='callback' else None)
    if how=='watch_init': learn.watch_init(2)
    with pytest.warns(UserWarning, match='the training steps are not watched'): fit(learn, 1)
    assert len(learn.watch.watched)==0 and n_hooks(learn.model)==0
    assert learn.init_report().watched is None and len(learn.init_report())==5

def test_a_seed_that_diverged_ends_the_mean():
    "And not the mean of the others only; the band is that of those which go on"
    losses = pd.DataFrame([('a', s, k, math.nan if (s,k)==(1,3) else s+k) for s in (0,1) for k in (1,2,3)], columns=['scheme','seed','step','loss'])
    line = plot_losses(losses).get_lines()[0].get_ydata()
    assert line[:2].tolist()==[1.5,2.5] and math.isnan(line[2])
