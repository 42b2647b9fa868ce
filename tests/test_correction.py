"What is done to a layer's output, its weight and bias, and what is undone; each piece alone"
import math
import pytest, torch
import torch.nn.functional as F
from torch import nn
from fastinit.all import *
from fastinit.correction import Affine, ChannelCorrection, Correction, Step, to_target
from fastinit.state import Saved
from fastinit.stats import Moments

x = torch.randn(64, 30, generator=torch.Generator().manual_seed(0))
t = torch.tensor

@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('scale,shift', [(2.,None), (2.,3.), (t(2.),None), (t(2.),t(3.)), (t(2.),3.), (2.,t([1.,2.,3.]))])
def test_affine(scale, shift):
    "Of an output in place, of a layer by its weight and bias, twice by `then`"
    a,m,o = Affine(scale, shift),nn.Linear(4,3),torch.randn(5,4)
    before = m(o).detach()
    want = before*2 + (0. if shift is None else shift)
    assert a(got := before.clone()) is got and torch.allclose(got, want)
    w = m.weight.clone()
    a.on_(m)
    assert torch.allclose(m.weight, 2*w) and torch.allclose(m(o), want, atol=1e-6)
    both = a.then(Affine(0.5, None if shift is None else 7.))
    assert torch.allclose(both(before.clone()), want*0.5 + (0. if shift is None else 7.), atol=1e-6) and (both.shift is None)==(shift is None)
    assert torch.allclose(Affine(3.).then(Affine(2., 1.))(before.clone()), 6*before+1, atol=1e-5)
    assert torch.allclose(Affine(3., 1.).then(Affine(2.))(before.clone()), 6*before+2, atol=1e-5)

def test_affine_of_a_layer_without_a_bias():
    m = nn.Linear(4, 3, bias=False)
    w = m.weight.clone()
    Affine(2., 5.).on_(m)
    assert m.weight.equal(2*w)

def test_dtype_stays():
    o = torch.ones(3).bfloat16()
    assert Affine(1.5, 0.25)(o).dtype==torch.bfloat16 and o.tolist()==[1.75]*3

@pytest.mark.parametrize('sd,mean,center,scale,shift', [
    (2.,6.,True,0.25,-1.5), (2.,6.,False,0.25,None), (0.,3.,True,1.,0.), (0.,3.,False,1.,None), (0.,0.,True,1.,0.), (1e-7,1.,True,1.,0.), (1e-5,1.,True,5e4,-5e4), (1e-7,-1.,True,1.,0.)])
def test_to_target(sd, mean, center, scale, shift):
    "As numbers and as tensors; the identity for what has no spread beside its mean"
    for a in (to_target(sd, mean, 0.5, center), to_target(t(sd), t(mean), 0.5, center)):
        assert float(a.scale)==pytest.approx(scale) and (a.shift is None if shift is None else float(a.shift)==pytest.approx(shift))

def test_to_target_by_channel():
    a = to_target(t(2.), t([4.,-8.]), 1., True)
    assert a.scale==0.5 and a.shift.tolist()==[-2.,4.]
    assert to_target(1e-6, t([0.1,-2.]), 1., True).shift==0 # beside the largest mean

def corrected(m, x, cls=Correction, **kwargs):
    c = cls({n:o for n,o in m.named_modules() if isinstance(o, (nn.Linear,nn.Conv2d))}, Moments(), **kwargs)
    with torch.no_grad(), c: out = m(x)
    return c,out

def net(**kwargs): return nn.Sequential(nn.Linear(30,20,**kwargs), nn.ReLU(), nn.Linear(20,10,**kwargs))

def test_what_is_kept_of_a_pass():
    "Mean and std before, the change, and what is given then; the hooks are gone"
    m = net()
    with torch.no_grad(): std,mean = torch.std_mean(m[0](x))
    c,out = corrected(m, x, std=2., targets={'2':0.5})
    step = c.done['0']
    assert isinstance(step, Step) and step.std_before==pytest.approx(std.item(), rel=1e-5) and step.mean_before==pytest.approx(mean.item(), abs=1e-6) and step.converged is None
    assert step.change.scale==pytest.approx(2/std.item(), rel=1e-5) and step.change.shift==pytest.approx(-mean.item()*2/std.item(), abs=1e-5)
    assert c.given['0']==(pytest.approx(2.), pytest.approx(0., abs=1e-6)) and c.given['2'][0]==pytest.approx(0.5)
    assert c.target('0')==2 and c.target('2')==0.5 and out.std().item()==pytest.approx(0.5, rel=1e-5) and abs(out.mean())<1e-6
    assert not c.left and not c.constant and not any(o._forward_hooks for o in m.modules()) and torch.allclose(m(x), out, atol=1e-5)

@pytest.mark.parametrize('kwargs,center,centered', [({},True,True), ({},False,False), (dict(bias=False),True,False)])
def test_centered(kwargs, center, centered):
    c,out = corrected(net(**kwargs), x+1, center=center)
    assert c.centers('2')==c.zero_mean('2')==centered and (abs(out.mean()).item()<1e-6)==centered and (c.done['2'].change.shift is None)==(not centered)

def test_error():
    "Relative to the target: of the std on a log scale, of the mean where it counts"
    c = Correction({'0':nn.Linear(2,2), '1':nn.Linear(2,2,bias=False)}, Moments(), std=2., targets={'1':0.})
    assert c.error('0', 2., 0.)==0 and c.error('0', 4., 0.)==pytest.approx(math.log(2)) and c.error('0', 1., 0.)==pytest.approx(math.log(2))
    assert c.error('0', 2., -1.)==0.5 and c.error('0', 0., 0.)==math.inf and c.error('1', 0.3, 5.)==0.3
    c.off_center.add('0')
    assert c.error('0', 2., -1.)==0 and not c.centers('0')

def test_constant_in_every_call():
    "Nothing is done; it is noted, with a change that changes nothing"
    m = nn.Sequential(nn.Linear(30,20), nn.Linear(20,10,bias=False))
    nn.init.zeros_(m[1].weight)
    nn.init.constant_(m[0].weight, 0.)
    nn.init.constant_(m[0].bias, 3.)
    was = {k:v.clone() for k,v in m.state_dict().items()}
    c,out = corrected(m, x)
    assert c.constant=={'0','1'} and all(torch.equal(v, was[k]) for k,v in m.state_dict().items())
    assert (c.done['0'].change.scale, c.done['0'].change.shift, c.done['1'].change.shift)==(1.,0.,None) and c.done['0'].mean_before==3

def test_a_constant_call_and_an_empty_one_are_waited_for():
    class Cell(nn.Module):
        def __init__(self): super().__init__(); self.lin = nn.Linear(30,30)
        def forward(self, x): return self.lin(x[:0]),self.lin(torch.zeros_like(x)),self.lin(torch.zeros_like(x)),self.lin(x),self.lin(3*x)
    m = Cell()
    nn.init.zeros_(m.lin.bias)
    c,outs = corrected(m, x)
    assert outs[3].std().item()==pytest.approx(1., rel=1e-5) and outs[4].std().item()==pytest.approx(3., rel=0.05) and not c.constant and c.speaks=={'lin':2}
    assert not outs[1].any() # as it was before the change

def test_shared_weights_have_one_owner():
    "The first layer called; a part of its memory counts"
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b,self.c = nn.Linear(30,30),nn.Linear(30,15),nn.Linear(30,30)
            self.b.weight = nn.Parameter(self.a.weight.data[:15])
        def forward(self, x): return self.b(self.a(x)),self.c(x)
    c,(b,own) = corrected(Tied(), x)
    assert c.left=={'b':'tied'} and set(c.done)=={'a','c'} and own.std().item()==pytest.approx(1., rel=1e-5)

def test_outputs_that_cannot_be_corrected():
    class Whole(nn.Linear):
        def forward(self, x): return super().forward(x).long()
    class Many(nn.Linear):
        def forward(self, x): return super().forward(x),3
    for cls in (Whole,Many):
        m = cls(30,20)
        was = m.weight.clone()
        c,_ = corrected(nn.Sequential(m), x)
        assert c.left=={'0':'unsupported output'} and not c.done and m.weight.equal(was)

def test_beside_a_large_mean():
    "The spread was mostly rounding: measured and corrected once more"
    m = nn.Sequential(nn.Linear(30,20)).double()
    m[0].bias.data += 1e5
    m = m.float()
    was = m[0].weight.detach().clone()
    c,out = corrected(m, x)
    assert out.double().std().item()==pytest.approx(1., rel=1e-5) and abs(out.mean())<1e-5
    assert torch.allclose(m[0].weight, was*c.done['0'].change.scale, rtol=1e-5) # both corrections together
    assert torch.allclose(m(x), out, atol=1e-5)

# A further pass

class BiasCounts(nn.Linear):
    "Its bias counts `times` times"
    def __init__(self, ni, no, times): super().__init__(ni, no); self.times = times
    def forward(self, x): return F.linear(x, self.weight, self.times*self.bias)

@pytest.mark.parametrize('times', [3., -1.])
def test_a_bias_that_counts_otherwise(times):
    "It can be scaled; its mean is left, and its bias is as it was, but for the scale"
    torch.manual_seed(0)
    m = nn.Sequential(BiasCounts(30,20,times), nn.ReLU(), nn.Linear(20,10))
    m[0].bias.data += 0.5
    bias,weight = m[0].bias.detach().clone(),m[0].weight.detach().clone()
    report = lsuv_(m, x, pre=None)
    scale = (m[0].weight/weight).mean()
    assert torch.allclose(m[0].weight, scale*weight, rtol=1e-5) and torch.allclose(m[0].bias, scale*bias, atol=1e-5)
    with torch.no_grad(): out = m[0](x)
    assert out.std().item()==pytest.approx(1., rel=1e-3) and abs(out.mean())>0.1 and report['0']['std']==pytest.approx(out.std().item(), rel=1e-5)
    assert report['0']['shift']==0 and report['0']['scale']==pytest.approx(scale.item(), rel=1e-4) and report['2']['mean']==pytest.approx(0, abs=1e-6)

class Standardized(nn.Linear):
    def forward(self, x): return F.linear(x, self.weight/self.weight.std(), self.bias)

def test_a_layer_that_does_not_depend_on_its_weight():
    "It alone gets its weights back, those of before the scheme that comes first; the others keep what the scheme drew"
    def model(): torch.manual_seed(0); return nn.Sequential(nn.Linear(30,20), nn.ReLU(), Standardized(20,20), nn.ReLU(), nn.Linear(20,10))
    m,drawn,was = model(),model(),model().state_dict()
    torch.manual_seed(1); init_(drawn, 'kaiming', x)
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match='not affine'): report = lsuv_(m, x)
    assert report.left=={'2':'not affine'} and torch.equal(m[2].weight, was['2.weight']) and torch.equal(m[2].bias, was['2.bias'])
    for i in (0,4): assert F.cosine_similarity(m[i].weight.flatten(), drawn[i].weight.flatten(), dim=0).item()==pytest.approx(1., abs=1e-6)
    for i in ('0','4'): assert report[i]['std']==pytest.approx(1., rel=1e-3)

def test_what_is_off_is_corrected_again():
    "A layer that a hook changes after its first call: attempts are counted together, and what is right stays"
    m = net()
    saved = Saved(m.parameters())
    c,_ = corrected(m, x)
    m[0].weight.data.mul_(3)
    with torch.no_grad(), c.again(['0'], saved): out = m[0](x)
    assert out.std().item()==pytest.approx(1., rel=1e-4) and m[0](x).std().item()==pytest.approx(1., rel=1e-4) and not c.stuck
    first = c.done['0']
    assert first.change.scale==pytest.approx(1/first.std_before/3, rel=0.05) # of both attempts
    last = [p.clone() for p in m[0].parameters()]
    with torch.no_grad(), c.again(['0'], saved): m[0](x)
    assert not c.stuck and all(map(torch.equal, last, m[0].parameters())) # nothing was to be gained

def test_what_a_further_pass_moves_is_corrected_in_it():
    "A layer right in the last pass, off in this one as a layer before it was corrected; what is right stays to the bit"
    m = nn.Sequential(nn.Linear(30,20), nn.Linear(20,20), nn.Linear(20,20))
    saved = Saved(m.parameters())
    c,_ = corrected(m, x)
    with torch.no_grad():
        m[1](m[0](x)) # right
        m[0].weight.mul_(3); m[0].bias.mul_(3); m[1].weight.div_(3)
    seen = []
    def is_off(n, sd, mean): seen.append(n); return abs(sd-1)>5e-4
    with torch.no_grad(), c.again(['0'], saved, is_off): out = m(x)
    assert seen==['0','1','2'] and m[1](m[0](x)).std().item()==pytest.approx(1., rel=1e-4) and out.std().item()==pytest.approx(1., rel=1e-3)
    assert torch.equal(m(x), out) # it was passed on as the layers give it
    last = [p.clone() for p in m.parameters()]
    with torch.no_grad(), c.again([], saved, is_off): m(x)
    for p,was in zip(m.parameters(), last): assert p.equal(was)

class InSteps(nn.Linear):
    "The size of its weight counts in steps of 0.05"
    def forward(self, x):
        size = self.weight.norm()
        return F.linear(x, self.weight*((size/0.05).round()*0.05/size))

def test_what_would_be_further_off_stays():
    "1.024 would be right and counts as 1; what is off by 1/1.024 counts as 1.05 after a further correction"
    m = nn.Sequential(InSteps(30,20,bias=False))
    nn.init.orthogonal_(m[0].weight)
    with torch.no_grad():
        xs = x/(F.linear(x, m[0].weight).std()/m[0].weight.norm()*1.024)
        m[0].weight.mul_(1.024/m[0].weight.norm())
    saved,was = Saved(m.parameters()),m[0].weight.detach().clone()
    c = Correction({'0':m[0]}, Moments())
    c.done['0'] = Step(0., 1/1.024, Affine())
    with torch.no_grad(), c.again(['0'], saved): out = m(xs)
    assert c.stuck=={'0'} and m[0].weight.equal(was) and out.std().item()==pytest.approx(1/1.024, rel=1e-4) and float(c.done['0'].change.scale)==1

def test_what_is_to_be_looked_at_in_a_further_pass():
    "What is named, and what was done; not what was given up, nor what is constant unless it is named, of which nothing is known then"
    c = Correction({n:nn.Linear(2,2) for n in 'abcd'}, Moments())
    c.done = {n:Step(1., 0. if n=='c' else 1., Affine()) for n in 'abcd'}
    c.stuck,c.constant = {'b'},{'c'}
    assert c.again(['a'], None).todo=={'a','d'} and c.constant=={'c'} and not c.flat
    assert c.again(['c'], None).todo=={'a','c','d'} and not c.constant and c.flat=={'c'} and list(c.done)==['a','b','d']

def test_responds():
    c = Correction({'0':nn.Linear(30,20), '1':Standardized(30,20)}, Moments())
    for n,yes in (('0',True), ('1',False)):
        m = c.layers[n]
        was = m.weight.clone()
        with torch.no_grad(): assert c.responds(n, lambda: m(x)) is yes
        assert m.weight.equal(was)

# By channel

@pytest.mark.parametrize('layer,x,dims', [
    (nn.Conv2d(3,8,3), torch.randn(6,3,9,9)+1, (0,2,3)), (nn.Conv2d(3,8,3), torch.randn(3,9,9)+1, (1,2)), (nn.Conv1d(3,8,3), torch.randn(6,3,9)+1, (0,2)),
    (nn.Linear(5,8), torch.randn(40,5)+1, (0,)), (nn.Linear(5,8), torch.randn(4,7,5)+1, (0,1)), (nn.ConvTranspose2d(3,8,3), torch.randn(6,3,9,9)+1, (0,2,3))])
def test_by_channel(layer, x, dims):
    "The mean of each at 0, the std of all at the target"
    c = ChannelCorrection({'0':layer}, Moments(), std=2.)
    with torch.no_grad(), c: out = layer(x)
    assert out.mean(dims).abs().max()<1e-5 and out.std().item()==pytest.approx(2., rel=1e-3) and torch.allclose(layer(x), out, atol=1e-5)
    assert c.done['0'].mean_before.numel()==8 and c.given['0'][0]==pytest.approx(2., rel=1e-5) and torch.as_tensor(c.given['0'][1]).ndim==0

def test_by_channel_without_a_bias():
    "As by layer"
    m = nn.Conv2d(3,8,3,bias=False)
    c = ChannelCorrection({'0':m}, Moments())
    with torch.no_grad(), c: out = m(torch.randn(6,3,9,9)+1)
    assert out.std().item()==pytest.approx(1., rel=1e-5) and isinstance(c.done['0'].mean_before, float)

class Scaled(nn.Module):
    "Of a type that nobody knows"
    def __init__(self, n, dim): super().__init__(); self.weight,self.bias,self.dim = nn.Parameter(torch.ones(1)),nn.Parameter(torch.zeros(n)),dim
    def forward(self, x): return x*self.weight + self.bias.view(*[-1 if d==self.dim else 1 for d in range(x.ndim)])

@pytest.mark.parametrize('layer,x,n', [(Scaled(5,1), torch.randn(16,5,7)+1, 5), (Scaled(7,2), torch.randn(16,5,7)+1, 7), (Scaled(5,1), torch.randn(16,5,5)+1, 1), (nn.LayerNorm(7), torch.randn(16,7,7), 7)])
def test_where_the_channels_are(layer, x, n):
    "Where one dimension alone has as many as the bias; if two have, as by layer, but for a normalization over the last"
    c = ChannelCorrection({'0':layer}, Moments())
    with torch.no_grad(), c: layer(x)
    assert torch.as_tensor(c.done['0'].mean_before).numel()==n

def test_means_of_channels_in_16_bits():
    layer = nn.Conv2d(3,8,3).bfloat16()
    c = ChannelCorrection({'0':layer}, Moments())
    with torch.no_grad(), c: layer(torch.randn(6,3,9,9).bfloat16()+1)
    assert c.done['0'].mean_before.dtype==torch.float

def test_by_channel_of_a_group_norm():
    m = nn.GroupNorm(2, 6)
    nn.init.uniform_(m.weight, 0.5, 2)
    m.bias.data = torch.arange(6.)
    c = ChannelCorrection({'0':m}, Moments())
    with torch.no_grad(), c: out = m(torch.randn(8,6,6,6))
    assert out.mean((0,2,3)).abs().max()<1e-5 and out.std().item()==pytest.approx(1, rel=1e-3)

def test_a_shift_on_another_default_device():
    m = nn.Linear(3,4)
    was = m.bias.detach().clone()
    with torch.device('meta'): Affine(2., 1.).on_(m)
    assert torch.equal(m.bias, was*2+1)
