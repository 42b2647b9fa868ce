"Further passes of LSUV: layers that a correction in the pass does not bring to the target"
from copy import deepcopy
import warnings
from functools import partial
import pytest, torch
import torch.nn.functional as F
from torch import nn
from fastinit.all import *

x = torch.randn(64, 30, generator=torch.Generator().manual_seed(0))

def stds(model, xb=x):
    "What each linear layer gives at its first call in evaluation mode, seen by hooks of our own"
    seen,model = {},deepcopy(model).eval()
    def _keep(n, m, i, o): seen.setdefault(n, o.std().item())
    for n,m in model.named_modules():
        if isinstance(m, nn.Linear): m.register_forward_hook(partial(_keep, n))
    with torch.no_grad(): model(xb)
    return seen

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
    r = lsuv_(m, x, pre=pre, center=center)
    assert r.df.converged.all() and not m.ready
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

@pytest.mark.parametrize('k', [1,2])
def test_a_weight_used_by_name_before_its_call(k):
    torch.manual_seed(0)
    m = ByName(k)
    w = m.a.weight.detach().clone()
    r = lsuv_(m, x, pre=None)
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
    r = lsuv_(m, x, pre=None)
    assert r.df.converged.all() and stds(m)==pytest.approx(dict.fromkeys(r, 1.), rel=1e-3)
    for k in r: assert_done(m, before, r[k])

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

@pytest.mark.parametrize('options', [{},dict(at='activation')])
def test_what_a_further_pass_makes_much_worse_goes_back(options):
    torch.manual_seed(0)
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
