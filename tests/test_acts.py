"Gains, and what is an activation: the edges of each rule"
import math, random
from copy import deepcopy
from functools import partial
import pytest, torch
from torch import nn
from torch.nn import functional as F
from fastinit.acts import GeneralReLU, act_funcs, act_gain, is_activation
from fastinit.gains import auto_gains
from fastinit.schemes import kaiming_
from fastinit.tensors import checksum, flat, read_all, sample_values, spread_sample

@pytest.mark.parametrize('name', ['rellu', 'conv2d', 'softmax', 'dropout', 'sin'])
def test_a_name_that_is_no_activation(name):
    "Also that of another function of torch"
    with pytest.raises(ValueError, match=f"unknown nonlinearity '{name}'; known: .*gelu.*identity.*linear.*tanh.*pass the module or function"): act_gain(name)

@pytest.mark.parametrize('act', [torch.zeros_like, lambda z: 1/z, lambda z: z.abs()**-0.5, lambda z: z/0, lambda z: z*math.nan, lambda z: torch.where(z>3, math.inf, z)])
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
    assert act_gain(partial(F.elu, alpha=0.5))==pytest.approx(act_gain(nn.ELU(0.5)), rel=1e-9) # a partial of another function
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

class _Between(nn.Module):
    "`f(model, h)` between two layers, and whatever `f` needs"
    def __init__(self, f, **parts):
        super().__init__()
        self.a,self.b,self.f = nn.Linear(6,6),nn.Linear(6,6),f
        for k,v in parts.items(): setattr(self, k, v)
    def forward(self, x): return self.b(self.f(self, self.a(x)))

def _between(f, **parts): return auto_gains(_Between(f, **parts))['b']

def test_activations_of_nearly_one_gain():
    "Side by side: to a millionth they are one; half a percent apart the gain is 1"
    def _two(a): return _between(lambda m,h: torch.cat([F.leaky_relu(h[:,:3], 0.1), F.leaky_relu(h[:,3:], a)], 1))
    assert _two(0.1)==pytest.approx(math.sqrt(2/1.01), rel=1e-5)==_two(0.1+2e-6) and _two(0.01)==1==_two(0.1001)

def _unit(act, n=2_000_001):
    "1/√E[act(z)²], by a plain sum over many steps"
    z = torch.linspace(-12, 12, n, dtype=torch.double)
    return (act(z).square()*(-z*z/2).exp()).sum().mul(24/(n-1)/math.sqrt(2*math.pi)).item()**-0.5

def _encoder(**kwargs): return nn.TransformerEncoderLayer(6, 2, 8, **kwargs)

@pytest.mark.parametrize('model,gains', [
    (nn.Sequential(_encoder()), {'0.linear1':1., '0.linear2':math.sqrt(2)}), (_encoder(activation=nn.Tanh()), {'linear1':1., 'linear2':1.5925374}),
    (nn.Sequential(nn.TransformerEncoder(_encoder(activation='gelu'), 2)), {f'0.layers.{i}.linear{k}':g for i in (0,1) for k,g in ((1,1.), (2,1.5335304))}),
    (nn.Sequential(nn.ReLU(), _encoder(activation=F.selu), nn.Linear(6,6)), {'1.linear1':1., '1.linear2':1., '2':1.}),
    (nn.Transformer(6, 2, 1, 1, 8), {f'{o}.layers.0.linear{k}':g for o in ('encoder','decoder') for k,g in ((1,1.), (2,math.sqrt(2)))})], ids=map(str, range(5)))
def test_inside_a_transformer(model, gains):
    "Its second layer is fed by its activation; what comes after it starts anew"
    assert auto_gains(model)==pytest.approx(gains, abs=1e-6)

@pytest.mark.parametrize('m', [nn.LSTM(6,6), nn.GRU(6,6), nn.RNN(6,6), nn.Softmax(-1), nn.LogSoftmax(-1), _encoder(norm_first=True), _Own(lambda m,x: x@m.w, w=torch.eye(6)),
                               _Own(lambda m,x: F.normalize(x, dim=-1)), nn.Bilinear(6,6,6)], ids=lambda m: type(m).__name__)
def test_modules_after_which_variance_starts_anew(m):
    if hasattr(m, 'w'): m.w = nn.Parameter(m._buffers.pop('w')) # a layer of one's own
    def _f(model, h):
        y = model.m(h.relu(), h.relu()) if isinstance(m, nn.Bilinear) else model.m(h.relu())
        return y[0] if isinstance(m, nn.RNNBase) else y
    assert _between(_f, m=m)==1
    assert _between(lambda model,h: model.n(h.relu(), h.relu(), h.relu())[0], n=nn.MultiheadAttention(6,2))==1

class _ChannelsFirst(_MyNorm):
    "A normalization over channels that are not last, which wants four dimensions"
    def forward(self, x): return F.normalize(x, dim=1)*self.weight[:,None,None]

class _TrainingNorm(_MyNorm):
    "A batch normalization that nobody knows"
    def __init__(self):
        super().__init__()
        self.register_buffer('var', torch.ones(6))
    def forward(self, x): return x/(x.var((0,2,3), keepdim=True)+1e-5 if self.training else self.var[:,None,None]).sqrt()

class _Temperature(nn.Module):
    def __init__(self):
        super().__init__()
        self.t = nn.Parameter(torch.tensor(2.))
    def forward(self, x): return x/self.t

def test_a_module_with_a_single_number(): assert _between(lambda model,h: model.m(h.relu()), m=_Temperature())==pytest.approx(math.sqrt(2), rel=1e-9)

def test_normalizations_of_ones_own():
    "In evaluation mode too: it is for training that weights are drawn"
    for m in (_ChannelsFirst(), _TrainingNorm(), _TrainingNorm().eval()): assert _between(lambda model,h: model.m(h.relu()), m=m)==1

@pytest.mark.parametrize('f', [
    lambda h: F.layer_norm(h, (6,)), lambda h: F.layer_norm(h, h.shape[-1:]), F.normalize, lambda h: F.rms_norm(h, (6,)), lambda h: F.batch_norm(h, None, None, training=True),
    lambda h: F.group_norm(h, 2), F.instance_norm, lambda h: F.local_response_norm(h, 2), lambda h: F.softmax(h, -1), lambda h: torch.softmax(h, -1), lambda h: h.softmax(-1),
    lambda h: h.log_softmax(-1), lambda h: F.linear(h, torch.eye(6)), lambda h: F.scaled_dot_product_attention(h, h, h)], ids=map(str, range(14)))
def test_functions_after_which_variance_starts_anew(f): assert _between(lambda m,h: f(h.relu()))==1

@pytest.mark.parametrize('f', [
    lambda h: F.dropout(h), lambda h: h.flatten(1), lambda h: h.view(h.size(0), -1), lambda h: h.unsqueeze(1).mean(1), lambda h: h.chunk(2)[0], lambda h: h.max(1)[0], lambda h: h.to(torch.half).float(),
    lambda h: h.clamp(max=9), lambda h: h*2, lambda h: h/h.shape[1]**0.5, lambda h: torch.cat([h, F.relu(h), torch.relu(h)]), lambda h: h+torch.randn(6)])
def test_functions_that_pass_on_what_was_before(f): assert _between(lambda m,h: f(h.relu()))==pytest.approx(math.sqrt(2), rel=1e-6)

def test_a_size_of_something_else_is_no_source():
    class _Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b = nn.Linear(6,6),nn.Linear(6,6)
        def forward(self, x):
            n,k = x.shape
            return self.b(self.a(x).relu().view(n, k)/k**0.5)
    assert auto_gains(_Net())['b']==pytest.approx(math.sqrt(2), rel=1e-6)

def test_parameters_are_no_source():
    "As a learned scale or position; they are read, and not changed"
    p,q = nn.Parameter(torch.full((6,), 0.5)),nn.Parameter(torch.tensor(3.))
    for f in (lambda m,h: h.relu()*m.p, lambda m,h: h.relu()+m.p, lambda m,h: h.relu()*m.q, lambda m,h: m.q-h.relu(), lambda m,h: h.relu()*m.p.exp().view(1,-1)):
        assert _between(f, p=p, q=q)==pytest.approx(math.sqrt(2), rel=1e-6)
    net = _Between(lambda m,h: F.threshold(h, m.q.detach().mul_(0).item(), 0.), q=nn.Parameter(torch.tensor(3.))).double()
    assert auto_gains(net)['b']==pytest.approx(math.sqrt(2), rel=1e-6) and net.q==3

def test_randomized_relu():
    "√(2/(1+E[slope²])): uniform from 1/8 to 1/3 in training, else their mean"
    train,test = math.sqrt(2/(1+torch.linspace(1/8, 1/3, 100_001, dtype=torch.double).square().mean().item())),math.sqrt(2/(1+(11/48)**2))
    assert train==pytest.approx(1.37612, abs=1e-5) and test==pytest.approx(1.37848, abs=1e-5)
    for m,gain in ((nn.RReLU(), train), (nn.RReLU().eval(), test)):
        assert is_activation(m) and act_gain(m)==pytest.approx(gain, abs=1e-5)
        assert _between(lambda model,h: model.m(h), m=m)==pytest.approx(gain, abs=1e-5)
    for f,gain in ((F.rrelu, test), (torch.rrelu, test), (partial(F.rrelu, training=True), train), (lambda h: F.rrelu(h, 0.4, 0.6), math.sqrt(2/1.25)), (lambda h: torch.rrelu(h, 0.4, 0.4, True), math.sqrt(2/1.16))):
        assert _between(lambda m,h: f(h))==pytest.approx(gain, abs=1e-5)

@pytest.mark.parametrize('f,gain', [
    (lambda m,h: F.prelu(h, m.p), math.sqrt(2/1.25)), (lambda m,h: h.prelu(m.p), math.sqrt(2/1.25)), (lambda m,h: F.leaky_relu(h, m.s.item()), math.sqrt(2/1.09)),
    (lambda m,h: h.clamp(min=0), math.sqrt(2)), (lambda m,h: torch.clamp(h, 0), math.sqrt(2)), (lambda m,h: h.clamp_min(m.s-0.3), math.sqrt(2)), (lambda m,h: torch.maximum(h, m.s*0), math.sqrt(2)),
    (lambda m,h: h.abs(), 1.), (lambda m,h: h*h, 3**-0.5), (lambda m,h: F.threshold(h, 0.1, 0.1), _unit(nn.Threshold(0.1, 0.1))), (lambda m,h: F.elu(h, alpha=m.s), _unit(nn.ELU(0.3)))], ids=map(str, range(11)))
def test_functions_with_arguments(f, gain):
    "Also of parameters, and of each element though no list names them"
    assert _between(f, p=nn.Parameter(torch.tensor([0.1, 0.7]*3)), s=nn.Parameter(torch.tensor(0.3)))==pytest.approx(gain, rel=1e-5)

def test_one_activation_after_another():
    "E[relu(z)⁴] = 3/2, that of relu6 and of tanh(relu(z)) by a sum; whatever linear comes between"
    assert _between(lambda m,h: h.relu().square())==pytest.approx(1.5**-0.5, rel=1e-6)
    assert _between(lambda m,h: m.act(F.relu(h)*m.q)**2, act=nn.Dropout(), q=nn.Parameter(torch.ones(6)))==pytest.approx(1.5**-0.5, rel=1e-6)
    assert _between(lambda m,h: h.relu().clamp(max=1))==pytest.approx(_unit(lambda z: z.clamp(0, 1)), rel=1e-5)
    assert _between(lambda m,h: m.act(h).tanh(), act=nn.ReLU(inplace=True))==pytest.approx(_unit(lambda z: z.relu().tanh()), rel=1e-5)

@pytest.mark.parametrize('change,gain', [
    (lambda m,h: F.relu_(h), math.sqrt(2)), (lambda m,h: h.relu_(), math.sqrt(2)), (lambda m,h: torch.relu_(h), math.sqrt(2)), (lambda m,h: F.elu(h, inplace=True), _unit(nn.ELU())), (lambda m,h: F.elu(h, 1., True), _unit(nn.ELU())),
    (lambda m,h: m.act(h), math.sqrt(2)), (lambda m,h: m.own(h), _unit(lambda z: z.clamp(0, 2))), (lambda m,h: h.clamp_(min=0), math.sqrt(2)), (lambda m,h: h.relu(), 1.), (lambda m,h: h.mul_(2), 1.)], ids=map(str, range(10)))
def test_what_is_changed_in_place(change, gain):
    "What is called for its effect alone counts from then on"
    def _f(m, h):
        change(m, h)
        return h
    assert _between(_f, act=nn.ReLU(inplace=True), own=_Own(lambda m,x: x.clamp_(0, 2)))==pytest.approx(gain, rel=1e-5)

def test_what_came_before_a_change_in_place():
    "What is added in place makes a sum"
    def _f(m, h):
        y = F.relu(h)
        y.add_(h)
        return y
    assert _between(_f)==1

@pytest.mark.parametrize('f', [lambda m,h: F.leaky_relu(h, h.mean().item()), lambda m,h: F.prelu(h, h.mean(0)), lambda m,h: F.leaky_relu(h.relu(), 1/h.size(1)), lambda m,h: 1/h])
def test_a_function_whose_gain_the_data_determine(f): assert _between(f)==1

def test_equal_gains_by_different_ways():
    "By a formula and by an integral, which differ in the last digit"
    for k in (0.1, 0.2, 0.3, 0.7):
        assert _between(lambda m,h: F.leaky_relu(h, k)+m.act(h), act=nn.LeakyReLU(k))==pytest.approx(math.sqrt(2/(1+k*k)), rel=1e-6)
    assert _between(lambda m,h: F.relu(h)+m.act(h)+h.clamp(min=0), act=nn.ReLU())==pytest.approx(math.sqrt(2), rel=1e-6)

def test_reading_a_graph_changes_nothing():
    "Neither the random state nor any value, though the forward draws, adds in place and drops"
    m = _Between(lambda m,h: m.act(h)+F.dropout(h)+torch.rand(6)*m.p+m.drop(h), act=nn.RReLU(), drop=nn.Dropout(), p=nn.Parameter(torch.ones(6)), m=_TrainingNorm())
    m.m.kept,m.f0 = 'mine',m.f
    def _f(m, h):
        m.m.kept,m.new = h,h
        return m.f0(m, h)
    m.f = _f
    before,rng,attrs = {k:v.clone() for k,v in m.state_dict().items()},torch.get_rng_state(),set(vars(m))
    auto_gains(m)
    assert set(vars(m))==attrs and m.m.kept=='mine'
    assert rng.equal(torch.get_rng_state()) and all(v.equal(before[k]) for k,v in m.state_dict().items()) and m.act.training

@pytest.mark.parametrize('act', [nn.Softmax(0), nn.LogSoftmax(0), nn.LayerNorm(576), nn.LayerNorm(24), nn.Dropout(), nn.AlphaDropout(0.1), lambda z: z.cumsum(0), lambda z: z-z.mean(), lambda z: z.flip(0),
                                 lambda z: z/z.abs().max(), lambda z: z+torch.rand_like(z), F.dropout, lambda z: z.roll(1), lambda z: 3.], ids=map(str, range(14)))
def test_no_gain_of_what_is_no_function_of_each_element(act):
    rng = torch.get_rng_state()
    with pytest.raises(ValueError, match='is not an elementwise function .*, so it has no gain'): act_gain(act)
    assert rng.equal(torch.get_rng_state())

def test_a_gain_leaves_the_random_state():
    rng = torch.get_rng_state()
    for act in (nn.RReLU(), nn.RReLU, nn.Sequential(nn.ReLU(), nn.Dropout()), F.rrelu): act_gain(act)
    assert is_activation(nn.RReLU()) and rng.equal(torch.get_rng_state())
    assert act_gain(nn.Sequential(nn.ReLU(), nn.Dropout()))==pytest.approx(math.sqrt(2), rel=1e-6) # without its noise

def _upper(t, k): # ∫ zᵏφ(z) dz from t to ∞, for k = 0 and 2
    return 0.5*math.erfc(t/math.sqrt(2)) + (t*math.exp(-t*t/2)/math.sqrt(2*math.pi) if k else 0)

@pytest.mark.parametrize('act,m2', [
    (nn.Hardshrink(1.3), 2*_upper(1.3, 2)), (nn.Threshold(0.3, 5.), 25*(1-_upper(0.3, 0))+_upper(0.3, 2)), (nn.Hardtanh(-0.3, 0.3), 1-2*_upper(0.3, 2)+0.18*_upper(0.3, 0)),
    (lambda z: (z>math.pi/3).double(), _upper(math.pi/3, 0)), (lambda z: z>1, _upper(1, 0)), (lambda z: z.float()*(z>2.7), _upper(2.7, 2))], ids=map(str, range(6)))
def test_kinks_and_steps_between_whole_numbers(act, m2):
    "E[act²] in closed form"
    assert act_gain(act)==pytest.approx(m2**-0.5, rel=1e-5)

def test_few_calls_for_a_gain():
    "Of a smooth function four; where nothing is smooth they end all the same"
    sizes = []
    def _counted(f): return lambda z: (sizes.append(len(z)), f(z))[1]
    act_gain(_counted(torch.tanh))
    assert len(sizes)==4
    for f,gain in ((lambda z: (z*100).round()/100, 1.), (lambda z: (1e6*z).sin(), math.sqrt(2))):
        sizes.clear()
        assert act_gain(_counted(f))==pytest.approx(gain, rel=0.02) and sum(sizes)<200_000

# A few values of a tensor

def test_sample_values():
    for n in (1, 3, 64, 65, 1000):
        v = torch.arange(float(n))
        s = sample_values(v)
        assert len(s)==min(n, 64) and s[0]==0 and (n>64 or s.equal(v)) and s.data_ptr()!=v.data_ptr()
    assert sample_values(torch.arange(1000.), 4).tolist()==[0,249,498,747]
    for shape in ((64,64), (128,32,4), (64,3,7,7)): # of every row and column: no two of them a multiple of a side apart
        at = sample_values(torch.arange(float(math.prod(shape)))).long()
        assert all(len(set((at//math.prod(shape[i+1:])%k).tolist()))>=min(k, 64)//2 for i,k in enumerate(shape))

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

class _Sums(nn.Module):
    "A factor from a parameter, by sums of it with itself"
    def __init__(self, n):
        super().__init__()
        self.a,self.b,self.p,self.n = nn.Linear(4,4),nn.Linear(4,2),nn.Parameter(torch.ones(4)),n
    def forward(self, x):
        w = self.p
        for _ in range(self.n): w = (w+w)*0.5
        return self.b(self.a(x).relu()*w)

class _Counted(torch.overrides.TorchFunctionMode):
    "How many functions of torch are called"
    n = 0
    def __torch_function__(self, f, types, args=(), kwargs=None):
        self.n += 1
        return f(*args, **(kwargs or {}))

def test_constants_are_computed_once():
    "2^12 ways through their graph"
    with _Counted() as few: assert auto_gains(_Sums(6))==pytest.approx(dict(a=1, b=math.sqrt(2)), rel=1e-6)
    with _Counted() as more: assert auto_gains(_Sums(12))==pytest.approx(dict(a=1, b=math.sqrt(2)), rel=1e-6)
    assert more.n < 1.5*few.n

# Tracing runs the forward

class Remembers(nn.Module):
    def __init__(self, branch=False):
        super().__init__()
        self.a,self.b,self.log,self.branch = nn.Linear(5,8),nn.Linear(8,3),[],branch
        self.register_buffer('steps', torch.zeros(1))
    def forward(self, x):
        self.steps += 1
        self.a.weight.requires_grad_(False)
        self.log.append(random.random())
        h = torch.relu(self.a(x))
        self.log.append(h)
        if self.branch and h.sum()>0: return h
        return self.b(h)/self.steps
@pytest.mark.parametrize('branch', [False, True])
def test_auto_leaves_no_trace(branch):
    "Also where the model cannot be traced"
    m,rng = Remembers(branch),random.getstate()
    before = [p.detach().clone() for p in m.parameters()]
    if branch:
        with pytest.raises(ValueError, match='cannot trace Remembers'): kaiming_(m, nonlinearity='auto')
        assert all(map(torch.equal, before, m.parameters()))
    else: kaiming_(m, nonlinearity='auto')
    assert m.steps==0 and m.log==[] and m.a.weight.requires_grad and random.getstate()==rng
    deepcopy(m)

@pytest.mark.parametrize('dtype', [torch.float, torch.double, torch.half, torch.bfloat16, torch.complex64, torch.int8])
@pytest.mark.parametrize('shape', [(6,5,3,3), (31,33), (7,1,2,2)])
def test_checksum_knows_where_a_value_is(dtype, shape):
    "The same bits in any order of memory give the same; another order, or one bit, does not"
    g = torch.Generator().manual_seed(1)
    w = (torch.randn(*shape, generator=g)*30).to(dtype)
    order = sorted(range(w.ndim), key=lambda k: -k)
    assert checksum(w)==checksum(w.permute(order).contiguous().permute(order)) and checksum(w)==checksum(torch.stack([w, w], -1)[...,0])
    others = [w.flip(0), w.flip(-1), w.roll(1, 0), w[torch.randperm(len(w), generator=g)], w.reshape(-1)[torch.randperm(w.numel(), generator=g)]]
    swapped,bit = w.clone().reshape(-1),w.clone().reshape(-1)
    swapped[[2,9]] = swapped[[9,2]]
    bit[0] = -bit[0] if dtype!=torch.int8 else bit[0]^1
    mine = [w for w in (*others, swapped, bit) if not torch.equal(w.reshape(-1), others[0].flip(0).reshape(-1))]
    assert len(mine)==7 and checksum(others[0].flip(0))==checksum(w) not in set(map(checksum, mine)) and len(set(map(checksum, mine)))>=6

def test_checksum_of_pairs_of_opposite_values():
    "Their sums are the same, and so are those of their rows and columns"
    w = torch.tensor([[1.,-1.],[-1.,1.]], dtype=torch.double)
    assert len({checksum(w), checksum(-w), checksum(w.abs())})==3
    for n in (0, 1, 3): assert checksum(torch.ones(n))==checksum(torch.ones(n)) and checksum(torch.ones(n))!=checksum(torch.ones(n+1))
