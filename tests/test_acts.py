"Gains, and what is an activation: the edges of each rule"
import math
from functools import partial
import pytest, torch
from torch import nn
from torch.nn import functional as F
from fastinit.acts import GeneralReLU, act_funcs, act_gain, auto_gains, is_activation
from fastinit.tensors import flat, read_all, sample_values, spread_sample

@pytest.mark.parametrize('name', ['rellu', 'conv2d', 'softmax', 'dropout', 'sin'])
def test_a_name_that_is_no_activation(name):
    "Also that of another function of torch"
    with pytest.raises(ValueError, match=f"unknown nonlinearity '{name}'; known: .*gelu.*identity.*linear.*tanh.*pass the module or function"): act_gain(name)

@pytest.mark.parametrize('act', [torch.zeros_like, lambda z: z/0, lambda z: z*math.nan, lambda z: torch.where(z>3, math.inf, z)])
def test_no_gain(act):
    with pytest.raises(ValueError, match='has no gain'): act_gain(act)

@pytest.mark.parametrize('name,act', [('swish',nn.SiLU()), ('tanh',nn.Tanh()), ('none',nn.Identity()), ('identity',nn.Identity()), ('linear',nn.Identity()),
                                      ('relu',nn.ReLU()), ('sigmoid',torch.sigmoid)])
def test_gain_by_name(name, act): assert act_gain(name)==pytest.approx(act_gain(act), rel=1e-9)

def test_slopes():
    "√(2/(1+slope²)): that of a PReLU with a slope per channel from the mean of their squares; 0.01 unless said"
    per_channel = nn.PReLU(2)
    per_channel.weight.data = torch.tensor([0.1, 0.7])
    cases = [(nn.LeakyReLU(0.3),0.3), (partial(F.leaky_relu, negative_slope=0.4),0.4), (partial(F.leaky_relu),0.01), (per_channel,0.5), (F.relu,0.), (nn.Identity(),1.)]
    for act,slope in cases: assert act_gain(act)==pytest.approx(math.sqrt(2/(1+slope**2)), rel=1e-6), act
    assert act_gain('relu', a=0.5)==act_gain('leaky_relu', a=0.5)==math.sqrt(2/1.25) and act_gain('leaky_relu')==math.sqrt(2)

def test_gain_of_a_kink_and_of_a_step():
    "E[act²] in closed form: that of z > 1, and of |z|"
    tail = 0.5*math.erfc(1/math.sqrt(2))
    assert act_gain(lambda z: (z>1).double())==pytest.approx(tail**-0.5, rel=1e-9)
    assert act_gain(torch.abs)==pytest.approx(1., rel=1e-9)
    assert act_gain(lambda z: z.pow(5))==pytest.approx(945**-0.5, rel=1e-9) # far out, too: E z¹⁰ = 9·7·5·3

def test_what_is_printed_of_a_general_relu():
    assert repr(GeneralReLU(leak=0.1, sub=0.4))=='GeneralReLU(leak=0.1, sub=0.4, maxv=None)'
    assert repr(GeneralReLU(0.2, 1/3, 6.))=='GeneralReLU(leak=0.2, sub=0.3333, maxv=6.0)'

def test_general_relu():
    x = torch.tensor([-2., -1., 0., 1., 8.])
    assert GeneralReLU()(x).tolist()==[0,0,0,1,8] and GeneralReLU(0.5)(x).tolist()==[-1,-0.5,0,1,8]
    assert GeneralReLU(sub=1., maxv=2.)(x).tolist()==[-1,-1,-1,0,2] and GeneralReLU().maxv is None and GeneralReLU().leak==0
    assert GeneralReLU(sub=0.5)(x.bfloat16()).dtype==torch.bfloat16 and GeneralReLU(sub=0.5).state_dict()['sub']==0.5

class _Own(nn.Module):
    "An elementwise function of one's own, or something like one"
    def __init__(self, f, **buffers):
        super().__init__()
        self.f = f
        for k,v in buffers.items(): self.register_buffer(k, v)
    def forward(self, x): return self.f(self, x)

def _channels(k): return torch.arange(1., 5.)[:k].view(1,-1,1,1)

@pytest.mark.parametrize('f,yes', [
    (lambda m,x: x.sin(), True), (lambda m,x: x.clamp(-1,1), True), (lambda m,x: x+1, True), (lambda m,x: x*x.sigmoid(), True),
    (lambda m,x: 3*x, False), (lambda m,x: -x, False), (lambda m,x: x, False), # in proportion
    (lambda m,x: x.softmax(1), False), (lambda m,x: x-x.mean(), False), (lambda m,x: x.flip(3).relu(), False), # not of each element alone
    (lambda m,x: (x*_channels(x.shape[1])).relu(), False), (lambda m,x: x.relu()*x.shape[1], False), # not the same in every channel, or number of them
    (lambda m,x: x.relu().flatten(1), False), (lambda m,x: (x.relu(),), False), (lambda m,x: x@torch.zeros(7,7), False)], ids=map(str, range(15)))
def test_elementwise_by_trial(f, yes): assert is_activation(_Own(f)) is yes

def test_trial_of_what_keeps_a_tensor():
    assert is_activation(_Own(lambda m,x: (x*m.beta).tanh(), beta=torch.tensor(2.)))
    with_child = _Own(lambda m,x: x.relu())
    with_child.child = nn.ReLU()
    with_weight = _Own(lambda m,x: x.relu())
    with_weight.p = nn.Parameter(torch.ones(1))
    assert not is_activation(with_child) and not is_activation(with_weight) and not is_activation(nn.PReLU())

def test_trials_change_nothing():
    "The numbers passed are copies, so that an activation in place gives the right answer too"
    for m in (nn.ReLU(inplace=True), nn.ELU(inplace=True), nn.Hardtanh(inplace=True), _Own(lambda m,x: x.clamp_(0, 2))): assert is_activation(m)

@pytest.mark.parametrize('f', [F.relu, torch.relu, torch.Tensor.relu, torch.Tensor.relu_, torch.tanh, torch.sigmoid, F.gelu, F.silu, torch.Tensor.tanh_])
def test_functions_known(f): assert f in act_funcs

class _Net(nn.Module):
    def __init__(self, between):
        super().__init__()
        self.a,self.between,self.b = nn.Linear(6,6),between,nn.Linear(6,6)
    def forward(self, x): return self.b(self.between(self.a(x)))

class _MyNorm(nn.Module):
    "A normalization that nobody knows"
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))
    def forward(self, x): return x/(x.square().mean(-1, keepdim=True)+1e-6).sqrt()*self.weight

class _MyScale(_MyNorm):
    def forward(self, x): return x*self.weight

@pytest.mark.parametrize('between,gain', [
    (nn.Tanh(), act_gain('tanh')), (nn.Sequential(nn.ReLU(), nn.Dropout()), math.sqrt(2)), (nn.Sequential(nn.ReLU(), nn.LayerNorm(6)), 1.),
    (nn.Sequential(nn.ReLU(), nn.RMSNorm(6)), 1.), (nn.Sequential(nn.ReLU(), _MyNorm()), 1.), (nn.Sequential(nn.ReLU(), _MyScale()), math.sqrt(2)),
    (nn.Identity(), 1.), (nn.PReLU(init=0.5), math.sqrt(2/1.25)), (nn.LeakyReLU(0.5), math.sqrt(2/1.25))])
def test_gain_of_what_comes_before(between, gain):
    gains = auto_gains(_Net(between))
    assert list(gains)==['a','b'] and gains['a']==1 and gains['b']==pytest.approx(gain, rel=1e-6)

class _Sum(nn.Module):
    "A sum of two, and a layer called twice"
    def __init__(self, same):
        super().__init__()
        self.a,self.b,self.same = nn.Linear(6,6),nn.Linear(6,6),same
    def forward(self, x):
        y = F.relu(self.a(x))
        return self.b(y + (F.relu(x) if self.same else x)) + self.b(F.tanh(y))

def test_gain_of_a_sum():
    "That of its parts where they agree, else 1; of a layer called twice that of the first call"
    assert auto_gains(_Sum(True))==pytest.approx({'a':1., 'b':math.sqrt(2)}) and auto_gains(_Sum(False))=={'a':1., 'b':1.}

def test_a_model_that_cannot_be_traced():
    m = _Own(lambda m,x: x if x.sum()>0 else -x)
    with pytest.raises(ValueError, match="nonlinearity='auto' cannot trace _Own .*name the nonlinearity"): auto_gains(m)

# A few values of a tensor

def test_sample_values():
    for n in (1, 3, 64, 65, 1000):
        v = torch.arange(float(n))
        s = sample_values(v)
        assert len(s)==min(n, 64) and s[0]==0 and (n>64 or s.equal(v)) and s.data_ptr()!=v.data_ptr()
    assert sample_values(torch.arange(1000.), 4).tolist()==[0,250,500,750]

def test_spread_sample():
    "All values below 4,096; else 31 runs of 64, from the first to the last 31st, as a copy"
    for n in (1, 4095): assert spread_sample(v := torch.arange(float(n))).equal(v) and spread_sample(v).data_ptr()!=v.data_ptr()
    for n in (4096, 31*1000):
        s = spread_sample(torch.arange(float(n)))
        assert s.shape==(31,64) and s[:,0].tolist()==[i*(n//31) for i in range(31)] and s[3].tolist()==[3*(n//31)+j for j in range(64)]

def test_flat():
    "A view of the memory where there are no gaps, whatever the order of dimensions"
    x = torch.randn(2,3,4,5)
    for v in (x, x.permute(2,0,3,1), x.to(memory_format=torch.channels_last), x.transpose(0,3)):
        assert flat(v).data_ptr()==v.data_ptr() and flat(v).sort().values.equal(x.flatten().sort().values)
    assert flat(x[:,:,::2]).sort().values.equal(x[:,:,::2].flatten().sort().values) and flat(torch.tensor(3.)).tolist()==[3.]

def test_read_all():
    ts = [torch.tensor(1.5), 2., torch.tensor(1+1j), 3+4j, torch.tensor(7, dtype=torch.int32), torch.tensor(0.1, dtype=torch.double)]
    assert read_all(ts)==[1.5, 2., pytest.approx(math.sqrt(2)), 5., 7, 0.1] and read_all([])==[]
