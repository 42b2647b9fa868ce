"Further passes of LSUV: layers that a correction in the pass does not bring to the target"
from copy import deepcopy
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

class Rescaling(nn.Module):
    "Divides the weights of every layer but the first by `by` before it predicts, once, as transformers' RWKV"
    def __init__(self, n=9, by=4.):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(30,30) for _ in range(n))
        self.by,self.ready = by,False
    def forward(self, x):
        if not (self.training or self.ready):
            with torch.no_grad():
                for m in self.layers[1:]: m.weight.div_(self.by)
            self.ready = True
        for m in self.layers: x = m(x).relu()
        return x

@pytest.mark.parametrize('by', [4.,0.25])
@pytest.mark.parametrize('pre', ['kaiming',None])
def test_a_forward_that_rescales_weights(by, pre):
    torch.manual_seed(0)
    m = Rescaling(by=by)
    before = deepcopy(m.state_dict())
    r = lsuv_(m, x, pre=pre)
    assert r.df.converged.all() and not m.ready
    assert stds(m)==pytest.approx(dict.fromkeys(stds(m), 1.), rel=1e-3)==dict(zip(r.df.layer, r.df['std']))
    assert r.df.scale.between(0.01, 100).all() # and not that of all passes together
    assert r.df['mean'].abs().max()<0.02
    if pre is not None: return
    for n,o in r.df.set_index('layer').iterrows(): # what was done is what the report says
        assert torch.allclose(m.get_parameter(f'{n}.weight'), before[f'{n}.weight']*o.scale/(1 if n=='layers.0' else by), rtol=1e-4)
        assert torch.allclose(m.get_parameter(f'{n}.bias'), before[f'{n}.bias']*o.scale + o['shift'], atol=1e-5)

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
    assert len(calls)==6 # it was tried once in a pass, once outside of it
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
