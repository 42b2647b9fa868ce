"LSUV's options and what it says: errors, notes, warnings, the columns of the report"
import inspect, math, re
import numpy as np, pandas as pd, pytest, torch
import torch.nn.functional as F
from torch import nn
from fastai.vision.all import ResBlock
from fastinit.all import *
from fastinit.probe import InitError

x = torch.randn(64, 30, generator=torch.Generator().manual_seed(0))
def net(d=30, act=nn.ReLU, n=2): torch.manual_seed(1); return nn.Sequential(*[o for _ in range(n) for o in (nn.Linear(d,d), act())], nn.Linear(d,5))
def outs(m, x):
    res = []
    for o in m:
        x = o(x)
        res.append(x)
    return res

# Errors

@pytest.mark.parametrize('options,said', [
    (dict(std=0), 'std=0: must be a number over 0'), (dict(std=-1.), 'std=-1.0: must be a number over 0'), (dict(std='one'), "std='one': must be a number over 0"),
    (dict(std=math.inf), 'std=inf: must be a number over 0'), (dict(std=torch.tensor(2.)), 'std=tensor(2.): must be a number over 0'), (dict(tol=math.nan), 'tol=nan: must be a number over 0'),
    (dict(max_iter=1.5, at='activation'), 'max_iter=1.5: must be a whole number over 0'), (dict(max_iter=0), 'max_iter=0: must be a whole number over 0'), (dict(branch_scale=math.inf), "branch_scale=inf: must be 'auto'"),
    (dict(at='output'), "at='output': must be 'layer' or 'activation'"), (dict(center='rows'), "center='rows': must be True, False or 'channel'"),
    (dict(branch_scale=-0.1), "branch_scale=-0.1: must be 'auto', 0, a number over 0, or None"), (dict(branch_scale='half'), "branch_scale='half': must be 'auto', 0, a number over 0, or None"),
    (dict(at='activation', center='channel'), "center='channel' takes the means out before the activation: it goes with at='layer'"),
    (dict(at='activation', verify=False), "verify=False predicts what a layer gives; what an activation makes of that must be measured: leave it out with at='activation'"),
    (dict(pre='kaimng'), "unknown scheme 'kaimng'")])
def test_wrong_options(options, said):
    "By the function and by the callback when it is made; the residual kind too, whose center is 'channel' unless said"
    m = net()
    was = {k:v.clone() for k,v in m.state_dict().items()}
    for f in (lambda: lsuv_(m, x, **options), lambda: LSUVCallback(**options), lambda: InitCallback('lsuv_residual', **{'center':True, **options})):
        with pytest.raises(ValueError) as e: f()
        assert str(e.value).startswith(said)
    assert all(torch.equal(v, was[k]) for k,v in m.state_dict().items())
    with pytest.raises(ValueError, match="center='channel' takes"): InitCallback('lsuv_residual', at='activation')

@pytest.mark.parametrize('options', [dict(std=2), dict(std=1e-9), dict(std=np.float32(2)), dict(max_iter=np.int64(3)), dict(branch_scale=0), dict(branch_scale=0.), dict(branch_scale=3), dict(branch_scale='auto'), dict(branch_scale=None),
                                     dict(center=True), dict(center=False), dict(center='channel'), dict(at='activation', center=False), dict(pre=None), dict(pre='xavier'), dict(verify=False)])
def test_right_options(options): LSUVCallback(**options), InitCallback('lsuv', **options)

@pytest.mark.parametrize('layers,what', [(0,'int'), ([0,3],'int'), (1.5,'float'), ([nn.Linear,None],'NoneType'), ([lambda n,m: True],'function')])
def test_wrong_layers(layers, what):
    "By whatever initializes, by a callback when it is made, and by a comparison"
    from fastai.test_utils import synth_learner
    for f in (lambda: lsuv_(net(), x, layers=layers), lambda: init_(net(), 'kaiming', x, layers=layers), lambda: LSUVCallback(layers=layers), lambda: synth_learner().compare_inits(layers=layers)):
        with pytest.raises(TypeError) as e: f()
        assert str(e.value)==f"`layers` takes types, names and modules, such as nn.Linear, '0' or model[0], not {what}"

def test_what_is_so_unless_said():
    "As documented: after Kaiming, std 1, centered, at the layer, measured"
    def given(f): return {k:p.default for k,p in inspect.signature(f).parameters.items() if p.default is not p.empty}
    common = dict(pre='kaiming', std=1., center=True, at='layer', branch_scale=None, layers=None, force=False, tol=1e-3, max_iter=10, verify=True, include_paramless=False)
    assert given(lsuv_)==common and given(lsuv_residual_)|dict(center=True, branch_scale=None)==common
    assert given(lsuv_residual_)['center']=='channel' and given(lsuv_residual_)['branch_scale']==0
    assert {k:v for k,v in given(LSUVCallback).items() if k!='watch'}==common
    torch.manual_seed(3); lsuv_(a := net(), x)
    torch.manual_seed(3); lsuv_(b := net(), x, **common)
    assert all(map(torch.equal, a.parameters(), b.parameters()))

# The report

def test_columns():
    "What was done: mean and std before, by what factor and summand; nothing for other layers"
    m = nn.Sequential(nn.Linear(30,30), nn.BatchNorm1d(30), nn.ReLU(), nn.Linear(30,30), nn.Linear(30,5,bias=False))
    m[3].requires_grad_(False)
    before = outs(m, x)[0]
    with pytest.warns(UserWarning, match='frozen'): r = lsuv_(m, x, pre=None)
    assert list(r.df.columns)==['layer','type','shape','mean','std','near_zero','status','mean_before','std_before','scale','shift','converged']
    row = r['0']
    assert row.mean_before==pytest.approx(before.mean().item(), abs=1e-6) and row.std_before==pytest.approx(before.std().item(), rel=1e-5)
    assert row.scale==pytest.approx(1/before.std().item(), rel=1e-5) and row['shift']==pytest.approx(-before.mean().item()/before.std().item(), abs=1e-5)
    assert bool(row.converged) and row['std']==pytest.approx(1, abs=1e-5) and r['4']['shift']==0 and r['4'].converged
    for n in '13': assert r[n][['mean_before','std_before','scale','shift']].isna().all() and pd.isna(r[n].converged)
    assert r.df.converged.dtype=='boolean' and r.target==1 and r.at=='layer' and r.scheme=='lsuv' and r.left=={'3':'frozen'} and not r.notes
    assert lsuv_(net(), x, include_paramless=True).df.type.tolist()==['Linear','ReLU']*2+['Linear']
    assert lsuv_(net(), x, at='activation').df.type.tolist()==['Linear','ReLU']*2+['Linear']

def test_by_channel_the_report_has_means():
    m = net()
    o = outs(m, x)[0]
    r = lsuv_(m, x, pre=None, center='channel')
    assert r['0'].mean_before==pytest.approx(o.mean().item(), abs=1e-6) and r['0'].std_before==pytest.approx((o-o.mean(0)).std().item(), rel=1e-5)

def test_targets_of_branches():
    "A column of its own, 1 for the other layers; the notes say where they end"
    torch.manual_seed(0)
    class Block(nn.Module):
        def __init__(self): super().__init__(); self.a,self.b = nn.Linear(30,30),nn.Linear(30,30)
        def forward(self, x): return x + self.b(F.relu(self.a(x)))
    def model(): torch.manual_seed(0); return nn.Sequential(nn.Linear(30,30), Block(), Block(), Block(), Block(), nn.Linear(30,5))
    for scale,target,note in (('auto',0.5,'end at std 1'), (0.1,0.1,'end at std 0.2'), (0,0.,'are silent until the first step')):
        r = lsuv_(model(), x, std=2., branch_scale=scale)
        t = r.df.set_index('layer').target
        assert all(t[f'{i}.b']==pytest.approx(2*target) and t[f'{i}.a']==2. for i in (1,2,3,4)) and t['0']==t['5']==2.
        assert r.notes[0]==f'4 residual branches {note} (first: 1.b)' and r['1.b']['std']==pytest.approx(2*target, abs=1e-5)
    assert 'target' not in lsuv_(model(), x).df and lsuv_(net(), x, branch_scale='auto').notes==['no residual branches were found']
    assert lsuv_(model(), x, branch_scale='auto', layers=['0','5']).notes==['no residual branch ends in a layer that is initialized']
    r = lsuv_(nn.Sequential(ResBlock(1, 8, 8), nn.Conv2d(8,4,3)), torch.randn(4,8,9,9), branch_scale=0.5)
    assert r.notes[0]=='1 residual branch ends in a normalization, whose weight decides what is added (first: 0.convpath.1.0)'

def test_predicted():
    "`verify=False` says so; what is not told is what a wrong prediction hides"
    torch.manual_seed(0)
    m,calls = net(),[]
    m.register_forward_pre_hook(lambda *_: calls.append(1))
    r = lsuv_(m, x, verify=False)
    assert r.notes==['the means and stds are predicted, and there are no rows for normalization layers: verify=False leaves out the pass that measures them'] and len(calls)==1
    assert (r.df['std']-1).abs().max()<1e-6 and outs(m, x)[0].std().item()==pytest.approx(1, abs=1e-5)
    calls.clear()
    assert lsuv_(m, x).notes==[] and len(calls)==2

def test_predicted_normalizations():
    "They cost time, and are not what is predicted, unless they were chosen"
    m = nn.Sequential(nn.Linear(30,12), nn.BatchNorm1d(12), nn.Linear(12,12), nn.LayerNorm(12), nn.Linear(12,3))
    assert list(lsuv_(m, x, verify=False).df.layer)==['0','2','4'] and list(lsuv_(m, x).df.layer)==['0','1','2','3','4']
    r = lsuv_(m, x, verify=False, layers=[nn.Linear,nn.BatchNorm1d])
    assert list(r.df.layer)==['0','1','2','4'] and (r.df['std']-1).abs().max()<1e-6

def test_a_plain_number_that_is_subtracted():
    class GeneralRelu(nn.Module): # of the fastai course
        def __init__(self): super().__init__(); self.sub = 0.4
        def forward(self, x): return F.relu(x)-self.sub
    m = net(act=GeneralRelu)
    note = '2 GeneralRelu subtract a plain number, which stays as it is: their mean is not brought to 0, as that of a GeneralReLU is'
    assert lsuv_(m, x, at='activation').notes==[note] and m[1].sub==0.4
    assert lsuv_(net(act=GeneralRelu), x, at='activation', center=False).notes==[] and lsuv_(net(act=GeneralReLU), x, at='activation').notes==[]

# Warnings

def test_layers_that_do_not_get_there():
    "How many, the first, and where it stands; a layer may be right whose activation is not"
    with pytest.warns(UserWarning) as w: r = lsuv_(net(act=nn.Sigmoid), x, at='activation')
    assert str(w[0].message)==f"2 layers did not reach std 1 within 0.001 (first: 0, at {r['0']['std_after']:.3g} after its activation)" and w[0].filename==__file__
    assert r.df[r.df.type=='Linear'].converged.tolist()==[False,False,True]
    with pytest.warns(UserWarning) as w: lsuv_(nn.Sequential(nn.Linear(30,5).half()), x.half(), std=3., tol=1e-9) # less than 16 bits can tell
    assert len(w)==1 and re.fullmatch(r'1 layer did not reach std 3 within 1e-09 \(first: 0, at (2.99|3.00)\d*\)', str(w[0].message))

@pytest.mark.parametrize('tol,ok', [(1e-3,True), (1e-9,False)])
def test_tolerance(tol, ok):
    "In float16 rounding leaves some; what is near enough is said to be"
    import warnings
    m,h = net().half(),x.half()
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        r = lsuv_(m, h, tol=max(tol, 5e-3) if ok else tol)
    assert r.df.converged.all()==ok and bool(w)==(not ok)

# What cannot be initialized

def test_a_single_value():
    with pytest.raises(InitError) as e: lsuv_(nn.Sequential(nn.Linear(30,1)), x[:1])
    assert str(e.value)=='0 (Linear) gives a single value on this batch, which has no std: use a larger batch, or, if it gives one whatever the batch, freeze it or choose without it'
    r = lsuv_(nn.Sequential(nn.Linear(30,1)), x[:2])
    assert r['0']['std']==pytest.approx(1, abs=1e-5)

@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(bad):
    "In the batch or in a weight; the layer is named, and all is as it was"
    for where in ('batch','weight'):
        m,b = net(),x.clone()
        if where=='batch': b[3,4] = bad
        else: m[2].weight.data[0,0] = bad
        was = {k:v.clone() for k,v in m.state_dict().items()}
        with pytest.raises(InitError) as e: lsuv_(m, b, pre=None)
        n = '0' if where=='batch' else '2'
        assert str(e.value)==(f'{n} (Linear) gives values that are not finite: look for NaN or inf in the batch and in the weights, '
                              'or for values too large for the dtype. The model is as it was')
        assert all(torch.equal(v.nan_to_num(), was[k].nan_to_num()) for k,v in m.state_dict().items())

def test_further_passes():
    "A layer that a hook disturbs is corrected again, as often as it takes, up to six times; each pass is measured"
    m,calls = net(),[]
    m.register_forward_pre_hook(lambda *_: calls.append(1))
    m[2].register_forward_pre_hook(lambda m,a: (a[0]+0.3*m.weight.std(),)) # what it gets depends on its weight
    r = lsuv_(m, x)
    assert len(calls)==4 and r['2']['std']==pytest.approx(1, abs=1e-3) and abs(r['2']['mean'])<0.02 and r.df.converged.all()
    seen = []
    m[2].register_forward_hook(lambda m,i,o: seen.append(o.std().item()), prepend=True)
    with torch.no_grad(): m(x)
    assert seen[0]==pytest.approx(r['2']['std'], rel=1e-5)

def test_every_output_is_asked_of_the_pool(monkeypatch):
    "Which answers for all processes"
    import fastinit.lsuv
    asked = []
    class Counting(fastinit.lsuv.Pool):
        def __call__(self, what, n, std, mean):
            asked.append((what, n))
            return super().__call__(what, n, std, mean)
        def together(self, rows): asked.append(len(rows)); return super().together(rows)
    monkeypatch.setattr(fastinit.lsuv, 'Pool', Counting)
    lsuv_(net(), x)
    assert asked==[('0',64*30), ('2',64*30), ('4',64*5), 3]

# What callbacks pass on

@pytest.mark.parametrize('cls,scheme,options', [
    (LSUVCallback, 'lsuv', dict(std=2., center=False)), (KaimingCallback, 'kaiming', dict(mode='fan_out', distribution='uniform')), (lambda **kw: InitCallback('xavier', **kw), 'xavier', dict(gain=2.))])
def test_callbacks_pass_on_what_they_get(cls, scheme, options):
    cb = cls(layers='0', force=True, include_paramless=True, watch=7, **options)
    assert (cb.scheme, cb.layers, cb.force, cb.include_paramless, cb.watch, cb.kwargs)==(scheme, '0', True, True, 7, options)
    cb = cls()
    assert (cb.layers, cb.force, cb.include_paramless, cb.watch, cb.kwargs)==(None, False, False, 0, {})

def test_signatures_of_callbacks():
    "What the scheme takes, and what a callback adds; all by name"
    def names(f): return set(inspect.signature(f).parameters)
    assert names(LSUVCallback)==names(lsuv_)-{'model','xb'}|{'watch'} and names(KaimingCallback)==names(kaiming_)-{'model'}|{'watch','include_paramless'}
    assert all(p.kind==p.KEYWORD_ONLY for f in (LSUVCallback,KaimingCallback) for p in inspect.signature(f).parameters.values())
    for f in (lambda: LSUVCallback('orthogonal'), lambda: KaimingCallback('relu'), lambda: LSUVCallback(typo=1), lambda: KaimingCallback(std=1)):
        with pytest.raises(TypeError): f()

def test_gradients_of_modules_without_parameters():
    import matplotlib.pyplot as plt
    from fastai.test_utils import synth_learner
    learn = synth_learner(model=nn.Sequential(nn.Linear(1,8), nn.ReLU(), nn.Linear(8,1)))
    r = learn.init_report(grads=True, hist=True, include_paramless=True)
    assert r.df.layer.tolist()==['0','1','2'] and (r.df.grad_std>0).all() and list(r.hists)==['0','1','2']
    r = learn.init_report(grads=True, hist=True)
    assert r.df.layer.tolist()==['0','2'] and (r.df.grad_std>0).all() and list(r.hists)==['0','2']
    plt.close('all')

@pytest.mark.parametrize('options,n', [({},1), (dict(grads=True),2), (dict(hist=True),2), (dict(hist=True, grads=True),3)])
def test_what_init_report_draws(options, n):
    "A chart of means and stds, and one for each thing more that was asked for"
    import matplotlib.pyplot as plt
    from fastai.test_utils import synth_learner
    plt.close('all')
    synth_learner(model=nn.Sequential(nn.Linear(1,8), nn.ReLU(), nn.Linear(8,1))).init_report(**options)
    assert len(plt.get_fignums())==n and all(plt.figure(i).axes for i in plt.get_fignums())
    plt.close('all')

def test_layers_without_a_gradient_are_named():
    "A ReLU that is dead lets none through; where layers are 0 by design it is as it should be"
    from fastai.test_utils import synth_learner
    m = nn.Sequential(nn.Linear(1,24), nn.ReLU(), nn.Linear(24,24), nn.ReLU(), nn.Linear(24,1))
    nn.init.constant_(m[2].bias, -50.)
    learn = synth_learner(model=m)
    assert learn.init_report(grads=True).notes==['no gradient comes back to 2 layers (0, 2): look for dead activations behind']
    assert learn.init_report().notes==[]
    nn.init.zeros_(m[4].weight)
    assert learn.init_report(grads=True).notes==[]

@pytest.mark.parametrize('loss', [lambda p,y: F.l1_loss(p, y-99), lambda p,y: p.mean(), lambda p,y: -p.mean()])
def test_a_gradient_that_is_the_same_everywhere_is_one(loss):
    "As of an L1 loss, or of a critic: its std is 0, and it is not"
    from fastai.test_utils import synth_learner
    learn = synth_learner(model=nn.Sequential(nn.Linear(1,24), nn.ReLU(), nn.Linear(24,1)))
    learn.loss_func = loss
    r = learn.init_report(grads=True)
    assert r.notes==[] and r['2'].grad_std==pytest.approx(0, abs=1e-9)
    learn.loss_func = lambda p,y: 0*p.sum()
    assert learn.init_report(grads=True).notes==['no gradient comes back to 2 layers (0, 2): look for dead activations behind']
