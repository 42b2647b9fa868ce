"What always holds of `lsuv_`: two passes, exact, nothing else changed, all or nothing."
import gc, warnings, weakref
from functools import partial
from copy import deepcopy
import pytest, torch, torchvision
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from fastai.vision.all import xresnet18
from fastinit.all import *
from conftest import AFFINE, Unchanged, outputs

def mlp(n=4, d=30, act=nn.ReLU): return nn.Sequential(*[o for _ in range(n) for o in (nn.Linear(d,d), act())], nn.Linear(d,10))

def check(model, *xb, std=1., eps=1e-5, **kwargs):
    "`lsuv_` in two calls of the forward, every corrected layer at the target, nothing else changed"
    calls = []
    h = model.register_forward_pre_hook(lambda *_: calls.append(1))
    may = {f'{n}.{k}' for n,m in init_layers(model).items() for k,_ in m.named_parameters()}
    with Unchanged(model, may): report = lsuv_(model, *xb, std=std, **kwargs)
    h.remove()
    assert len(calls)==2 # one corrects, one measures
    done = report.df[report.df.scale.notna()]
    outs = outputs(model, AFFINE, *xb)
    assert len(done)
    for r in done.itertuples():
        o,m = outs[r.layer],model.get_submodule(r.layer)
        assert abs(o.std().item()/std-1)<=eps, (r.layer, o.std())
        if m.bias is not None: assert abs(o.mean().item())<=1e-4*std, (r.layer, o.mean())
        assert abs(r.std/std-1)<=max(eps,1e-5)
    return report

MODELS = dict(resnet18=torchvision.models.resnet18, densenet121=torchvision.models.densenet121, mobilenet=torchvision.models.mobilenet_v3_small,
              squeezenet=torchvision.models.squeezenet1_1, shufflenet=torchvision.models.shufflenet_v2_x0_5, convnext=torchvision.models.convnext_tiny,
              swin=torchvision.models.swin_t, xresnet18=partial(xresnet18, n_out=10))

@pytest.mark.parametrize('name', MODELS)
def test_real_models(name):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        check(MODELS[name](), torch.randn(4,3,64,64), pre=None)

@pytest.mark.parametrize('pre', ['kaiming','orthogonal','xavier','default',None])
def test_pre(pre): check(mlp(), torch.randn(64,30), pre=pre)

def test_orthogonal_is_the_papers():
    model = nn.Sequential(nn.Linear(30,30), nn.ReLU(), nn.Linear(30,10))
    lsuv_(model, torch.randn(64,30), pre='orthogonal', center=False)
    for m in (model[0], model[2]):
        w = m.weight@m.weight.T
        assert torch.allclose(w, w[0,0]*torch.eye(len(w)), atol=1e-4*w[0,0].item())
        assert m.bias.abs().max()==0

class Tangled(nn.Module):
    "Layers that run in another order than defined, twice, not at all, in a branch, and share a weight"
    def __init__(self):
        super().__init__()
        self.unused,self.last,self.twice,self.branch,self.first,self.tied = (nn.Linear(16,16) for _ in range(6))
        self.tied.weight = self.branch.weight
        self.act = nn.ReLU(inplace=True)
    def forward(self, x):
        x = self.act(self.first(x))
        x = x + self.branch(x)
        x = self.act(self.twice(self.act(self.twice(x))))
        return self.last(self.act(self.tied(x)))

def test_tangled():
    model,x = Tangled(),torch.randn(64,16)
    with pytest.warns(UserWarning, match='left alone: 1 not called .unused.$'): report = lsuv_(model, x, pre=None)
    assert list(report.df.layer)==['first','branch','twice','tied','last','unused']
    outs = outputs(model, nn.Linear, x)
    for n in ('first','branch','twice','last'): assert abs(outs[n].std()-1)<1e-5
    assert abs(outs['tied'].std()-report['tied']['std'])<1e-5 # with the weight of `first`
    assert report['tied'].status=='tied' and report['unused'].status=='not called'

@pytest.mark.parametrize('layer,shape', [(nn.Conv1d(8,8,3),(4,8,20)), (nn.Conv2d(8,8,3,groups=8),(4,8,9,9)), (nn.Conv2d(8,16,3,groups=4,dilation=2,bias=False),(4,8,9,9)),
    (nn.Conv3d(2,4,3),(2,2,5,6,7)), (nn.ConvTranspose2d(8,4,4,stride=2),(4,8,5,5)), (nn.ConvTranspose1d(8,4,3),(4,8,5)), (nn.Conv2d(3,4,3,padding_mode='reflect',padding=1),(4,3,8,8)),
    (nn.Conv1d(8,8,3,groups=8,dilation=3),(4,8,20)), (nn.Conv2d(8,16,3,groups=8,stride=2),(4,8,9,9)), (nn.Conv3d(4,8,3,groups=2,bias=False),(2,4,5,6,7)),
    (nn.ConvTranspose3d(4,2,3,stride=2,output_padding=1),(2,4,3,3,3)), (nn.ConvTranspose2d(8,8,3,groups=4,dilation=2,bias=False),(4,8,6,6)), (nn.Linear(9,5),(4,3,2,9))])
def test_layer_types(layer, shape): check(nn.Sequential(layer, nn.ReLU()), torch.randn(*shape))

def test_bilinear():
    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.b = nn.Bilinear(5,6,7)
        def forward(self, x, y): return self.b(x, y)
    check(M(), torch.randn(32,5), torch.randn(32,6))

@pytest.mark.parametrize('dtype,eps', [(torch.float64,1e-9), (torch.bfloat16,1e-2), (torch.float16,2e-3)])
def test_dtypes(dtype, eps):
    model,x = mlp().to(dtype),torch.randn(256,30).to(dtype)
    lsuv_(model, x)
    for o in outputs(model, nn.Linear, x).values(): assert abs(o.std()-1)<=eps
    assert all(p.dtype==dtype for p in model.parameters())

def test_channels_last():
    model = nn.Sequential(nn.Conv2d(3,8,3), nn.ReLU(), nn.Conv2d(8,8,3)).to(memory_format=torch.channels_last)
    check(model, torch.randn(4,3,16,16).to(memory_format=torch.channels_last))

def test_channels_last_3d():
    model = nn.Sequential(nn.Conv3d(3,8,3), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8,4,3)).to(memory_format=torch.channels_last_3d)
    strides = [p.stride() for p in model.parameters()]
    check(model, torch.randn(2,3,8,8,8).to(memory_format=torch.channels_last_3d))
    assert strides==[p.stride() for p in model.parameters()]

def test_parametrizations():
    model,x = nn.Sequential(weight_norm(nn.Linear(30,30)), nn.ReLU(), spectral_norm(nn.Linear(30,30)), nn.Linear(30,30)),torch.randn(64,30)
    with pytest.warns(UserWarning, match='1 unsupported parametrization .2.'): r = lsuv_(model, x)
    for n in ('0','3'): assert abs(r[n]['std']-1)<1e-5
    with torch.no_grad(): assert abs(model[0](x).std()-1)<1e-5
    assert r['2'].status=='unsupported parametrization'

@pytest.mark.parametrize('kwargs', [dict(), dict(center='channel'), dict(at='activation'), dict(at='activation', center=False)])
def test_rounding_grows_through_a_deep_network(kwargs):
    "The last digit in layer 1 is tenths in layer 400: a further pass gives each layer its very input, so that one is enough"
    torch.manual_seed(0)
    m = nn.Sequential(nn.Conv2d(3,4,3,padding=1), *[o for _ in range(399) for o in (nn.ReLU(), nn.Conv2d(4,4,3,padding=1))], nn.ReLU())
    x,calls = torch.randn(4,3,6,6),[]
    h = m.register_forward_pre_hook(lambda *_: calls.append(1))
    df = lsuv_(m, x, pre=None, **kwargs).df
    h.remove()
    assert len(calls)<=6 and df.converged.dropna().all()
    kind = nn.ReLU if 'at' in kwargs else nn.Conv2d
    stds = [o.std().item() for o in outputs(m, kind, x).values()]
    assert len(stds)==400 and max(abs(s-1) for s in stds)<1e-3

@pytest.mark.parametrize('std', [1e-3, 1e3])
def test_what_is_off_is_so_relative_to_the_target(std):
    "A weight that counts a little more than once: the first correction is a third off"
    class More(nn.Linear):
        def forward(self, x): return F.linear(x, self.weight*self.weight.norm()**0.05, self.bias)
    torch.manual_seed(0)
    m,x,calls = nn.Sequential(More(30,20)),torch.randn(64,30),[]
    m.register_forward_pre_hook(lambda *_: calls.append(1))
    report = lsuv_(m, x, pre=None, center=False, std=std)
    assert m(x).std().item()==pytest.approx(std, rel=1e-3) and report['0'].converged and 4<=len(calls)<=9

def test_lazy_equals_numbers(monkeypatch):
    "What other devices than the CPU do, tensors that nobody waits for, gives the same"
    a,x = mlp(),torch.randn(64,30)
    nn.init.zeros_(a[2].weight)
    b = deepcopy(a)
    ra = lsuv_(a, x)
    monkeypatch.setattr('fastinit.stats.Moments.__init__', lambda self, lazy=True: vars(self).update(lazy=True, buf=torch.empty(0)))
    rb = lsuv_(b, x)
    assert all(torch.allclose(p, q, atol=1e-6) for p,q in zip(a.parameters(), b.parameters()))
    assert (ra.df.status==rb.df.status).all() and (ra.df['std']-rb.df['std']).abs().max()<1e-5

def test_weights_change_at_once():
    "Whatever comes later in the pass has the new ones"
    model,x,seen = mlp(),torch.randn(64,30),[]
    model[1].register_forward_hook(lambda *_: seen.append(model[0].weight.clone()))
    lsuv_(model, x, pre=None)
    assert len(seen)==2 and all(torch.equal(w, model[0].weight) for w in seen)

def test_dropout_is_off_and_modes_return():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(30,30), nn.BatchNorm1d(30), nn.ReLU(), nn.Dropout(0.5), nn.Linear(30,5)).train()
    check(model, torch.randn(64,30))

def test_transformer_fast_path():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        r = lsuv_(model, torch.randn(8,5,16))
    assert (r.df[r.df.type=='Linear']['std']-1).abs().max()<1e-5 and r['layers.1.linear2'].status=='ok'

class Boom(Exception): pass

@pytest.mark.parametrize('error', [Boom, KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize('at', range(5))
def test_all_or_nothing(at, error):
    "A failure at any layer, those before it corrected already, leaves everything bit-identical"
    model,x = mlp(),torch.randn(64,30)
    def _fail(*_): raise error('on purpose')
    model[2*at].register_forward_hook(_fail)
    for pre in ('kaiming', None):
        with Unchanged(model), pytest.raises(InitError if error is RuntimeError else error): lsuv_(model, x, pre=pre)

X = torch.randn(8,30)
@pytest.mark.parametrize('bad,match', [
    (lambda m: lsuv_(m, X*float('nan')), r'0 \(Linear\) gives values that are not finite'),
    (lambda m: lsuv_(m, X[:,1:]), r'0 \(Linear\) failed on a batch of shape \(8, 29\)'),
    (lambda m: lsuv_(m), 'no batch given'),
    (lambda m: lsuv_(m, X, pre='nope'), "unknown scheme 'nope'; known: default"),
    (lambda m: lsuv_(m, X, at='nowhere'), "must be 'layer' or 'activation'"),
    (lambda m: lsuv_(m, X, std=0), 'must be a number over 0'),
    (lambda m: lsuv_(m, X, layers='5x'), "named '5x'"),
    (lambda m: lsuv_(m, X, layers=nn.ReLU), 'has no weight'),
    (lambda m: kaiming_(m, nonlinearity='rellu'), "unknown nonlinearity 'rellu'"),
    (lambda m: init_(m, 'nope', X), 'unknown scheme')])
def test_bad_input(bad, match):
    model = mlp()
    with Unchanged(model), pytest.raises(ValueError, match=match): bad(model)

@pytest.mark.parametrize('model,match', [(nn.Sequential(nn.ReLU()), 'no layer to initialize'), (nn.Sequential(nn.LazyLinear(3)), '0.weight is not built yet'),
                                         (nn.Linear(3,3,device='meta'), 'meta device'), (nn.Linear, 'pass a built model')])
def test_bad_model(model, match):
    for f in (lsuv_, init_stats) if 'no layer' not in match else (lsuv_,):
        with pytest.raises((ValueError,TypeError), match=match): f(model, torch.randn(4,3))
    with pytest.raises((ValueError,TypeError), match=match): kaiming_(model)

def test_single_value():
    model,x = nn.Sequential(nn.Linear(4,3), nn.Linear(3,1)),torch.randn(1,4)
    with Unchanged(model), pytest.raises(InitError, match=r'1 \(Linear\) gives a single value'): lsuv_(model, x)

def test_zero_by_design():
    model = mlp()
    with torch.no_grad():
        model[4].weight.zero_(); model[4].bias.fill_(0.3)
    r = lsuv_(model, torch.randn(64,30))
    assert r['4'].status=='zero' and model[4].weight.abs().max()==0 and (model[4].bias==0.3).all()

@pytest.mark.parametrize('act', [nn.ReLU, partial(nn.LeakyReLU, 0.1), nn.GELU, nn.SiLU, nn.Mish, nn.Tanh,
                                 *(partial(a, inplace=True) for a in (nn.ReLU, nn.LeakyReLU, nn.SiLU, nn.Mish))])
def test_at_activation(act):
    model,x = mlp(act=act),torch.randn(128,30)
    report,outs = lsuv_(model, x, at='activation'),outputs(model, type(act()), x)
    assert len(outs)==4
    for n,o in outs.items(): assert abs(o.std()-1)<=1e-3 and abs(report[n]['std']-o.std())<=1e-4

def test_unreachable_at_activation():
    with pytest.warns(UserWarning, match='did not reach std 1'): r = lsuv_(mlp(act=nn.Sigmoid), torch.randn(128,30), at='activation')
    assert abs(r['0']['std']-1)<1e-5 and not r['0'].converged

def test_used_otherwise_first():
    "An output that goes into something else before its activation keeps its own std"
    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b = nn.Linear(30,30),nn.Linear(30,5)
        def forward(self, x):
            x = self.a(x)
            y = x.mean(1, keepdim=True)
            return self.b(F.relu(x)+y)
    r = lsuv_(M(), torch.randn(64,30), at='activation')
    assert abs(r['a']['std']-1)<1e-5

def test_two_equal_values_are_a_dead_layer():
    "One value alone would have no std"
    m = nn.Linear(4,1)
    was = m.weight.detach().clone()
    assert lsuv_(m, torch.ones(2,4), pre=None).df.status[0]=='dead' and torch.equal(m.weight, was)

@pytest.mark.parametrize('kwargs', [{}, dict(at='activation'), dict(center='channel'), dict(verify=False)])
def test_a_report_that_was_never_read_lets_go_of_the_model(kwargs):
    "And has its table all the same"
    model = mlp(2)
    report,held = lsuv_(model, torch.randn(64,30), **kwargs),weakref.ref(model[0])
    del model
    gc.collect()
    assert held() is None and report.df.set_index('layer')['std'][['0','2','4']].between(0.5,2).all()
