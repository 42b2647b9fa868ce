"Further passes of LSUV: layers that a correction in the pass does not bring to the target"
from copy import deepcopy
import math, warnings
from functools import partial
import pytest, torch
import torch.nn.functional as F
from torch import nn
from fastinit.all import *
from fastinit.correction import Affine, Correction, Step
from fastinit.passes import Passes
from fastinit.state import Saved
from fastinit.stats import Moments, Row

x = torch.randn(64, 30, generator=torch.Generator().manual_seed(0))

def stds(model, xb=x):
    "What each linear layer gives at its first call in evaluation mode, seen by hooks of our own"
    seen,model = {},deepcopy(model).eval()
    def _keep(n, m, i, o): seen.setdefault(n, o.std().item())
    for n,m in model.named_modules():
        if isinstance(m, nn.Linear): m.register_forward_hook(partial(_keep, n))
    with torch.no_grad(): model(xb)
    return seen

def counted(model, xb=x, f=lsuv_, **kwargs):
    "(How many forward passes, the report) of `f`"
    calls = []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    report = f(model, xb, **kwargs)
    hook.remove()
    return len(calls),report

def assert_done(model, before, row):
    "The weights are what the report says of what was done"
    w,b = f'{row.name}.weight',f'{row.name}.bias'
    assert torch.allclose(model.get_parameter(w), before[w]*row['scale'], rtol=1e-4)
    if b in before: assert torch.allclose(model.get_parameter(b), before[b]*row['scale'] + row['shift'], rtol=1e-4, atol=1e-5)

class Rescaling(nn.Module):
    "Divides the weights of every layer but the first by `by` before it predicts, once, as transformers' RWKV"
    def __init__(self, n=9, by=4., data=False):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(30,30) for _ in range(n))
        self.by,self.data,self.ready = by,data,False
    def forward(self, x):
        if not (self.training or self.ready):
            with torch.no_grad():
                for m in self.layers[1:]: (m.weight.data if self.data else m.weight).div_(self.by)
            self.ready = True
        for m in self.layers: x = m(x).relu()
        return x

@pytest.mark.parametrize('by', [4.,0.25])
@pytest.mark.parametrize('pre', ['kaiming',None])
@pytest.mark.parametrize('data', [False,True]) # by `data`, which leaves no other trace
@pytest.mark.parametrize('center', [False,True])
def test_a_forward_that_rescales_weights(by, pre, data, center):
    torch.manual_seed(0)
    m = Rescaling(by=by, data=data)
    before = deepcopy(m.state_dict())
    n,r = counted(m, pre=pre, center=center)
    assert r.df.converged.all() and not m.ready
    assert n==(3 if pre is None else 5) # where it is seen what the forward does, that pass is made anew; what was drawn is off then
    assert stds(m)==pytest.approx(dict.fromkeys(stds(m), 1.), rel=1e-3)==dict(zip(r.df.layer, r.df['std']))
    assert r.df.scale.between(1e-3, 1e3).all() # and not that of all passes together
    assert not center or r.df['mean'].abs().max()<0.02
    if pre is not None: return
    for n in r: assert_done(m, before, r[n])

class ByName(nn.Module):
    "The weight of `a` is used `k` times by name before `a` is called"
    def __init__(self, k=1):
        super().__init__()
        self.a,self.b,self.k = nn.Linear(30,30,bias=False),nn.Linear(30,5),k
    def forward(self, x):
        for _ in range(self.k): x = F.linear(x, self.a.weight.t())
        return self.b(self.a(x).relu())

@pytest.mark.parametrize('k', [1,2,3,5]) # the std goes with the power k+1 of the scale
@pytest.mark.parametrize('seed', range(4))
def test_a_weight_used_by_name_before_its_call(k, seed):
    torch.manual_seed(seed)
    m = ByName(k)
    w = m.a.weight.detach().clone()
    n,r = counted(m, pre=None)
    assert n==5 # in vain in a second correction; then outside of a pass
    assert r.df.converged.all() and stds(m)==pytest.approx(dict(a=1., b=1.), rel=1e-3)
    assert torch.allclose(m.a.weight, w*r['a'].scale, rtol=1e-5) # which says what was done

def test_what_cannot_be_reached_keeps_the_first_correction():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b = nn.Linear(30,30,bias=False),nn.Linear(30,5)
        def forward(self, x): return self.b(self.a(x/self.a.weight.std()))
    torch.manual_seed(0)
    m,calls = Net(),[]
    m.register_forward_hook(lambda *_: calls.append(1))
    with pytest.warns(UserWarning, match='did not reach std 1'): r = lsuv_(m, x, pre=None)
    assert not r['a'].converged and r['a'].scale==pytest.approx(1/r['a'].std_before, rel=1e-5)
    assert len(calls)==8 # tried once outside of a pass; then `b` behind it
    assert stds(m)['a']==pytest.approx(r['a']['std'], rel=1e-5) and 0.01<r['a'].scale<100
    assert stds(m)['b']==pytest.approx(r['b']['std'], rel=1e-5)

def test_a_std_that_falls_as_the_weight_grows():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b = nn.Linear(30,30,bias=False),nn.Linear(30,5)
        def forward(self, x): return self.b(self.a(x/self.a.weight.std()**2))
    torch.manual_seed(0)
    m = Net()
    assert lsuv_(m, x, pre=None).df.converged.all() and stds(m)==pytest.approx(dict(a=1., b=1.), rel=1e-3)

class Tied(nn.Module):
    "Blocks in which a weight, of a layer with a bias, is used by name first; what is behind it must follow"
    def __init__(self, n=1):
        super().__init__()
        self.a,self.b = (nn.ModuleList(nn.Linear(30,30) for _ in range(n)) for _ in 'ab')
    def forward(self, x):
        for a,b in zip(self.a, self.b): x = b(a(F.linear(x, a.weight.t())).relu())
        return x

@pytest.mark.parametrize('n', [1,2])
@pytest.mark.parametrize('seed', range(6))
def test_layers_behind_one_that_is_off(n, seed):
    torch.manual_seed(seed)
    m = Tied(n)
    before = deepcopy(m.state_dict())
    passes,r = counted(m, pre=None)
    assert (passes==10 if n==1 else passes<=18) and r.df.converged.all() and stds(m)==pytest.approx(dict.fromkeys(r, 1.), rel=1e-3)
    for k in r: assert_done(m, before, r[k])

def test_at_most_some_thirty_passes():
    torch.manual_seed(0)
    m = Tied(5)
    with pytest.warns(UserWarning, match='did not reach std 1'): n,r = counted(m, pre=None)
    assert 30<=n<=33 and r.df.converged[:6].all() and not r.df.converged[8:].any()
    assert stds(m)==pytest.approx({k:r[k]['std'] for k in r}, rel=1e-4)

class Partly(nn.Module):
    "What comes in goes in part with the weight: each correction leaves some seven tenths of what is off"
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(30,30,bias=False)
    def forward(self, x): return self.a(x + 2*F.linear(x, self.a.weight.t()))

def test_six_rounds():
    torch.manual_seed(0)
    m = Partly()
    with pytest.warns(UserWarning, match='did not reach std 1'): n,r = counted(m, pre=None)
    assert n==2+2*6 and 1e-3<abs(r['a']['std']-1)<0.03 and stds(m)['a']==pytest.approx(r['a']['std'], rel=1e-4)

class Exploding(nn.Module):
    "What is behind the layer has room for what it gives after the first correction, and for no more"
    def __init__(self):
        super().__init__()
        self.a,self.e = nn.Linear(30,30,bias=False),Exp()
    def forward(self, x): return self.e(self.a(F.linear(x, self.a.weight.t())))

class Exp(nn.Module):
    def __init__(self):
        super().__init__()
        self.k = nn.Parameter(torch.tensor(30.))
    def forward(self, x): return (self.k*x).exp()

def test_a_trial_after_which_another_layer_overflows_is_none():
    torch.manual_seed(0)
    m = Exploding()
    w = m.a.weight.detach().clone()
    with pytest.warns(UserWarning, match='did not reach std 1'): n,r = counted(m, 3*x, pre=None)
    assert n==5 and not r['a'].converged and r['a']['std']==pytest.approx(stds(m, 3*x)['a'], rel=1e-4) and r['e'].status=='exploding' and math.isfinite(r['e']['std'])
    assert torch.allclose(m.a.weight, w/r['a'].std_before, rtol=1e-5)

class Falling(Exploding):
    "Half the weight gives twice the output"
    def forward(self, x): return self.e(self.a(x/self.a.weight.std()**2))

def test_another_layer_overflows_after_the_trial_outside_of_a_pass():
    torch.manual_seed(0)
    m = Falling()
    w = m.a.weight.detach().clone()
    xs = x*(0.85/stds(m)['a']) # 0.85, after the first correction 0.85²; then in vain 0.85⁴, and outside 1
    with pytest.warns(UserWarning, match='did not reach std 1'): n,r = counted(m, xs, pre=None)
    assert n==6 and r['a']['std']==pytest.approx(0.85**2, rel=1e-3)==stds(m, xs)['a'] and not r['a'].converged and math.isfinite(r['e']['std'])
    assert torch.allclose(m.a.weight, w/r['a'].std_before, rtol=1e-5)

class Grown(nn.Module):
    "A branch whose last weight the forward sets once, as from a table, before it predicts"
    def __init__(self):
        super().__init__()
        self.a,self.b,self.c,self.ready = nn.Linear(30,30),nn.Linear(30,30),nn.Linear(30,30),False
    def forward(self, x):
        if not (self.training or self.ready):
            with torch.no_grad(): self.c.weight.add_(0.1)
            self.ready = True
        x = self.a(x)
        return x + self.c(self.b(x).relu())

def test_a_branch_that_the_forward_fills():
    "It cannot be silent; the report says what it gives"
    torch.manual_seed(0)
    m = Grown()
    with pytest.warns(UserWarning, match='did not reach'): r = lsuv_residual_(m, x)
    assert 0.1<r['c']['std']==pytest.approx(stds(m)['c'], rel=1e-3) and not r['c'].converged and r['b'].converged

GATES = dict(sigmoid=nn.Sigmoid, hardsigmoid=nn.Hardsigmoid)
@pytest.mark.parametrize('gate', GATES)
@pytest.mark.parametrize('seed', range(6))
def test_before_a_gate_the_std_stays_1(gate, seed):
    "No scale brings a sigmoid to std 1; nothing else is done about it, and what is behind is right"
    torch.manual_seed(seed)
    m,calls = nn.Sequential(nn.Linear(30,30), GATES[gate](), nn.Linear(30,30), GATES[gate](), nn.Linear(30,30), nn.ReLU()),[]
    m.register_forward_hook(lambda *_: calls.append(1))
    with pytest.warns(UserWarning, match='2 layers did not reach std 1'): r = lsuv_(m, x, at='activation')
    assert len(calls)==2
    assert stds(m)['0']==pytest.approx(1., rel=1e-3)==stds(m)['2'] and r['4']['std_after']==pytest.approx(1., rel=1e-3)
    assert r.df.converged.dropna().tolist()==[False,False,True]

class WeakFirst(nn.Module):
    "A recurrence whose first call is nearly nothing"
    def __init__(self):
        super().__init__()
        self.a,self.b = nn.Linear(30,30),nn.Linear(30,5)
    def forward(self, x):
        h = torch.zeros(len(x), 30)
        for i in range(4): h = torch.tanh(x*0.1*i + self.a(h))
        return self.b(h)

@pytest.mark.parametrize('seed', range(6))
def test_what_goes_back_speaks_of_the_same_call(seed):
    torch.manual_seed(seed)
    m = WeakFirst()
    before = deepcopy(m.state_dict())
    r = lsuv_(m, x, pre=None)
    assert r['a']['std']>0.2 and r['b']['std']==pytest.approx(1., rel=1e-3) # that of a call which was corrected
    for k in r: assert_done(m, before, r[k])

class Equal(nn.Linear):
    "StyleGAN's: its bias has a rate of its own"
    def forward(self, x): return F.linear(x, self.weight, self.bias*0.1)

class TiedEqual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.b = Equal(30,30),nn.Linear(30,5)
    def forward(self, x): return self.b(self.a(F.linear(x, self.a.weight.t())))

def test_steps_that_go_back_go_back_whole():
    torch.manual_seed(0)
    m = TiedEqual()
    nn.init.normal_(m.a.bias, mean=20.)
    before = deepcopy(m.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        r = lsuv_(m, x, pre=None)
    for k in r: assert_done(m, before, r[k])

@pytest.mark.parametrize('scale', [10.,1e-3])
@pytest.mark.parametrize('dtype', [torch.half,torch.float])
@pytest.mark.parametrize('k', [2,3])
def test_a_trial_that_overflows_is_none(k, dtype, scale):
    "It goes back, or the first correction is an error that leaves all as it was"
    torch.manual_seed(0)
    m = ByName(k).to(dtype)
    before = deepcopy(m.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: r = lsuv_(m, (x*scale).to(dtype), pre=None)
        except InitError: assert all(torch.equal(v, before[n]) for n,v in m.state_dict().items())
        else: assert stds(m, (x*scale).to(dtype))==pytest.approx(dict(zip(r.df.layer, r.df['std'])), rel=0.02)

class Recurrent(nn.Module):
    "By hand, with weights that act on what they gave"
    def __init__(self, act):
        super().__init__()
        self.w,self.h,self.act = nn.Linear(16,16),nn.Linear(16,16),act
    def forward(self, xs):
        h,res = torch.zeros(len(xs), 16),[]
        for t in range(xs.shape[1]):
            h = self.act(self.w(xs[:,t]) + self.h(h))
            res.append(h)
        return torch.stack(res, 1)

@pytest.mark.parametrize('seed', [3,15,17])
@pytest.mark.parametrize('act', [torch.relu,torch.tanh])
def test_a_head_behind_recurrent_layers_is_right(act, seed):
    "It is off in each pass that changes what is before it, and no less its own master"
    torch.manual_seed(seed)
    m,xs,calls = nn.Sequential(Recurrent(act), Recurrent(act), nn.Flatten(), nn.Linear(16*6,4)),torch.randn(32,6,16),[]
    m.register_forward_hook(lambda *_: calls.append(1))
    r = lsuv_(m, xs)
    assert len(calls)<=14 and r['3'].converged and stds(m, xs)['3']==pytest.approx(1., rel=1e-3)

class Thrice(nn.Module):
    "A weight of which the output goes with the third power"
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(16,16)
    def forward(self, x):
        for _ in range(2): x = F.linear(x, self.l.weight)
        return torch.tanh(self.l(x))

@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('options', [{},dict(at='activation')])
def test_what_a_further_pass_makes_much_worse_goes_back(options, seed):
    torch.manual_seed(seed)
    m,xs = nn.Sequential(Thrice(), Thrice(), Thrice(), nn.Linear(16,4)),torch.randn(32,16)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        r = lsuv_(m, xs, **options)
    assert not r.df.status.isin(['dead','vanishing']).any() and (options or r.df.scale.between(1e-2, 1e2).all()) # a tanh wants a large input
    assert stds(m, xs)==pytest.approx({n:r[n]['std'] for n in stds(m, xs)}, rel=1e-3)

@pytest.mark.parametrize('dtype', [torch.bfloat16,torch.half])
def test_rounding_does_not_make_it_worse(dtype):
    "Layers in 16 bits end no further off than after the first correction, to rounding"
    torch.manual_seed(0)
    m = nn.Sequential(*(o for _ in range(20) for o in (nn.Linear(30,30), nn.ReLU()))).to(dtype)
    once = lsuv_(deepcopy(m), x.to(dtype), pre=None, verify=False) # whose weights are those of the first pass
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        r = lsuv_(m, x.to(dtype), pre=None)
    assert (r.df['std']-1).abs().max()<0.01 and len(once)==len(r)

# Each judgement alone

def judge(tol=1e-3, center=True, target=1.):
    m = nn.Linear(3,4)
    return Passes(m, (), Correction({'l':m}, Moments(), target, center=center), Saved([]), None, tol, None)

def row(std=1., mean=0., after=None, off=None): return Row('l', 'Linear', (2,4), mean, std, std_after=after, off=off)

def test_how_far_a_layer_is_off():
    "The std relative to the target, the mean likewise where it counts; half of `tol` and 2 % are tolerated"
    p,half = judge(),judge(target=0.5)
    assert p.distance('l', 1.2)==pytest.approx(0.2) and half.distance('l', 0.6)==pytest.approx(0.2) and judge(target=0.).distance('l', 0.3)==0.3
    assert half.mean_off('l', -0.05)==pytest.approx(0.1) and judge(center=False).mean_off('l', 5.)==0 and judge(target=0.).mean_off('l', 0.01)==pytest.approx(10)
    for std,mean,off in ((1.0004,0.,False), (1.0006,0.,True), (0.9994,0.,True), (1.,0.019,False), (1.,-0.021,True)): assert p.is_off('l', std, mean) is off
    assert p.badness('l', 0.001, 0.)==pytest.approx(2) and p.badness('l', 0., 0.04)==pytest.approx(2)
    assert p.far(row(std=2.))==pytest.approx(math.log(2))==p.far(row(std=0.5)) and p.far(row(std=5., after=2.))==pytest.approx(math.log(2))
    assert p.far(row(std=2., mean=3.))==3 and p.far(row(std=0.))==math.inf==p.far(row(std=1e-9, mean=1.)) and judge(target=0.).far(row(std=0.3, off=0.3))==0.3

def test_worse_and_in_vain():
    "Three times as far, and 5 % at least; hardly less far, and more than is tolerated"
    p = judge()
    def far(o): return row(std=math.exp(o), off=math.exp(o)-1)
    for now,before,worse,vain in ((0.31,0.1,True,True), (0.29,0.1,False,True), (0.06,0.001,True,True), (0.04,0.001,False,True), (0.091,0.1,False,True), (0.089,0.1,False,False), (4e-4,1e-4,False,False)):
        assert (p.is_worse(far(now), far(before)), p.is_in_vain(far(now), far(before)))==(worse,vain)
    assert p.is_worse(row(std=0., off=1.), far(-2.)) # dead

def test_what_is_corrected_again():
    "What is off; not what was given up, what is constant, and what its activation does not bring to the target"
    def off(stuck=(), converged=None, std=1.1):
        p,r = judge(),row(std, off=abs(std-1))
        p.fix.stuck,r.step = set(stuck),Step(0., 1., Affine(), converged)
        return list(p.off([r]))
    assert off()==['l']==off(converged=True) and not off(stuck='l') and not off(converged=False) and not off(std=0.) and not off(std=1.0004)

def test_scaled_outside_of_a_pass():
    "By the power that the std goes with, and at most a thousandfold"
    for std,power,scale in ((0.25,1.,4.), (0.25,2.,2.), (4.,-1.,4.), (1e-6,1.,1e3), (1e6,1.,1e-3), (0.,1.,1.)):
        p,r = judge(),row(std)
        w = p.fix.layers['l'].weight.detach().clone()
        p.fix.done['l'] = r.step = Step(5., 6., Affine(3., 1.))
        p.scale_outside(r, power)
        done = p.fix.done['l']
        assert (done.change.scale,done.change.shift)==pytest.approx((3*scale,scale)) and (done.mean_before,done.std_before)==(5.,6.)
        assert torch.allclose(p.fix.layers['l'].weight, scale*w)

def test_what_is_known_goes_back_with_the_weights():
    "Of the layers named, and of no other"
    layers = {n:nn.Linear(3,4) for n in 'abc'}
    fix = Correction(layers, Moments())
    p = Passes(nn.ModuleDict(layers), (), fix, Saved([]), None, 1e-3, None)
    was = {n:m.weight.detach().clone() for n,m in layers.items()}
    fix.done = {n:Step(0., 1., Affine(2.)) for n in layers}
    done = dict(fix.done)
    fix.speaks,fix.off_center = {'a':1},{'a'}
    back = p.state(['a','b'])
    for n,m in layers.items():
        nn.init.zeros_(m.weight)
        fix.done[n] = Step(0., 1., Affine(7.))
    fix.speaks,fix.off_center = {'a':3,'b':2,'c':2},{'a','b','c'}
    back(['b'])
    assert fix.done['b'] is done['b'] and fix.done['a'].change.scale==7 and fix.speaks=={'a':3,'c':2} and fix.off_center=={'a','c'}
    assert layers['b'].weight.equal(was['b']) and not layers['a'].weight.any()
    back(['a'])
    assert fix.done['a'] is done['a'] and fix.speaks=={'a':1,'c':2} and fix.off_center=={'a','c'} and layers['a'].weight.equal(was['a']) and not layers['c'].weight.any()
