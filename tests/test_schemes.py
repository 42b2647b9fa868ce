"Each scheme alone: the std of the weights it draws, what it leaves alone, its options and what they may be"
import math
from functools import partial
import pytest, torch
from torch import nn
from fastinit.all import *
from fastinit.schemes import check_scheme, fans, get_scheme, recurrent_, run_scheme, scheme_name

SCHEMES = [default_, normal_, xavier_, kaiming_, orthogonal_]

@pytest.mark.parametrize('layer,fan', [
    (nn.Linear(30,50), (30,50)), (nn.Conv2d(8,12,3), (72,108)), (nn.Conv2d(8,12,(1,5)), (40,60)), (nn.Conv1d(6,4,7), (42,28)), (nn.Conv3d(2,3,2), (16,24)),
    (nn.Conv2d(8,12,3,groups=4), (18,27)), (nn.Conv2d(8,8,3,groups=8), (9,9)), (nn.Bilinear(4,5,6), (20,30)), (nn.ConvTranspose2d(8,12,4,stride=2), (32,192)),
    (nn.ConvTranspose2d(8,12,3), (72,108)), (nn.ConvTranspose2d(8,8,4,stride=2,groups=4), (8,32)), (nn.ConvTranspose1d(1,3,2,stride=4), (1,6))])
def test_fans(layer, fan): assert tuple(map(float, fans(layer)))==fan

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

@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
@pytest.mark.parametrize('scheme', SCHEMES[1:])
def test_16_bits_are_drawn_in_32(scheme, dtype):
    a,b = (drawn(scheme, nn.Linear(20,50).to(t)) for t in (torch.float, dtype))
    assert b.dtype==dtype and torch.equal(a.to(dtype), b)

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
    (kaiming_, dict(mode='fan_avg'), "mode='fan_avg': must be 'fan_in' or 'fan_out'"), (kaiming_, dict(nonlinearity='rellu'), "unknown nonlinearity 'rellu'")])
def test_wrong_options(scheme, kwargs, said):
    "Said by the function, and by a callback when it is made, before anything runs"
    m = nn.Sequential(nn.Linear(4,4))
    was = m[0].weight.clone()
    for f in (lambda: scheme(m, **kwargs), lambda: check_scheme(scheme, kwargs), lambda: check_scheme(partial(scheme, **kwargs), {}), lambda: InitCallback(scheme, **kwargs)):
        with pytest.raises(ValueError) as e: f()
        assert str(e.value).startswith(said)
    assert torch.equal(m[0].weight, was)

@pytest.mark.parametrize('scheme,kwargs', [(xavier_, dict(distribution='normal')), (xavier_, dict(distribution='uniform')), (kaiming_, dict(distribution='uniform')), (xavier_, {}),
    (kaiming_, dict(distribution='normal', mode='fan_out')), (kaiming_, dict(mode='fan_in', nonlinearity='auto')), (kaiming_, dict(nonlinearity='leaky_relu', a=0.2)), (kaiming_, {})])
def test_right_options(scheme, kwargs): check_scheme(scheme, kwargs); InitCallback(scheme, **kwargs)

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
