"What is measured of each layer: rows, calls, histograms, gradients"
import math, warnings
import pytest, torch
from dataclasses import replace
from torch import nn
from fastinit.probe import InitError
from fastinit.stats import LayerStats, Moments, Row, has_moments, layer_grads, layer_hists, near_zero, require_grad

x = torch.randn(64, 30, generator=torch.Generator().manual_seed(0))
def net(): torch.manual_seed(0); return nn.Sequential(nn.Linear(30,20), nn.ReLU(), nn.Linear(20,5))

# Moments

def test_the_scratch_buffer_is_used_again():
    "It grows; another dtype or device has another; a part of it is used for less, which is no reason to warn"
    warnings.simplefilter('error')
    m = Moments()
    big,small = torch.randn(2**15)+9,torch.randn(2**14)+9
    m(big)
    place = m.buf.data_ptr()
    m(small), m(big)
    assert m.buf.numel()==2**15 and m.buf.data_ptr()==place
    m(torch.randn(2**16)+9)
    assert m.buf.numel()==2**16
    m(big.double())
    assert m.buf.dtype==torch.double and m(big.double()+9)[1]==pytest.approx(big.double().mean().item()+9)
    d = m.minus(torch.ones(3), torch.tensor(0.25))
    assert d.tolist()==[0.75]*3 and m.buf.dtype==torch.float

@pytest.mark.parametrize('lazy', [False, True])
@pytest.mark.parametrize('mean', [0., 9.])
def test_what_is_part_of_a_graph(lazy, mean):
    "Is measured all the same, where the mean is large too, and what comes of it is not"
    v = (torch.randn(2**15, generator=torch.Generator().manual_seed(0))+mean).requires_grad_()
    sd,m = Moments(lazy)(v*1)
    assert float(sd)==pytest.approx(v.std().item(), rel=1e-6) and float(m)==pytest.approx(v.mean().item(), abs=1e-6) and not (lazy and (sd.requires_grad or m.requires_grad))

@pytest.mark.parametrize('lazy', [None, False, True])
def test_numbers_or_tensors(lazy):
    std,mean = Moments(lazy)(x)
    assert isinstance(std, torch.Tensor)==isinstance(mean, torch.Tensor)==(lazy is True) and float(std)==pytest.approx(x.std().item(), rel=1e-6)
    std,mean = Moments(lazy)(torch.complex(x, 2*x+1))
    assert float(std)==pytest.approx(math.sqrt(5)*x.std().item(), rel=1e-5) and complex(mean)==pytest.approx(complex(x.mean(), 2*x.mean()+1), abs=1e-6)

@pytest.mark.parametrize('v,std,mean', [([3.],0.,3.), ([0.,0.],0.,0.), ([1.,1.,1.],0.,1.), ([1.,3.],math.sqrt(2),2.), ([-1.,1.],math.sqrt(2),0.)])
def test_few_values(v, std, mean):
    "n − 1 in the denominator, but 1 at least"
    for lazy in (False, True): assert tuple(map(float, Moments(lazy)(torch.tensor(v))))==(pytest.approx(std, abs=1e-7), pytest.approx(mean))

@pytest.mark.parametrize('lazy', [False, True])
@pytest.mark.parametrize('size', [1e-30, -1e-30, 1e30])
def test_squares_out_of_range(lazy, size):
    "Nothing is taken for zero, or infinite, because its square is: of one sign, 0 among them, and many"
    v = size*torch.rand(2**15, generator=torch.Generator().manual_seed(0)).clamp_min(0.1)
    v[0] = 0
    std,mean = map(float, Moments(lazy)(v))
    assert std==pytest.approx(v.double().std().item(), rel=1e-5, abs=0) and mean==pytest.approx(v.double().mean().item(), rel=1e-6, abs=0)

@pytest.mark.parametrize('lazy', [False, True])
def test_zeros(lazy): assert tuple(map(float, Moments(lazy)(torch.zeros(2**15))))==(0.,0.)

def test_what_is_not_finite():
    for bad in (math.nan, math.inf):
        v = x.clone()
        v[0,0] = bad
        std,mean = Moments(False)(v)
        assert not math.isfinite(mean) and not std==std or std==math.inf

def test_what_has_moments():
    assert has_moments(x) and has_moments(x.half()) and has_moments(torch.complex(x, x)) and not has_moments(x.long()) and not has_moments(None) and not has_moments([x])
    seen = []
    torch.func.vmap(lambda v: (seen.append(has_moments(v)), v)[1])(x)
    assert seen==[False]

def test_near_zero_elsewhere():
    "A tensor on what is not the CPU, which is not waited for"
    v = torch.ones(2, 3, device='meta')
    assert near_zero(v).is_meta
    class Far(torch.Tensor):
        @property
        def device(self): return torch.device('meta')
    share = near_zero(torch.tensor([-1., 0.04, 0.06, 2.]).as_subclass(Far))
    assert isinstance(share, torch.Tensor) and float(share)==0.5

# Rows

def test_rows():
    "By name, in the order of execution; modules without parameters if asked; the hooks come first and go"
    m = net()
    m[0].register_forward_hook(lambda m,i,o: o*100) # what a hook makes of it is not the layer's
    with torch.no_grad(), LayerStats(m) as s: m(x)
    rows = s.table()
    assert [(r.layer, r.type, r.shape, r.calls) for r in rows]==[('0','Linear',(64,20),1), ('2','Linear',(64,5),1)] and rows[0].module is m[0]
    with torch.no_grad(): o = nn.functional.linear(x, m[0].weight, m[0].bias)
    assert rows[0].std==pytest.approx(o.std().item(), rel=1e-6) and rows[0].mean==pytest.approx(o.mean().item(), abs=1e-6)
    assert rows[0].sample.numel()==64*20 and torch.equal(rows[0].sample.sort().values, o.flatten().sort().values)
    assert sum(len(o._forward_hooks) for o in m)==1
    with torch.no_grad(), LayerStats(m, include_paramless=True) as s: m(x)
    assert [r.layer for r in s.table()]==['0','1','2']

def test_known_values_are_not_measured():
    "Those of the next call alone"
    m = net()
    with torch.no_grad(), LayerStats(m, known={'0':(7.,8.)}) as s: m(x); m(x)
    (a,b) = s.calls['0']
    assert (a.std,a.mean)==(7.,8.) and b.std<2 and s.calls['2'][0].std<2

def test_several_calls():
    "The first one that has a spread speaks for them, with the range of all that have"
    m = nn.Linear(30, 20, bias=False)
    with torch.no_grad(), LayerStats(m) as s: m(0*x), m(x), m(3*x), m(x[:0])
    (r,) = s.table()
    assert r.calls==3 and r.lowest==r.std and r.highest==pytest.approx(3*r.std, rel=1e-5) and r.std>0
    with torch.no_grad(), LayerStats(m) as s: m(0*x), m(0*x)
    (r,) = s.table()
    assert (r.calls, r.std, r.lowest, r.highest)==(2,0.,0.,0.) and not r.has_spread

def test_first_tensor_of_an_output():
    m = nn.GRU(30, 20)
    with torch.no_grad(), LayerStats(m) as s: m(x[None])
    assert s.table()[0].shape==(1,64,20)
    whole = nn.Embedding(5, 3)
    whole.forward = lambda i: i
    with LayerStats(whole) as s: whole(torch.tensor([1]))
    assert s.table()==[]

def test_spread():
    "More than a millionth of the mean"
    r = Row('a', 'Linear', (2,), 1., 1.1e-6)
    assert r.has_spread and not replace(r, std=0.9e-6).has_spread and replace(r, mean=-1., std=1.1e-6).has_spread and not replace(r, mean=-1., std=0.9e-6).has_spread
    assert (r.calls, r.status, r.target, r.step, r.off, r.converged, r.sample)==(1,'',None,None,None,None,None) and math.isnan(r.lowest) and math.isnan(r.highest)

# Histograms

def test_histograms():
    "A column a layer, a row a bin by its middle, shares of all values; what lies outside counts at the ends; of the first call"
    m = net()
    for options,said in ((dict(bins=0),'bins=0: must be a whole number over 0'), (dict(bins=2.5),'bins=2.5: must be a whole'), (dict(bins='5'),"bins='5': must be"),
                         (dict(lim=0),'lim=0: must be a number over 0'), (dict(lim=-1),'lim=-1: '), (dict(lim=math.nan),'lim=nan: '), (dict(lim=None),'lim=None: ')):
        with pytest.raises(ValueError) as e: layer_hists(m, x, **options)
        assert str(e.value).startswith(said) and type(e.value) is ValueError
    h = layer_hists(m, x, bins=5, lim=1., include_paramless=True)
    assert list(h)==['0','1','2'] and h.index.tolist()==pytest.approx([-0.8,-0.4,0.,0.4,0.8]) and h.sum().tolist()==pytest.approx([1.]*3)
    with torch.no_grad(): o = m[0](x)
    for i,(a,b) in enumerate([(-9,-.6),(-.6,-.2),(-.2,.2),(.2,.6),(.6,9)]): assert h['0'].iloc[i]==pytest.approx(((o>=a) & (o<b)).float().mean().item(), abs=1e-3)
    d = layer_hists(m, x)
    assert d.shape==(81,2) and d.index[0]==pytest.approx(-4+4/81) and d.index[40]==pytest.approx(0)
    class Twice(nn.Module):
        def __init__(self): super().__init__(); self.lin = m[0]
        def forward(self, x): return self.lin(x),self.lin(100*x)
    assert layer_hists(Twice(), x, bins=5, lim=1.)['lin'].tolist()==h['0'].tolist()

# Gradients

def grads_by_hand(m, x, loss):
    kept = {}
    for n,o in m.named_children(): o.register_forward_hook(lambda mod,i,out,n=n: out.register_hook(lambda g: kept.update({n:g})) and None)
    loss(m(x)).backward()
    return {n:g.std().item() for n,g in kept.items()}

def test_gradients():
    "At every layer's output; frozen ones too; gradients, flags and weights stay"
    m = net()
    m[0].requires_grad_(False)
    was = [p.clone() for p in m.parameters()]
    s = layer_grads(m, lambda o,y: (o-y).pow(2), x, torch.ones(64,5), include_paramless=True)
    assert list(s.index)==['0','1','2'] and all(p.grad is None for p in m.parameters()) and [p.requires_grad for p in m.parameters()]==[False,False,True,True]
    assert all(map(torch.equal, m.parameters(), was))
    assert list(layer_grads(m, lambda o,y: (o-y).pow(2).mean(), (x,), (torch.ones(64,5),)).index)==['0','2']
    by_hand = grads_by_hand(net(), x, lambda o: (o-1).pow(2).mean())
    for n,g in by_hand.items(): assert s[n]==pytest.approx(g, rel=1e-4)

def test_gradients_of_one_value():
    "Their std is 0, as there is no n − 1"
    s = layer_grads(nn.Sequential(nn.Linear(30,1)), lambda o,y: o.sum(), x[:1], None)
    assert s['0']==0

def test_gradients_of_what_the_loss_does_not_see():
    class Aside(nn.Module):
        def __init__(self): super().__init__(); self.a,self.b,self.unused = nn.Linear(30,5),nn.Linear(30,5),nn.Linear(3,3)
        def forward(self, x): self.b(x); return self.a(x)
    s = layer_grads(Aside(), lambda o,y: o.sum(), x, None)
    assert list(s.index)==['b','a'] and s['a']>=0 and math.isnan(s['b'])

def test_no_gradient_at_all():
    class Cut(nn.Linear):
        def forward(self, x): return super().forward(x).detach()
    with pytest.raises(InitError) as e: layer_grads(Cut(30,5), lambda o,y: o.sum(), x, None)
    assert str(e.value)=='the loss does not depend on the parameters: look for detach(), item() or no_grad() in the model and the loss'

def test_a_loss_that_is_a_number():
    with pytest.raises(InitError, match='the loss does not depend on the parameters'):
        layer_grads(nn.Linear(30,5), lambda o,y: o.sum().item(), x, None)

def test_no_backward_pass():
    class InPlace(nn.Linear):
        def forward(self, x): return super().forward(x).sigmoid().exp().add_(1).log().mul_(2).exp_().mul_(3)
    m = InPlace(30,5)
    before = m.weight.detach().clone()
    with pytest.raises(InitError, match='^the backward pass failed: one of the variables .* in.?place'): layer_grads(m, lambda o,y: o.sum(), x, None)
    assert torch.equal(m.weight, before) and m.weight.grad is None

def test_gradients_of_a_recurrent_layer_and_of_half_precision():
    m = nn.Sequential(nn.Flatten(1), nn.Linear(30,4).bfloat16())
    assert layer_grads(m, lambda o,y: o.float().pow(2), x.bfloat16(), None)['1']>0
    assert layer_grads(nn.LSTM(30,4), lambda o,y: o[0].pow(2), x[None], None)['LSTM']>0

def test_a_mean_beside_its_own_size():
    "Right to a part of the spread, not of the mean: what rounding took from it is added again"
    v = torch.randn(2**15, generator=torch.Generator().manual_seed(0)) + 1e6
    for part in (v, v[:2**14+7]): assert abs(Moments(False)(part)[1]-part.double().mean().item())<1e-6

@pytest.mark.parametrize('model', [nn.LSTM(30,4), nn.Sequential(nn.LSTM(30,4)), net()], ids=['lstm','inside','none'])
def test_recurrent_layers_go_back_without_cudnn(model):
    "Whose kernels have no backward pass in evaluation mode"
    def loss(o, y):
        seen.append(torch.backends.cudnn.enabled)
        return (o if isinstance(o, torch.Tensor) else o[0]).sum()
    seen,was = [],torch.backends.cudnn.enabled
    layer_grads(model, loss, x[None], None)
    assert seen==[was and isinstance(list(model.modules())[-1], nn.Linear)] and torch.backends.cudnn.enabled==was

@pytest.mark.parametrize('on', [True, False])
def test_require_grad(on):
    "As it was afterwards, also after an error; whole numbers have none"
    m = nn.Sequential(nn.Linear(2,2), nn.Linear(2,2).requires_grad_(False))
    m.index = nn.Parameter(torch.ones(2).long(), requires_grad=False)
    was = [p.requires_grad for p in m.parameters()]
    with require_grad(m, on) as ps: assert len(ps)==(4 if on else 0) and all(p.requires_grad==on for p in m[0].parameters()) and not m.index.requires_grad
    assert [p.requires_grad for p in m.parameters()]==was
    with pytest.raises(ValueError), require_grad(m, on): raise ValueError
    assert [p.requires_grad for p in m.parameters()]==was

def test_histograms_of_what_is_finite():
    "NaN and inf are in no bin; finite values beyond the limits in the last, those of double precision too"
    v = torch.tensor([math.nan, math.inf, -math.inf, 1e300, -5., 0., 0.1, 3.9], dtype=torch.double)
    h = layer_hists(nn.Sequential(nn.Identity()), v, bins=5, lim=4., include_paramless=True)['0']
    assert h.tolist()==[1/8, 0., 2/8, 0., 2/8]

def test_histograms_count_to_the_end():
    "More values in a bin than a float32 counts to; the shares add up to 1 to 1e-12"
    h = layer_hists(nn.Sequential(nn.Identity()), torch.zeros(2**24+2**20+1), bins=3, include_paramless=True)['0']
    assert h.tolist()==[0,1,0] and h.dtype==float
    assert layer_hists(net(), x).sum().tolist()==pytest.approx([1.]*2, abs=1e-12)
