"The first steps watched: the numbers are those of plain hooks, the training is that of an unwatched Learner, and nothing stays behind."
import pickle, random, warnings
from copy import deepcopy
import numpy as np, pandas as pd, pytest, torch
from torch import nn
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.hook import ActivationStats
from fastai.callback.mixup import MixUp
from fastai.callback.progress import ProgressCallback
import fastai.callback.schedule # adds lr_find and fine_tune to Learner
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.basics import Callback, CrossEntropyLossFlat, DataLoader, DataLoaders, Learner, params, set_seed
from fastinit.all import *

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
    assert learn.count.hooks==[4]*5+[0]*3 and set(learn.count.valid)=={0} and n_hooks(learn.model)==0
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
    assert len(learn.watch.watched)==2 and learn._init_report.watched is learn.watch.watched

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
@pytest.mark.parametrize('then', ['forward','validate','fit'])
def test_interrupt(event, then):
    "The next pass takes the hooks away and is not recorded; the watch goes on in the next fit"
    learn = learner(cbs=Interrupt(2, event)).watch_init(5)
    with pytest.raises(KeyboardInterrupt): fit(learn)
    assert len(learn.watch.watched)==2
    learn.interrupt.at = -1
    if then=='forward': learn.model(learn.dls.train.new().one_batch()[0])
    elif then=='validate': learn.validate()
    else: fit(learn)
    assert n_hooks(learn.model)==0 and len(learn.watch.watched)==(5 if then=='fit' else 2)
    assert len(learn._init_report.watched)==len(learn.watch.watched)

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
def undo(m): m[4].weight.div_(1e4)
def die(m): m[2].bias.fill_(-1e3)
def nan(m): m[2].weight[0,0] = math_nan
math_nan = float('nan')

@pytest.mark.parametrize('at,said', [
    (dict(step4=die), 'have died (first: 4, at step 4)'),
    (dict(step3=small), 'have vanished (first: 4, at step 3)'),
    (dict(step1=small), 'have vanished (first: 4, from the start)'),
    (dict(step5=big), '3 layers of 5 have exploded (first: 4, at step 5)'),
    (dict(step2=nan), 'layers of 5 have gone to NaN or inf (first: 2, at step 2)'),
    (dict(step3=big, step5=undo), 'had exploded in between (first: 4, at step 3)'),
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
    assert list(report.df.layer)==list(plain.steps[0][0])
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
    "Every second is named where there are more than 30, long names end in what tells them apart"
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
    assert names==['a_name_of_twenty_two_c','…name_of_twenty_three_'] and all(len(n)<=22 for n in names)

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
