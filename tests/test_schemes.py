"Each scheme alone: the std of the weights it draws, what it leaves alone, its options and what they may be"
import itertools, math, warnings
from copy import deepcopy
from functools import partial
import pytest, torch
from fastai.basics import DataLoaders, Learner
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.nn.utils.parametrize import register_parametrization
from fastinit.all import *
from fastinit.fill import draw_weight, new_bias, new_weight, orthonormal, some_of
from fastinit.schemes import check_scheme, fans, get_scheme, recurrent_, run_scheme, scheme_name

SCHEMES = [default_, normal_, xavier_, kaiming_, orthogonal_]

@pytest.mark.parametrize('layer,fan', [
    (nn.Linear(30,50), (30,50)), (nn.Conv2d(8,12,3), (72,108)), (nn.Conv2d(8,12,(1,5)), (40,60)), (nn.Conv1d(6,4,7), (42,28)), (nn.Conv3d(2,3,2), (16,24)),
    (nn.Conv2d(8,12,3,groups=4), (18,27)), (nn.Conv2d(8,8,3,groups=8), (9,9)), (nn.Bilinear(4,5,6), (20,30)), (nn.ConvTranspose2d(8,12,4,stride=2), (32,192)),
    (nn.ConvTranspose2d(8,12,3), (72,108)), (nn.ConvTranspose2d(8,8,4,stride=2,groups=4), (8,32)), (nn.ConvTranspose1d(1,3,2,stride=4), (1,6)),
    (nn.Conv2d(8,16,3,stride=2), (72,144)), (nn.Embedding(50,64), (1,64)), (nn.EmbeddingBag(50,64), (1,64)), (weight_norm(nn.Linear(30,50)), (30,50)), (nn.utils.spectral_norm(nn.Linear(30,50)), (30,50))])
def test_fans(layer, fan): assert tuple(map(float, fans(layer)))==fan

def test_fans_are_those_of_torch():
    "Of ordinary convolutions, whatever their stride; the docstring says so"
    for layer in (nn.Linear(30,50), nn.Conv2d(8,12,3,stride=2,padding=1), nn.Conv1d(6,4,7,stride=3), nn.Conv3d(2,3,2,dilation=2)):
        assert fans(layer)==nn.init._calculate_fan_in_and_fan_out(layer.weight)
    assert 'stride of an ordinary one does' in fans.__doc__ and 'fan_out is that of stride 1' in fans.__doc__

@pytest.mark.parametrize('layer,has', [(nn.LayerNorm(8), r'a weight of shape \(8,\)'), (nn.PReLU(), r'a weight of shape \(1,\)'), (nn.LSTM(3,4), 'no weight'), (nn.LSTMCell(3,4), 'no weight'),
    (nn.MultiheadAttention(4,2), 'no weight'), (nn.ReLU(), 'no weight'), (nn.Sequential(nn.Linear(2,2)), 'no weight'), (nn.BatchNorm2d(3, affine=False), 'no weight')])
def test_no_fans(layer, has):
    with pytest.raises(ValueError, match=f'^{type(layer).__name__} has {has}, and so no fans: pass a layer with a matrix or more, such as Linear, Conv2d or Embedding$'): fans(layer)

class Noisy(nn.Module):
    def forward(self, w): return w+torch.randn_like(w)

def test_fans_change_nothing():
    "Neither the vectors of a spectral norm nor the random state, where the weight is computed with random numbers"
    m = spectral_norm(nn.Linear(5,7)).train()
    register_parametrization(m, 'weight', Noisy())
    was,rng = deepcopy(m.state_dict()),torch.get_rng_state()
    assert fans(m)==(5,7) and torch.equal(torch.get_rng_state(), rng) and all(torch.equal(v, was[k]) for k,v in m.state_dict().items())

def drawn(scheme, layer, **kwargs):
    torch.manual_seed(0)
    model = nn.Sequential(layer)
    scheme(model, **kwargs)
    return layer.weight.detach()

@pytest.mark.parametrize('distribution', ['normal','uniform'])
@pytest.mark.parametrize('scheme,kwargs,std', [
    (kaiming_, {}, math.sqrt(2/400)), (kaiming_, dict(nonlinearity='linear'), 0.05), (kaiming_, dict(mode='fan_out'), math.sqrt(2/900)),
    (kaiming_, dict(a=1., nonlinearity='leaky_relu'), 0.05), (kaiming_, dict(nonlinearity=nn.Tanh()), act_gain('tanh')/20), (kaiming_, dict(nonlinearity='auto'), 0.05),
    (xavier_, {}, math.sqrt(2/1300)), (xavier_, dict(gain=3.), 3*math.sqrt(2/1300))])
def test_std_of_what_is_drawn(scheme, kwargs, std, distribution):
    "To 1 %, of 360,000 weights; their kurtosis tells the distribution; the mean is 0"
    w = drawn(scheme, nn.Linear(400,900), distribution=distribution, **kwargs)
    assert w.std().item()==pytest.approx(std, rel=0.01) and abs(w.mean())<0.01*std
    assert (w/std).pow(4).mean().item()==pytest.approx(3. if distribution=='normal' else 1.8, rel=0.03)
    if distribution=='uniform': assert w.abs().max().item()==pytest.approx(math.sqrt(3)*std, rel=1e-3)

def test_distribution_unless_said():
    "Kaiming is normal, Xavier uniform, as in their papers"
    for scheme,kurtosis in ((kaiming_, 3.), (xavier_, 1.8)):
        w = drawn(scheme, nn.Linear(400,900))
        assert (w/w.std()).pow(4).mean().item()==pytest.approx(kurtosis, rel=0.03)

def test_normal_and_default():
    assert drawn(normal_, nn.Linear(400,900)).std().item()==pytest.approx(1., rel=0.01) and drawn(normal_, nn.Linear(400,900), std=0.2).std().item()==pytest.approx(0.2, rel=0.01)
    a,b = nn.Linear(40,90),nn.Linear(40,90)
    drawn(default_, a)
    torch.manual_seed(0)
    b.reset_parameters()
    assert torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)

@pytest.mark.parametrize('shape', [(40,20), (20,40), (30,30), (39,20), (20,39), (8,4,3,3), (64,4,1,1)])
def test_orthogonal(shape):
    "Orthonormal rows or columns, the ones torch gives for the same seed, to 1e-5; times the gain"
    layer = nn.Linear(shape[1], shape[0]) if len(shape)==2 else nn.Conv2d(shape[1], shape[0], shape[2])
    w = drawn(orthogonal_, layer, gain=2.).flatten(1)
    torch.manual_seed(0)
    want = nn.init.orthogonal_(torch.empty(shape)).flatten(1)
    g = (w@w.T if w.shape[0]<=w.shape[1] else w.T@w)/4
    assert torch.allclose(g, torch.eye(len(g)), atol=1e-5) and torch.allclose(w, 2*want, atol=1e-5)
    torch.manual_seed(0)
    assert torch.allclose(drawn(orthogonal_, layer).flatten(1), want, atol=1e-5)

@pytest.mark.parametrize('layer', [nn.Conv2d(16,16,3,groups=16), nn.Conv2d(8,12,3,groups=4), nn.Conv2d(4,64,3,groups=2), nn.Conv1d(6,8,5,stride=2,dilation=2), nn.Conv2d(3,5,(1,3)),
    nn.ConvTranspose2d(6,4,3), nn.ConvTranspose2d(6,4,4,stride=2), nn.ConvTranspose2d(6,4,3,stride=2), nn.ConvTranspose2d(6,24,2,stride=2), nn.ConvTranspose2d(4,6,3,stride=(3,1)), nn.ConvTranspose2d(4,6,1,stride=2),
    nn.ConvTranspose2d(8,12,4,stride=2,groups=4), nn.ConvTranspose1d(6,4,5,stride=2,dilation=2), nn.ConvTranspose1d(6,4,6,stride=4,dilation=2), nn.ConvTranspose3d(3,2,2,stride=2)], ids=repr)
def test_orthogonal_convolutions(layer):
    "The channels at each place are, as functions of the input, orthonormal times the gain, to 1e-5; or what each input gives, where a group has more outputs than it sums inputs"
    drawn(orthogonal_, layer, gain=3.)
    reach = [(k-1)*d for k,d in zip(layer.kernel_size, layer.dilation)]
    ones = torch.eye(n := layer.in_channels*9**len(reach)).view(n, layer.in_channels, *[9]*len(reach)) # each input alone
    with torch.no_grad(): y,seen = layer(ones)/3,0
    for place in itertools.product(*[range(r, r+4) if layer.transposed else [0] for r in reach]): # away from the border
        j = y[(..., *place)].T # of shape (out, inputs)
        j = j[:,j.abs().sum(0)>0]
        if not j.numel(): continue # no tap of a transposed convolution gets there
        g,seen = j@j.T if j.shape[0]<=j.shape[1] else j.T@j,seen+1
        assert torch.allclose(g, torch.eye(len(g)), atol=1e-5)
    assert seen

@pytest.mark.parametrize('layer', [lambda: nn.Conv2d(256,256,3,groups=256,padding=1,padding_mode='circular'), lambda: nn.ConvTranspose2d(64,64,4,stride=2), lambda: nn.ConvTranspose2d(64,64,3)], ids=['depthwise','doubling','transposed'])
def test_orthogonal_keeps_the_variance(layer):
    "Of white noise, to 3 %, in one layer; to 15 % in three that are depthwise, where it was 0.006"
    m = orthogonal_(nn.Sequential(*[layer() for _ in range(3)]))
    x = torch.randn(4, m[0].in_channels, 24, 24)
    with torch.no_grad():
        assert m[0](x)[:,:,4:-4,4:-4].std().item()==pytest.approx(1., rel=0.03)
        if m[0].groups>1: assert m(x).std().item()==pytest.approx(1., rel=0.15)

@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
@pytest.mark.parametrize('scheme', SCHEMES[1:])
def test_16_bits_are_drawn_in_32(scheme, dtype):
    a,b = (drawn(scheme, nn.Linear(20,50).to(t)) for t in (torch.float, dtype))
    assert b.dtype==dtype and torch.equal(a.to(dtype), b)

@pytest.mark.parametrize('norm', [nn.utils.weight_norm, weight_norm])
def test_orthogonal_weight_norm_in_16_bits(norm):
    "There is no QR of 16 bits"
    a,b = (drawn(orthogonal_, norm(nn.Linear(20,25).to(t))) for t in (torch.float, torch.bfloat16))
    assert b.dtype==torch.bfloat16 and torch.allclose(a, b.float(), atol=0.01)

# Complex weights

@pytest.mark.parametrize('distribution', ['normal','uniform'])
@pytest.mark.parametrize('scheme,std', [(partial(kaiming_, nonlinearity='linear'), 1/20), (partial(xavier_, gain=2.), 2*math.sqrt(2/700)), (kaiming_, math.sqrt(2)/20)])
def test_complex_weights(scheme, std, distribution):
    "The root of the mean of |w|² is that of the formula, each part has half of it, to 1 %; the output of N(0,1) has std·√fan_in, to 2 %"
    w = drawn(scheme, nn.Linear(400,300,dtype=torch.cfloat), distribution=distribution)
    for part in (w.real, w.imag):
        assert part.std().item()==pytest.approx(std/math.sqrt(2), rel=0.01) and (part/part.std()).pow(4).mean().item()==pytest.approx(3. if distribution=='normal' else 1.8, rel=0.03)
    assert (torch.randn(500,400,dtype=torch.cfloat)@w.T).abs().square().mean().sqrt().item()==pytest.approx(20*std, rel=0.02)

@pytest.mark.parametrize('shape', [(30,30), (40,30), (30,40), (60,10), (10,60)])
def test_complex_orthogonal(shape):
    "Q·Qᴴ = 1, or Qᴴ·Q = 1, times the square of the gain, to 1e-5; LSUV begins there"
    layer = nn.Linear(shape[1], shape[0], dtype=torch.cfloat)
    w = drawn(orthogonal_, layer, gain=2.)
    g = (w@w.mH if w.shape[0]<=w.shape[1] else w.mH@w)/4
    assert torch.allclose(g, torch.eye(len(g), dtype=g.dtype), atol=1e-5) and w.imag.std().item()==pytest.approx(w.real.std().item(), rel=0.2)
    x = torch.randn(64, shape[1], dtype=torch.cfloat)
    lsuv_(nn.Sequential(layer), x, pre='orthogonal', center=False)
    w = layer.weight.detach()
    g = w@w.mH if shape[0]<=shape[1] else w.mH@w
    assert layer(x).std().item()==pytest.approx(1., abs=1e-3) and torch.allclose(g/g[0,0], torch.eye(len(g), dtype=g.dtype), atol=1e-5)

def test_complex_recurrent():
    for n,p in recurrent_(nn.LSTM(200, 150, dtype=torch.cfloat)).named_parameters():
        for g in p.detach().split(150) if n.startswith('weight') else ():
            if 'hh' in n: assert torch.allclose(g@g.mH, torch.eye(150, dtype=g.dtype), atol=1e-5)
            else: assert g.abs().square().mean().item()==pytest.approx(2/350, rel=0.05)

@pytest.mark.parametrize('dtype', [torch.float, torch.double, torch.cfloat])
def test_many_matrices(dtype):
    "10,000 of a shape, whose AᵀA may have any condition number, to 1e-5; each the one that torch gives, where there is but one and it is real"
    for shape in ((2,4), (4,2), (3,3), (1,9), (9,1), (2,13), (13,2)):
        w = orthonormal(torch.empty(10000, *shape, dtype=dtype), 0.5)*2
        g = w@w.mH if shape[0]<=shape[1] else w.mH@w
        assert (g-torch.eye(g.shape[-1])).abs().max()<1e-5, shape

@pytest.mark.parametrize('scheme', SCHEMES)
def test_what_is_left_alone(scheme):
    "Frozen layers unless forced, those not chosen, normalizations; biases are 0, but for torch's own"
    def model(): return nn.Sequential(nn.Linear(6,6), nn.BatchNorm1d(6), nn.Linear(6,6).requires_grad_(False), nn.Linear(6,6))
    def changed(m, f):
        for l in (m[0], m[2], m[3]): nn.init.constant_(l.bias, 7.)
        nn.init.constant_(m[1].weight, 5.)
        was = {k:v.clone() for k,v in m.state_dict().items()}
        assert f(m) is m
        return {k for k,v in m.state_dict().items() if not torch.equal(v, was[k])}
    free = {'0.weight','0.bias','3.weight','3.bias'}
    assert changed(m := model(), scheme)==free
    assert scheme is default_ or not m[0].bias.any() and not m[3].bias.any()
    assert changed(model(), partial(scheme, force=True))==free|{'2.weight','2.bias'}
    assert changed(model(), partial(scheme, layers='3'))=={'3.weight','3.bias'}

def test_row_of_the_padding():
    m = nn.Sequential(nn.Embedding(5, 4, padding_idx=2), nn.Linear(4,2))
    kaiming_(m, layers=nn.Embedding)
    assert not m[0].weight[2].any() and m[0].weight[[0,1,3,4]].all()
    for norm in (nn.utils.weight_norm, weight_norm): # which divides by the norm of a row
        m = nn.Sequential(norm(nn.Embedding.from_pretrained(torch.ones(5,4), freeze=False, padding_idx=2)))
        kaiming_(m, layers=nn.Embedding)
        assert torch.allclose(m[0].weight[2], torch.ones(4)) and not torch.allclose(m[0].weight[[0,1,3,4]], torch.ones(4,4), atol=0.1)

@pytest.mark.parametrize('cls', [nn.Embedding, nn.EmbeddingBag])
def test_tables(cls):
    "One row is read, so that Kaiming's linear std is 1, that of torch; to 1 %, of 320,000"
    assert drawn(kaiming_, cls(5000,64), nonlinearity='linear', layers=cls).std().item()==pytest.approx(1., rel=0.01)
    assert drawn(xavier_, cls(5000,64), layers=cls).std().item()==pytest.approx(math.sqrt(2/65), rel=0.01)

# What is said of layers that are left alone

def spectral(l): return spectral_norm(l)
def frozen(l): return l.requires_grad_(False)
def pruned(l): return prune.l1_unstructured(l, 'weight', 0.5)

def said(f):
    "(What is left alone and why, as each warning has it; do all point to it?) of a lambda that lies in one line of this file"
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        f()
    ws = [w for w in ws if 'left alone' in str(w.message)]
    return [str(w.message).partition('. `force=True`')[0] for w in ws],all((w.filename,w.lineno)==(__file__,f.__code__.co_firstlineno) for w in ws)

@pytest.mark.parametrize('leave,why', [(spectral, '2 unsupported parametrization (0, 2)'), (frozen, '2 frozen (0, 2)'), (pruned, '2 unsupported parametrization (0, 2)')])
@pytest.mark.parametrize('scheme', SCHEMES)
def test_one_warning(scheme, leave, why):
    "From a scheme, `init_`, `lsuv_` and a callback, also around a function that calls the scheme; it points to the line of the call"
    m,x = nn.Sequential(leave(nn.Linear(4,4)), nn.LeakyReLU(), leave(nn.Linear(4,4)), nn.Linear(4,4)),torch.randn(16,4)
    want = [f'left alone: {why}']
    assert said(lambda: scheme(m))==(want, True)
    assert said(lambda: init_(m, scheme, x))==(want, True) and said(lambda: lsuv_(m, x, pre=scheme))==(want, True)
    assert said(lambda: init_(m, lambda model: scheme(model), x))==(want, True) and said(lambda: init_(m, partial(scheme, layers=nn.Linear), x))==(want, True)
    assert said(lambda: lsuv_(m, x, pre=lambda model: scheme(model)))[0]==want
    assert said(lambda: scheme(m))==(want, True) and said(lambda: scheme(m, layers=init_layers(m)))==([], True) # which means just these
    for f in (scheme, lambda model: scheme(model)):
        learn = Learner(DataLoaders([(x,x)], [(x,x)]), m, loss_func=nn.MSELoss(), cbs=InitCallback(f))
        with learn.no_logging(), learn.no_bar(): assert said(lambda: learn.fit(1, 0.))[0]==want

@pytest.mark.parametrize('scheme', SCHEMES)
def test_who_is_warned_of_what(scheme):
    "Nothing of what is zero by design, or where all is initialized; what is shared, also inside a function that initializes more than `init_` knows of"
    m,x = nn.Sequential(nn.Linear(4,4), nn.Linear(4,4)),torch.randn(16,4)
    assert said(lambda: scheme(m))==([], True)
    nn.init.zeros_(m[1].weight)
    assert said(lambda: scheme(m))==([], True)
    m = nn.Sequential(nn.Embedding(4,4).requires_grad_(False), nn.Linear(4,4), nn.Linear(4,4, bias=False))
    m[2].weight = m[0].weight
    assert said(lambda: scheme(m, force=True))==(['left alone: 1 shared (2)'], True)
    m[2].weight = nn.Parameter(torch.ones(4,4))
    texts,_ = said(lambda: init_(m, lambda model: scheme(model, layers=nn.Embedding), torch.arange(4)))
    assert texts==['left alone: 1 frozen (0)']

@pytest.mark.parametrize('cls', [nn.RNN, nn.GRU, nn.LSTM, nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_recurrent_weights(cls):
    "Gate by gate: input weights Xavier, hidden weights orthogonal; biases 0, but 1 at the forget gate of an LSTM (input side alone)"
    torch.manual_seed(0)
    m = recurrent_(cls(40, 30))
    for n,p in m.named_parameters():
        gates = p.detach().split(30)
        if n.startswith('bias'):
            ones = {1} if 'ih' in n and 'LSTM' in cls.__name__ else set()
            assert [g.tolist() for g in gates]==[[float(i in ones)]*30 for i in range(len(gates))], n
        elif 'hh' in n: assert all(torch.allclose(g@g.T, torch.eye(30), atol=1e-5) for g in gates)
        else: assert all(g.std().item()==pytest.approx(math.sqrt(2/70), rel=0.07) and g.abs().max()<=math.sqrt(6/70) for g in gates)

@pytest.mark.parametrize('scheme,kwargs', [(normal_, dict(std=0.01)), (xavier_, dict(gain=3.)), (orthogonal_, dict(gain=3.)), (kaiming_, dict(nonlinearity='linear'))])
def test_recurrent_whatever_the_scheme(scheme, kwargs):
    "The same weights as `recurrent_` draws, and the docstring says so"
    a,b = nn.LSTM(40,30),nn.LSTM(40,30)
    torch.manual_seed(1); scheme(a, **kwargs)
    torch.manual_seed(1); recurrent_(b)
    assert all(map(torch.equal, a.parameters(), b.parameters()))
    assert 'recurrent layers as in `recurrent_`, whatever the options' in ' '.join(scheme.__doc__.split()).replace('Recurrent', 'recurrent')

class Peephole(nn.LSTMCell):
    "With parameters of its own: vectors of any name, and a matrix whose rows are no gates"
    def __init__(self, n_in, n):
        super().__init__(n_in, n)
        self.peep,self.weight_ch,self.proj = nn.Parameter(torch.full((n,), 0.7)),nn.Parameter(torch.ones(n)),nn.Parameter(torch.ones(700,50))

@pytest.mark.parametrize('scheme', SCHEMES[1:])
def test_own_parameters_of_a_cell(scheme):
    "Vectors stay, as they may be gains; a matrix is Xavier's, as one, to 2 %; the rest is as in torch's cell"
    m = Peephole(40, 30)
    scheme(nn.Sequential(m))
    assert m.peep.eq(0.7).all() and m.weight_ch.eq(1).all() and m.proj.std().item()==pytest.approx(math.sqrt(2/750), rel=0.02)
    assert all(torch.allclose(g@g.T, torch.eye(30), atol=1e-5) for g in m.weight_hh.detach().split(30)) and m.bias_ih.sum()==30

def test_projected_lstm():
    m = recurrent_(nn.LSTM(10, 12, proj_size=5))
    w = m.weight_hr_l0.detach()
    assert w.abs().max()<=math.sqrt(6/17) and w.std().item()==pytest.approx(math.sqrt(2/17), rel=0.3) # one matrix, not gates

@pytest.mark.parametrize('norm', [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.parametrize('scheme', SCHEMES)
def test_weight_norm_has_the_same_weight(scheme, norm):
    "The weight that it computes is what the scheme draws for a plain layer"
    torch.manual_seed(3)
    plain = drawn(scheme, nn.Linear(20,50))
    m = norm(nn.Linear(20,50))
    drawn(scheme, m)
    m(torch.randn(2,20))
    assert torch.allclose(m.weight, plain, atol=1e-6)
    if scheme is default_: assert m.bias.abs().max()<=20**-0.5 and m.bias.any()

# Options

@pytest.mark.parametrize('scheme,kwargs,said', [
    (xavier_, dict(distribution='gauss'), "distribution='gauss': must be 'normal' or 'uniform'"), (kaiming_, dict(distribution='gauss'), "distribution='gauss': must be 'normal' or 'uniform'"),
    (kaiming_, dict(mode='fan_avg'), "mode='fan_avg': must be 'fan_in' or 'fan_out'"), (kaiming_, dict(nonlinearity='rellu'), "unknown nonlinearity 'rellu'"),
    (kaiming_, dict(a='0.1'), "a='0.1': must be a number"), (kaiming_, dict(a=math.inf), 'a=inf: must be a number'), (normal_, dict(std='x'), "std='x': must be a number, 0 or more"),
    *((normal_, dict(std=v), f'std={v}: must be a number, 0 or more') for v in (-1, None, math.nan, math.inf)),
    *((f, dict(gain=v), f'gain={v!r}: must be a number, 0 or more') for f in (xavier_,orthogonal_) for v in ('relu', -1., math.nan, None))])
def test_wrong_options(scheme, kwargs, said):
    "Said by the function, and by a callback when it is made, before anything runs"
    m = nn.Sequential(nn.Linear(4,4))
    was = m[0].weight.clone()
    for f in (lambda: scheme(m, **kwargs), lambda: check_scheme(scheme, kwargs), lambda: check_scheme(partial(scheme, **kwargs), {}), lambda: InitCallback(scheme, **kwargs)):
        with pytest.raises(ValueError) as e: f()
        assert str(e.value).startswith(said)
    assert torch.equal(m[0].weight, was)

@pytest.mark.parametrize('scheme,kwargs', [(xavier_, dict(distribution='normal')), (xavier_, dict(distribution='uniform')), (kaiming_, dict(distribution='uniform')), (xavier_, {}),
    (kaiming_, dict(distribution='normal', mode='fan_out')), (kaiming_, dict(mode='fan_in', nonlinearity='auto')), (kaiming_, dict(nonlinearity='leaky_relu', a=0.2)), (kaiming_, {}),
    (normal_, dict(std=0)), (normal_, dict(std=torch.tensor(0.1))), (xavier_, dict(gain=torch.tensor(2.))), (orthogonal_, dict(gain=2)), (kaiming_, dict(a=-0.5))])
def test_right_options(scheme, kwargs): check_scheme(scheme, kwargs); InitCallback(scheme, **kwargs); scheme(nn.Sequential(nn.Linear(4,4)), **kwargs)

@pytest.mark.parametrize('what,said', [
    (LSUVCallback, 'LSUVCallback is a callback: it goes to a Learner or `compare_inits`, as `LSUVCallback()`; '), (LSUVCallback(), 'LSUVCallback is a callback: '), (partial(KaimingCallback, a=1.), 'KaimingCallback is a callback: '),
    (nn.Sequential(nn.Linear(2,2)), 'Sequential is a module, as `kaiming_(model)` gives one: pass `kaiming_` itself; '), (nn.Linear, 'Linear is a module'),
    (torch.zeros(99), "the scheme comes before the batch, `init_(model, 'lsuv', x)`, not Tensor"), (['lsuv'], 'the scheme comes before the batch'), (None, 'the scheme comes before the batch')])
def test_what_is_no_scheme(what, said):
    "By each that takes one, before anything runs, and in a line"
    from fastai.test_utils import synth_learner
    m = nn.Sequential(nn.Linear(4,4))
    takers = [lambda: init_(m, what, torch.randn(8,4)), lambda: InitCallback(what)]
    if what is not None: takers.append(lambda: lsuv_(m, torch.randn(8,4), pre=what))
    if not isinstance(what, LSUVCallback): takers.append(lambda: synth_learner().compare_inits({'mine':what}))
    for f in takers:
        with pytest.raises(TypeError) as e: f()
        assert str(e.value).startswith(said) and len(str(e.value))<250

def test_a_network_of_zeros():
    "It stays, as zero may be by design, and a warning says so; by a scheme, LSUV, `init_` and a callback's function"
    m,x = nn.Sequential(*[nn.Linear(4,4) for _ in range(11)]),torch.randn(16,4)
    for p in m.parameters(): nn.init.zeros_(p)
    said = r'left alone: 11 all zero \(0, 1, 2, …\)\. All weights are 0: call `reset_parameters\(\)` of each layer, then initialize$'
    for f in (lambda: kaiming_(m), lambda: lsuv_(m, x), lambda: lsuv_(m, x, force=True), lambda: init_(m, 'default', x)):
        with pytest.warns(UserWarning, match=said): r = f()
        if r is not m: assert r.df.status.eq('all zero').all() and 'reset_parameters()' in r.advice
    for o in m: o.reset_parameters()
    assert lsuv_(m, x).df.status.eq('ok').all()

def own(model, *, strength=1): pass
def any_option(model, **kwargs): pass
def no_option(model): pass

def test_unknown_options():
    for f,said in ((own, "own has no option 'streength'; it has strength"), (no_option, "no_option has no option 'streength'; it has none"),
                   (xavier_, "xavier has no option 'streength'; it has gain, distribution, layers, force")):
        with pytest.raises(TypeError) as e: check_scheme(f, dict(streength=2))
        assert str(e.value)==said
    check_scheme(any_option, dict(streength=2)), check_scheme(own, dict(strength=2)), check_scheme('lsuv', dict(std=0.5))

def test_names():
    assert [scheme_name(o) for o in ('lsuv', kaiming_, own, partial(kaiming_, a=0.1, mode='fan_out'), partial(partial(own, strength=2)), nn.ReLU())]==[
        'lsuv', 'kaiming', 'own', "kaiming(a=0.1, mode='fan_out')", 'own(strength=2)', 'ReLU']
    assert get_scheme('kaiming') is kaiming_ and get_scheme(own) is own and list(schemes)[:5]==['default','normal','xavier','kaiming','orthogonal']
    with pytest.raises(ValueError, match=r"unknown scheme 'kaimng'; known: default, normal, .*lsuv.*; or pass a function of \(model\) or \(model, \*xb\)"): get_scheme('kaimng')

# A scheme of one's own

def all_ones(model):
    for p in model.parameters(): nn.init.ones_(p)
def with_batch(model, *xb): model.seen = len(xb[0]); all_ones(model)
def with_layers(model, layers=None):
    for m in layers.values(): nn.init.ones_(m.weight)

@pytest.mark.parametrize('f', [all_ones, with_batch, with_layers, partial(all_ones)])
def test_own_scheme_leaves_alone_what_is_to_stay(f):
    m = nn.Sequential(nn.Linear(4,4).requires_grad_(False), nn.Linear(4,4), nn.LayerNorm(4), nn.Linear(4,4))
    nn.init.zeros_(m[3].weight)
    was = {k:v.clone() for k,v in m.state_dict().items()}
    with pytest.warns(UserWarning): report = init_(m, f, torch.randn(8,4))
    assert report.left=={'0':'frozen', '3':'zero'} and report.scheme==scheme_name(f)
    assert torch.equal(m[0].weight, was['0.weight']) and torch.equal(m[3].weight, was['3.weight']) and torch.equal(m[3].bias, was['3.bias']) and m[1].weight.eq(1).all()
    if f is with_batch: assert m.seen==8

def test_an_error_in_a_scheme_restores_all():
    def broken(model): all_ones(model); raise RuntimeError('mine')
    m = nn.Sequential(nn.Linear(4,4), nn.Linear(4,4))
    was,rng = [p.clone() for p in m.parameters()],torch.get_rng_state()
    with pytest.raises(RuntimeError, match='mine'): init_(m, broken, torch.randn(8,4, generator=torch.Generator().manual_seed(0)))
    assert all(map(torch.equal, m.parameters(), was)) and torch.equal(torch.get_rng_state(), rng)

def test_reports_of_all_schemes():
    "With modules without parameters if asked; the random state stays"
    x = torch.randn(16,6)
    for k in ('default','normal','xavier','kaiming','orthogonal','lsuv'):
        m,rng = nn.Sequential(nn.Linear(6,6), nn.ReLU(), nn.Linear(6,6)),torch.get_rng_state()
        report = init_(m, k, x)
        assert report.scheme==k and report.df.layer.tolist()==['0','2'] and torch.equal(torch.get_rng_state(), rng)
        assert init_(m, k, x, include_paramless=True).df.layer.tolist()==['0','1','2']
        assert report['2']['std']!=0 and init_(m, k, x, layers='2').df.status.isin(['ok','exploding','vanishing']).all()

def test_default_needs_a_reset():
    class Mine(nn.Module):
        def __init__(self): super().__init__(); self.weight = nn.Parameter(torch.ones(3,3))
        def forward(self, x): return x@self.weight
    with pytest.raises(ValueError, match=r'0 \(Mine\) has no reset_parameters\(\): leave it out of `layers`'): default_(nn.Sequential(Mine(), nn.Linear(3,3)), layers=[Mine,nn.Linear])
    m = nn.Sequential(nn.GRU(3,4))
    was = m[0].weight_hh_l0.clone()
    default_(m)
    assert not torch.equal(m[0].weight_hh_l0, was)

def test_run_scheme_gives_what_the_scheme_gives():
    m = nn.Sequential(nn.Linear(4,4))
    assert run_scheme(lambda model: 'said', m, init_layers(m))=='said' and run_scheme('kaiming', m, init_layers(m)) is m

@pytest.mark.parametrize('scheme', SCHEMES)
def test_weight_norm_without_a_bias(scheme):
    m = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(20,50,bias=False)))
    was = m[0].weight.clone()
    scheme(m)
    assert not torch.equal(m[0].weight, was) and m[0].bias is None

# Parametrized biases

class Shifted(nn.Module):
    def forward(self, b): return b+1
    def right_inverse(self, b): return b-1

class OneWay(nn.Module):
    def forward(self, b): return b+1

class Positive(nn.Module):
    def forward(self, b): return b.exp()
    def right_inverse(self, b): return b.log()

@pytest.mark.parametrize('wrap', [lambda l: l, weight_norm], ids=['plain','weight_norm'])
@pytest.mark.parametrize('scheme', SCHEMES)
def test_parametrized_bias(scheme, wrap):
    "0, through the parametrization; for torch's own what its bias is, up to 1/√30"
    m = nn.Sequential(wrap(nn.Linear(30,500)))
    register_parametrization(m[0], 'bias', Shifted())
    assert said(lambda: scheme(m))==([], True)
    if scheme is default_: assert 0.95*30**-0.5<m[0].bias.abs().max()<=30**-0.5+1e-6
    else: assert m[0].bias.abs().max()<1e-6
    assert init_(m, scheme, torch.randn(8,30)).left=={}

@pytest.mark.parametrize('kind', [OneWay, Positive, weight_norm, partial(prune.l1_unstructured, amount=0.5)], ids=['one way','positive','weight_norm','pruned'])
@pytest.mark.parametrize('scheme', SCHEMES[1:])
def test_bias_that_cannot_be_0(scheme, kind):
    "It stays bit-identical and finite, which is said; the weight is new"
    m = nn.Sequential(nn.Linear(30,30), nn.Linear(30,30))
    nn.init.ones_(m[1].bias)
    register_parametrization(m[1], 'bias', kind()) if kind in (OneWay,Positive) else kind(m[1], name='bias')
    was,bias = deepcopy(m.state_dict()),m[1].bias.detach().clone()
    assert said(lambda: scheme(m))==(['left alone: 1 unsupported parametrization (1.bias)'], True)
    m(torch.randn(8,30)) # which computes it anew
    assert torch.equal(m[1].bias, bias) and {k for k,v in m.state_dict().items() if not torch.equal(v, was[k])}=={'0.weight','0.bias','1.weight'}

# PyTorch's own

LAYERS = [nn.Linear(20,300), nn.Conv2d(6,80,3,groups=2), nn.ConvTranspose2d(4,256,4,stride=4), nn.ConvTranspose1d(8,300,3,groups=4), nn.Bilinear(20,20,500), nn.Embedding(200,30), nn.Embedding(200,30,padding_idx=3)]
@pytest.mark.parametrize('norm', [lambda l: l, nn.utils.weight_norm, weight_norm], ids=['plain','old','new'])
@pytest.mark.parametrize('plain', LAYERS, ids=repr)
def test_default_is_what_torch_gives(plain, norm):
    "The same values for the same seed, weight norm or not, to 1e-5; but of a row of 0, the padding's, a weight norm makes NaN, as in torch"
    m,plain = norm(deepcopy(plain)),deepcopy(plain)
    torch.manual_seed(5); plain.reset_parameters()
    torch.manual_seed(5); default_(nn.Sequential(m), layers=type(plain))
    rows = [i for i in range(len(plain.weight)) if i!=getattr(plain, 'padding_idx', None)]
    torch.testing.assert_close(m.weight[rows], plain.weight[rows], rtol=0, atol=1e-5)
    if getattr(plain, 'bias', None) is not None: assert torch.equal(m.bias, plain.bias)

def test_default_of_containers():
    "Attention's output bias is 0; all matrices of `nn.Transformer` are Xavier's, those of an encoder alone torch's: bounds to 2 %"
    for bias in (True, False):
        m = nn.MultiheadAttention(64, 4, bias=bias)
        if bias: nn.init.ones_(m.out_proj.bias)
        default_(m)
        assert m.out_proj.weight.abs().max().item()==pytest.approx(1/8, rel=0.02) and (m.out_proj.bias is None or not m.out_proj.bias.any())
    layer = lambda m: m.layers[0].linear1
    m = default_(nn.Transformer(64, 4, 1, 1, 128))
    assert layer(m.encoder).weight.abs().max().item()==pytest.approx(math.sqrt(6/192), rel=0.02) and layer(m.encoder).bias.abs().max().item()==pytest.approx(1/8, rel=0.05)
    assert not m.decoder.layers[0].multihead_attn.out_proj.bias.any() and m.decoder.layers[0].norm1.weight.eq(1).all()
    m = default_(nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128), 1, enable_nested_tensor=False))
    assert layer(m).weight.abs().max().item()==pytest.approx(1/8, rel=0.02)
    assert default_(nn.Transformer(64, 4, 1, 1, 128), layers=(nn.LayerNorm,nn.Linear)).encoder.norm.weight.eq(1).all()

def test_default_of_attention_itself():
    "Query, key and value, biases, `bias_k`; what they were before is gone; bounds of Xavier's to 3 %; frozen ones stay, unless forced"
    for kdim in (None, 32):
        m = nn.MultiheadAttention(64, 4, kdim=kdim, vdim=kdim, add_bias_kv=True)
        with torch.no_grad():
            for p in m.parameters(): p.fill_(7.)
        default_(m)
        bounds = {k:math.sqrt(6/sum(p.shape)) for k,p in m._parameters.items() if p is not None and p.ndim==2}
        assert len(bounds)==(1 if kdim is None else 3)
        for k,b in bounds.items(): assert getattr(m, k).abs().max().item()==pytest.approx(b, rel=0.03)
        assert not m.in_proj_bias.any() and 0.05<m.bias_k.std().item()<0.5 and not m.out_proj.bias.any()
    m.q_proj_weight.requires_grad_(False).fill_(7.)
    assert default_(m).q_proj_weight.eq(7).all() and not default_(m, force=True).q_proj_weight.eq(7).any()

def test_attention_is_left_alone_by_others_and_it_is_said():
    m,x = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),torch.randn(4,5,16)
    was = m.self_attn.in_proj_weight.detach().clone()
    said = 'the query, key and value weights of 1 attention module (first: self_attn) stay as they are: they are in no layer of their own'
    for scheme in ('kaiming','xavier','normal'):
        assert init_(m, scheme, x).notes.count(said)==1 and m.self_attn.in_proj_weight.equal(was)
    assert lsuv_(m, x).notes.count(said)==1 and m.self_attn.in_proj_weight.equal(was)
    for f in (lambda: init_(m, 'default', x), lambda: lsuv_(m, x, pre='default')):
        was = m.self_attn.in_proj_weight.detach().clone()
        assert said not in f().notes and not m.self_attn.in_proj_weight.equal(was)
    def mine_(model): nn.init.zeros_(model.self_attn.in_proj_weight)
    assert said not in init_(m, mine_, x).notes

def test_attention_is_as_before_on_an_error():
    "`pre='default'` draws its query, key and value weights; then a layer fails"
    m = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    m.linear2.register_forward_hook(lambda *_: 1/0)
    was = {k:v.clone() for k,v in m.state_dict().items()}
    with pytest.raises(ZeroDivisionError): lsuv_(m, torch.randn(4,5,16), pre='default')
    assert all(torch.equal(v, was[k]) for k,v in m.state_dict().items())

class Counts(nn.Linear):
    "A layer that remembers its resets, in itself"
    resets = 0
    def reset_parameters(self): self.resets += 1; super().reset_parameters()

def test_default_resets_the_layer_itself():
    m = Counts(3,3)
    default_(nn.Sequential(m))
    assert m.resets==2

def test_parts_of_a_fill():
    w = draw_weight(torch.empty(500,500), 0.3)
    assert w.std().item()==pytest.approx(0.3, rel=0.01)
    m = nn.Linear(4,4)
    with torch.no_grad(): new_weight(m, lambda w: w.fill_(2.))
    assert m.weight.eq(2).all()

# Random numbers

def draws(n=2):
    "(models with weights of their own, a batch)"
    return [nn.Sequential(nn.Linear(10,20), nn.ReLU(), nn.Linear(20,3)) for _ in range(n)],torch.randn(16,10)

@pytest.mark.parametrize('f', [lsuv_, lambda m,x: init_(m, 'kaiming', x), lambda m,x: init_(m, 'orthogonal', x), lambda m,x: init_(m, 'lsuv', x)])
def test_two_networks_get_two_draws(f):
    "As twin critics and ensembles need, though the random state is put back; the same seed gives the same weights, and the next noise is not made of them"
    (a,b),x = draws()
    state = torch.get_rng_state()
    same = deepcopy(a)
    for m in (a,b,same): f(m, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, q) for p,q in zip(a.parameters(), same.parameters()))
    pairs = torch.stack([a[0].weight.flatten(), b[0].weight.flatten(), torch.randn(200)]).detach().corrcoef()
    assert all(abs(pairs[i,j])<0.3 for i,j in ((0,1),(0,2),(1,2)))
    torch.manual_seed(1)
    f(same, x)
    assert not torch.equal(same[0].weight, a[0].weight)

# Biases that mean something

def detector(classes=8):
    m = nn.Sequential(nn.Linear(16,32), nn.ReLU(), nn.Linear(32,classes))
    nn.init.constant_(m[2].bias, -4.6)
    return m,torch.randn(64,16)

@pytest.mark.parametrize('f', [lsuv_, partial(lsuv_, pre=None), lambda m,x: init_(m, 'kaiming', x)])
def test_a_prior_that_is_lost_is_named(f):
    m,x = detector()
    assert f(m, x).notes==['1 bias (first: 2, -4.6) had one value throughout, and another now: set it again if it was meant, as a prior is']

def test_biases_of_which_nothing_is_said():
    "Of one value only, 0, drawn, kept, or one value in each of many layers, as LSUV leaves them"
    m,x = detector(1)
    assert lsuv_(m, x).notes==[]
    m,x = detector()
    assert lsuv_(m, x, layers='0').notes==[] and (m[2].bias==-4.6).all()
    for value,notes in ((0.09,0), (0.11,1)):
        m,x = detector()
        nn.init.constant_(m[2].bias, value)
        assert len(lsuv_(m, x).notes)==notes
    deep = nn.Sequential(*[o for _ in range(3) for o in (nn.Linear(16,16), nn.ReLU())])
    for _ in range(2): assert lsuv_(deep, x).notes==[]
    assert deep[0].bias.unique().numel()==1

@pytest.mark.parametrize('scheme', ['kaiming', 'lsuv'])
def test_a_callback_draws_what_the_scheme_alone_would(scheme):
    "So that with a seed a training is what it was; to the bit, but for LSUV's factor"
    (m,),x = draws(1)
    alone = deepcopy(m)
    learn = Learner(DataLoaders.from_dsets([(o, o.sum()) for o in x], [(o, o.sum()) for o in x], bs=16, shuffle=False, num_workers=0), m,
                    loss_func=lambda p,y: p.sum(), cbs=dict(kaiming=KaimingCallback, lsuv=LSUVCallback)[scheme]())
    torch.manual_seed(3)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.)
    torch.manual_seed(3)
    kaiming_(alone)
    ratio = m[0].weight/alone[0].weight
    assert torch.allclose(ratio, ratio[0,0].expand_as(ratio), rtol=1e-5) and (scheme=='lsuv' or ratio[0,0]==1)

def test_names_without_underscores_at_their_ends():
    "At the front one would hide a line from a legend; those inside stay"
    def _my_own_(model): pass
    assert scheme_name(_my_own_)=='my_own' and scheme_name(partial(_my_own_, a=1))=='my_own(a=1)' and scheme_name(kaiming_)=='kaiming'

def test_pieces_of_a_filling():
    "A layer without a bias has nothing that could refuse; a part of what is chosen by default is so too"
    assert new_bias(nn.Linear(3,4,bias=False), nn.init.zeros_) is True is new_bias(nn.Linear(3,4), nn.init.ones_)
    m = nn.Sequential(nn.Linear(3,4), nn.Linear(4,3))
    for layers,by_default in ((None,True), (nn.Linear,False)):
        todo = init_layers(m, layers)
        some = some_of(todo, ['1'])
        assert list(some)==['1'] and some.by_default is todo.by_default is by_default
