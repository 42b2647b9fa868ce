"LSUV after the activation: the solver, which functions are found and which are not, and what is done to the layer"
import math
from copy import deepcopy
from functools import partial
import pytest, torch
import torch.nn.functional as F
from torch import nn
from fastinit.all import *
from fastinit.at_activation import ActivationCorrection, AfterActivation, NextActivation, function_kind, solve_scale
from fastinit.state import Saved
from fastinit.stats import Moments

z = torch.randn(64, 100, generator=torch.Generator().manual_seed(0))
t = torch.tensor

# The solver

@pytest.mark.parametrize('act', [F.relu, F.gelu, F.silu, F.elu, F.softplus, partial(F.leaky_relu, negative_slope=0.3), lambda v: v*v, lambda v: v.abs().sqrt(), lambda v: v.pow(3)])
@pytest.mark.parametrize('size', [1e-3, 1., 1e3])
def test_a_scale_is_found(act, size):
    "Whatever the size of the input; the std within half the tolerance"
    s,shift,ok = solve_scale(act, z*size, tol=1e-3)
    assert ok and shift==0 and act(z*size*s).std().item()==pytest.approx(1, abs=5.1e-4)

@pytest.mark.parametrize('std', [0.1, 0.6, 0.95])
def test_a_target_that_a_tanh_reaches(std):
    s,_,ok = solve_scale(torch.tanh, z, std=std, tol=1e-4)
    assert ok and torch.tanh(z*s).std().item()==pytest.approx(std, abs=1e-4)

@pytest.mark.parametrize('act,std', [(torch.sigmoid,1.), (torch.tanh,1.1), (lambda v: 0*v,1.), (lambda v: v*math.nan,1.), (lambda v: v.clamp(-0.2,0.2),0.3), (torch.sign,2.)])
def test_no_scale(act, std): assert solve_scale(act, z, std=std)==(1.,0.,False)

def test_a_sine_that_turns_many_times():
    "SIREN's: the std oscillates with the scale; bracketed, then refined, nearest to a factor of 1"
    for w,std in ((30,0.6), (5,0.5), (30,0.2)):
        s,_,ok = solve_scale(lambda v: torch.sin(w*v), z, std=std)
        assert ok and torch.sin(w*z*s).std().item()==pytest.approx(std, abs=1e-3)

def test_without_steps_it_brackets():
    "From a factor of 2^-10 to 2^10, the one nearest 1"
    for factor in (900., 1/900, 1.5, 1/1.5):
        s,_,ok = solve_scale(lambda v, f=factor: F.relu(v/f), z, max_iter=-1)
        assert ok and F.relu(z*s/factor).std().item()==pytest.approx(1, abs=1e-3)
    assert solve_scale(lambda v: F.relu(v/1e4), z, max_iter=-1)==(1.,0.,False)

@pytest.mark.parametrize('mean', [0.5, -0.8])
@pytest.mark.parametrize('act', [torch.tanh, F.softsign, lambda v: v.clamp(-2,2), torch.asinh])
def test_centered_by_the_bias(act, mean):
    "The summand comes before the scale; the mean of the output is 0 to a few hundredths"
    s,shift,ok = solve_scale(act, z+mean, std=0.5, center='bias')
    out = act((z+mean+shift)*s)
    assert ok and out.std().item()==pytest.approx(0.5, abs=1e-3) and abs(out.mean())<0.02 and shift*mean<0
    assert solve_scale(act, z+mean, std=0.5)[1]==0

def test_centered_by_sub():
    act = GeneralReLU(0.1)
    s,shift,ok = solve_scale(act, z, center='sub')
    out = act(z*s)
    assert ok and shift==0 and out.std().item()==pytest.approx(1, abs=1e-3) and abs(out.mean())<1e-3 and act.sub>0
    act = GeneralReLU(0.1, 0.3)
    solve_scale(act, z)
    assert act.sub==pytest.approx(0.3)
    capped = GeneralReLU(0., 0.3, maxv=0.5)
    assert solve_scale(capped, z, std=3., center='sub')==(1.,0.,False) and capped.sub==pytest.approx(0.3) # as it was

def test_hooks_take_no_trial_for_the_real_thing():
    calls,act = [],nn.GELU()
    act.register_forward_hook(lambda *a: calls.append(1))
    assert solve_scale(act, z)[2] and not calls

def test_a_measure_of_ones_own():
    "As several processes have it"
    seen = []
    def _measure(act, v, s, shift): seen.append((s,shift)); return act((v+shift)*s).std().item(),0.
    assert solve_scale(F.relu, z, measure=_measure)[2] and seen[0]==(1.,0.) and len(seen)>1

# What a function is

@pytest.mark.parametrize('f,kind', [
    (torch.sin,'activation'), (F.relu,'activation'), (lambda v: v*v,'activation'), (lambda v: 2*v,'affine'), (lambda v: v+1,'affine'), (lambda v: v.clone(),'affine'),
    (lambda v: v.softmax(-1),None), (lambda v: v-v.mean(),None), (lambda v: v.flip(0),None), (lambda v: v.cumsum(0),None), (lambda v: v/v.std(),None), (lambda v: v.roll(1,1),None)])
def test_kind_of_a_function(f, kind):
    for sample in (z, z.view(4,16,10,10)): assert function_kind(f, sample, f(sample.clone()))==kind

# Which activation comes next

def found(use, acts=(), o=None):
    "The activations found when `use` is applied to the output of a layer, as what they make of it"
    o = z[:8].clone() if o is None else o
    seen = []
    with NextActivation(lambda n,out,act: seen.append((n, out is o, act)), acts) as nxt:
        nxt.expect('layer', o)
        res = use(o)
    assert all(n=='layer' and mine for n,mine,_ in seen)
    return [act(z[:8].clone()) for *_,act in seen],res

relu,own = nn.ReLU(),GeneralReLU(0.1, 0.4)
@pytest.mark.parametrize('use,want', [
    (F.relu, F.relu), (torch.relu, F.relu), (lambda o: o.relu(), F.relu), (torch.sin, torch.sin),
    (lambda o: o.clamp(-1,1), lambda v: v.clamp(-1,1)), (lambda o: F.leaky_relu(o, 0.3), lambda v: F.leaky_relu(v, 0.3)), (lambda o: F.prelu(o, t([0.2])), lambda v: F.prelu(v, t([0.2]))),
    (lambda o: (o*2).tanh(), lambda v: (v*2).tanh()), (lambda o: (o/3-1).relu(), lambda v: (v/3-1).relu()), (lambda o: (2-o).relu(), lambda v: (2-v).relu()), (lambda o: o.view(-1).relu(), lambda v: v.view(-1).relu()),
    (lambda o: o.t().relu(), lambda v: v.t().relu()), (lambda o: o[:].relu(), F.relu), (lambda o: o.unsqueeze(0).sigmoid(), torch.sigmoid)])
def test_activations_that_are_found(use, want):
    "Functions, methods, after factors and shifts by numbers, through views of all of it"
    seen,_ = found(use)
    assert len(seen)==1 and torch.allclose(seen[0].flatten().sort().values, want(z[:8].clone()).flatten().sort().values, atol=1e-6)

@pytest.mark.parametrize('use', [
    lambda o: o.long(), lambda o: o>0, lambda o: o.mean(1), lambda o: o.mean(1, keepdim=True).relu(), lambda o: o[:4].relu(), lambda o: o.softmax(-1), lambda o: o+torch.ones(8,1), lambda o: (o+torch.ones(100)).relu(),
    lambda o: o.flip(0).relu(), lambda o: (o@torch.ones(100,3)).relu(), lambda o: o.shape, lambda o: torch.relu(z), lambda o: torch.cat([o,o]).relu(), lambda o: o.add_(1).relu(), lambda o: o.mul_(2), lambda o: None])
def test_what_is_no_activation(use): assert found(use)[0]==[]

def test_only_the_first_use_counts():
    assert len(found(lambda o: (o.relu(), o.tanh()))[0])==1 and found(lambda o: (o.sum(), o.tanh()))[0]==[]
    seen,(a,b) = found(lambda o: (o.size(), o.tanh()))
    assert len(seen)==1 # a look at its shape is no use

def test_the_result_is_the_functions_own():
    for use in (F.relu, torch.sin, lambda o: (o*2).tanh(), lambda o: o.view(-1), lambda o: o+1, lambda o: o.clamp(min=0)):
        assert torch.equal(found(use)[1], use(z[:8].clone()))

def test_modules():
    "Those that are activations, by their hooks, with a view of all of the output; others as what they do"
    assert torch.equal(found(relu, [relu])[0][0], F.relu(z[:8])) and torch.allclose(found(own, [own])[0][0], own(z[:8]))
    assert len(found(lambda o: own(o.view(-1)), [own])[0])==1 and found(lambda o: own(o[:4]), [own])[0]==[] and not own._forward_pre_hooks
    assert found(lambda o: relu(o+torch.randn(8,100)), [relu])[0]==[]

def test_what_was_changed_goes_through_the_steps():
    "The output is scaled when its activation is found; what was made of it in between follows"
    o = z[:8].clone()
    def _halve(n, out, act): out.data.mul_(0.5)
    with NextActivation(_halve) as nxt:
        nxt.expect('layer', o)
        res = ((o*2)+1).relu()
    assert torch.allclose(res, (z[:8]+1).relu(), atol=1e-6)

# The layer

def net(act, bias=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(100,80,bias=bias), act, nn.Linear(80,50,bias=bias), deepcopy(act))

def after(m, x):
    x = m[:2](x)
    return [x, m[2:](x)]

@pytest.mark.parametrize('act', [nn.ReLU(), nn.GELU(), nn.Tanh(), nn.PReLU(), nn.Hardswish(), GeneralReLU(0.1)])
@pytest.mark.parametrize('bias', [True, False])
def test_after_the_activation(act, bias):
    "Std at the target; the mean at 0 where the activation is odd and there is a bias, or by the constant of a GeneralReLU"
    m,std = net(act, bias),0.5
    r = lsuv_(m, z+0.3, at='activation', std=std)
    with torch.no_grad():
        for n,o in zip('13', after(m, z+0.3)):
            assert o.std().item()==pytest.approx(std, abs=1e-3) and r[n]['std']==pytest.approx(o.std().item(), rel=1e-5) and r[n]['mean']==pytest.approx(o.mean().item(), abs=1e-5)
            if isinstance(act, nn.Tanh) and bias or isinstance(act, GeneralReLU): assert abs(o.mean())<0.02
    done = r.df[r.df.type=='Linear']
    assert done.converged.all() and r.at=='activation' and (done['shift']!=0).all()==bias

def test_a_constant_that_two_layers_share_is_set_once():
    act = GeneralReLU(0.1)
    m = nn.Sequential(nn.Linear(100,80), act, nn.Linear(80,50), act)
    lsuv_(m, z, at='activation')
    first = act.sub.item()
    with torch.no_grad(): assert abs(m[:2](z).mean())<1e-2 and first!=0 and m(z).std().item()==pytest.approx(1, abs=1e-3)

def test_not_centered():
    act = GeneralReLU(0.1, 0.4)
    m = net(act)
    lsuv_(m, z, at='activation', center=False)
    assert act.sub==pytest.approx(0.4) and m[0].bias.any()==False # noqa: E712 Kaiming's

def test_stats_after_the_activation():
    "The std of what the activation makes, by the name of the layer; the first call counts"
    m = nn.Sequential(nn.Linear(100,80), nn.ReLU(), nn.Linear(80,50))
    with torch.no_grad(), AfterActivation(m, {'0':m[0], '2':m[2]}, [m[1]]) as s: m(z); m(5*z)
    with torch.no_grad(): want = m[:2](z).std().item()
    assert {r.layer:r.std_after for r in s.table()}=={'0':pytest.approx(want, rel=1e-5), '1':None, '2':None} and not any(o._forward_hooks or o._forward_pre_hooks for o in m)

def test_hooks_are_gone_after_an_error():
    m = nn.Sequential(nn.Linear(100,80), nn.ReLU())
    for c in (ActivationCorrection({'0':m[0]}, Moments(), acts=[m[1]]), AfterActivation(m, {'0':m[0]}, [m[1]])):
        with pytest.raises(KeyError), c: raise KeyError
        assert not any(o._forward_hooks or o._forward_pre_hooks for o in m) and not torch.overrides._get_current_function_mode_stack()

def test_beside_a_large_mean():
    "What is measured again is what the activation then gets; right at once, in two passes"
    m,calls = nn.Sequential(nn.Linear(100,80), nn.GELU(), nn.Linear(80,50)),[]
    m.register_forward_pre_hook(lambda *_: calls.append(1))
    m[0].bias.data += 3e4
    r = lsuv_(m, z, at='activation', pre=None)
    assert len(calls)==2
    with torch.no_grad(): assert m[:2](z).std().item()==pytest.approx(1, abs=2e-3) and r['1']['std']==pytest.approx(1, abs=2e-3)

def test_a_further_pass_runs_the_layer_whose_activation_it_is():
    "Though another one, without a spread this time, was called between a layer and its activation"
    a,b,x = nn.Linear(30,20),nn.Linear(30,20,bias=False),torch.randn(64,30)
    c = ActivationCorrection({'a':a,'b':b}, Moments())
    with torch.no_grad(), c: F.relu(a(x)); F.relu(b(x))
    saved = Saved([a.weight, a.bias, b.weight])
    with torch.no_grad(), c.again(['a'], saved):
        o = a(x)
        b(torch.zeros(64,30))
        y = F.relu(o)
    assert y.std().item()==pytest.approx(1., rel=1e-3) and torch.equal(y, F.relu(a(x)))

class Affine16(nn.Module):
    "Numbers before the activation; in 16 bits, rounding makes them look like one"
    def __init__(self):
        super().__init__()
        self.l,self.o = nn.Linear(100,64),nn.Linear(64,3)
    def forward(self, x):
        self.h = torch.relu(self.l(x)*0.37 + 0.21)
        return self.o(self.h)
@pytest.mark.parametrize('dtype', [torch.float, torch.bfloat16, torch.half])
@pytest.mark.parametrize('autocast', [False, True])
def test_in_16_bits(dtype, autocast):
    torch.manual_seed(0)
    m = Affine16() if autocast else Affine16().to(dtype)
    x = z if autocast else z.to(dtype)
    if autocast: m.forward = torch.autocast('cpu', torch.bfloat16)(m.forward)
    r = lsuv_(m, x, at='activation')
    with torch.no_grad(): m(x)
    assert r['l'].std_after==pytest.approx(m.h.float().std().item(), rel=1e-2)==pytest.approx(1, rel=1e-2)

class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm,self.a,self.b = nn.LayerNorm(100),nn.Linear(100,64),nn.Linear(64,100)
    def forward(self, x): return self.b(torch.relu(self.a(self.norm(x)))) + x
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.half])
def test_a_sum_in_16_bits_is_no_activation(dtype):
    m = nn.Sequential(Branch(), Branch(), nn.Linear(100,3)).to(dtype)
    r = lsuv_(m, z.to(dtype), at='activation')
    assert all(r[f'{k}.b']['std']==pytest.approx(1, rel=2e-2) and math.isnan(r[f'{k}.b'].std_after) for k in (0,1))
    assert all(r[f'{k}.a'].std_after==pytest.approx(1, rel=1e-2) for k in (0,1))

class PositionsInAView(nn.Module):
    def __init__(self):
        super().__init__()
        self.q,self.pos = nn.Linear(20,20),nn.Parameter(torch.randn(4,5,5))
    def forward(self, x): return F.prelu(self.q(x).view(*x.shape[:2],4,5).transpose(1,2), torch.rand(4)) + self.pos
def test_what_is_done_with_a_view_of_another_shape():
    "With numbers for each channel of that shape: not of the output itself"
    x = torch.randn(8,5,20)
    assert lsuv_(PositionsInAView(), x, at='activation').df['std'].tolist()==pytest.approx([1], abs=1e-3)

@pytest.mark.parametrize('first', ['empty','constant'])
def test_a_first_call_that_says_nothing(first):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.f,self.l = nn.Sequential(nn.Linear(100,8), nn.ReLU()),nn.Linear(8,3)
        def forward(self, x):
            self.f(x[:0] if first=='empty' else torch.zeros_like(x))
            self.h = self.f(x)
            return self.l(self.h)
    m = Twice()
    r = lsuv_(m, z, at='activation')
    with torch.no_grad(): m(z)
    assert r['f.0'].std_after==pytest.approx(m.h.std().item(), rel=1e-4)==pytest.approx(1, abs=1e-3) and r.df.converged.dropna().all()

class RealPart(nn.Module):
    def __init__(self):
        super().__init__()
        self.l,self.o = nn.Linear(100,8,dtype=torch.complex64),nn.Linear(8,3)
    def forward(self, x): return self.o(torch.relu(self.l(x.to(torch.complex64)).real))
class Nested(nn.Module):
    def __init__(self, layout):
        super().__init__()
        self.l,self.n,self.layout = nn.Linear(100,6),nn.LayerNorm(6),layout
    def forward(self, x): return self.n(self.l(torch.nested.nested_tensor([x[:3],x[3:9],x[9:]], layout=self.layout))).to_padded_tensor(0.)
@pytest.mark.parametrize('model', [RealPart(), Nested(torch.strided), Nested(torch.jagged)], ids=['real','strided','jagged'])
def test_no_activation_of_the_output_itself(model): assert lsuv_(model, z, at='activation')['l'].converged

def test_a_nested_batch_in_an_error():
    "Its shape cannot be asked for"
    x = torch.nested.nested_tensor([torch.randn(3,6), torch.randn(4,6)], layout=torch.strided)
    with pytest.raises(InitError, match='failed on a batch of shape Tensor: '): lsuv_(nn.Linear(7,2), x)
