"Run by test_device.py: a device type of our own, built with the machine's compiler, or a GPU where there is one (`-m cuda`)"
import warnings
from copy import deepcopy
import pytest, torch, torch.nn.functional as F
from torch import nn
from fastai.basics import CrossEntropyLossFlat,DataLoader,DataLoaders,Learner
from fastai.callback import progress # `no_bar`
from fastinit.acts import GeneralReLU, act_gain, is_activation
from fastinit.all import *
from fastinit.probe import unmoved_rng
from fastinit.tensors import read_all
import device as testdev

@pytest.fixture(params=['testdev', pytest.param('cuda', marks=pytest.mark.cuda)])
def dev(request):
    if request.param=='cuda' and not torch.cuda.is_available(): pytest.skip('no GPU')
    yield testdev.device() if request.param=='testdev' else torch.device('cuda:0')

@pytest.fixture
def own():
    "The test device, which counts and refuses"
    yield testdev.device()
    torch.ops.test_device.allow_double(True)

class Res(nn.Module):
    def __init__(self, n, norm):
        super().__init__()
        self.conv,self.norm,self.last = nn.Conv2d(n,n,3,padding=1,bias=False),nn.BatchNorm2d(n) if norm else nn.Identity(),nn.Conv2d(n,n,3,padding=1)
    def forward(self, x): return x + self.last(F.relu(self.norm(self.conv(x))))

class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb,self.rnn,self.head = nn.Embedding(40,16),nn.LSTM(16,16,batch_first=True),nn.Linear(16,5)
    def forward(self, x): return self.head(self.rnn(self.emb(x))[0][:,-1])

def mlp(*acts): return nn.Sequential(*[o for i,a in enumerate(acts) for o in (nn.Linear(30,30,bias=i%2==0), a)], nn.Linear(30,5))
def images(): return torch.randn(8,3,10,10)
#: name → (model, batch)
MODELS = dict(
    mlp = lambda: (mlp(nn.ReLU(), nn.Tanh(), nn.GELU()), torch.randn(64,30)),
    general = lambda: (mlp(GeneralReLU(0.1, 0.4), GeneralReLU(0.1, 0.4)), torch.randn(64,30)),
    prelu = lambda: (mlp(nn.PReLU(), nn.PReLU()), torch.randn(64,30)),
    convs = lambda: (nn.Sequential(nn.Conv2d(3,8,3), nn.ReLU(), nn.Conv2d(8,8,3,groups=2,bias=False), nn.BatchNorm2d(8), nn.ReLU(),
                                   nn.ConvTranspose2d(8,6,3,stride=2), nn.Flatten(), nn.Linear(6*169,4)), images()),
    residual = lambda: (nn.Sequential(nn.Conv2d(3,8,3), Res(8,True), Res(8,False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8,4)), images()),
    attention = lambda: (nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2), torch.randn(8,5,16)),
    text = lambda: (Text(), torch.randint(0, 40, (16,7))),
    offset = lambda: (nn.Sequential(nn.Linear(30,30), nn.ReLU(), nn.Linear(30,30), nn.Linear(30,5)), torch.randn(64,30) + 1e5),
    zero = lambda: (nn.Sequential(nn.Linear(30,30), nn.ReLU(), _zero(nn.Linear(30,5))), torch.randn(64,30)),
    one = lambda: (nn.Sequential(nn.Linear(30,30), nn.ReLU(), nn.Linear(30,5)), torch.randn(1,30)), # one value a channel
    large = lambda: (nn.Sequential(nn.Conv2d(3,16,3,padding=1), nn.ReLU(), nn.Conv2d(16,4,3)), torch.randn(16,3,72,72)), # over 2^20 values
)
def _zero(m):
    for p in m.parameters(): nn.init.zeros_(p)
    return m
OPTIONS = dict(plain={}, activation=dict(at='activation'), channel=dict(center='channel'), uncentered=dict(center=False), branches=dict(branch_scale='auto'),
               silent=dict(branch_scale=0.), listed=dict(include_paramless=True))

def quiet(f, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return f(*args, **kwargs)

def close(a, b, tol=1e-4):
    "Are the parameters and buffers of two models the same, up to rounding that grows from layer to layer?"
    for (n,p),q in zip(a.state_dict().items(), b.state_dict().values()):
        p,q = p.cpu().float(),q.cpu().float()
        assert (p-q).abs().max() <= tol*(1e-1 + q.abs().max()), (n, (p-q).abs().max().item(), q.abs().max().item())

def same_report(a, b, tol=1e-4):
    a,b = a.df,b.df
    assert list(a.layer)==list(b.layer) and list(a.status)==list(b.status)
    for k in ('std','mean'): assert ((a[k]-b[k]).abs() <= tol*(1 + b['std'].abs())).all(), k

@pytest.mark.parametrize('options', OPTIONS)
@pytest.mark.parametrize('model', MODELS)
def test_lsuv_as_on_the_cpu(dev, model, options):
    "The same weights and the same report, float64 refused where that can be arranged"
    a,x = MODELS[model]()
    b,y = deepcopy(a).to(dev),x.to(dev)
    ra = quiet(lsuv_, a, x, pre=None, **OPTIONS[options])
    if dev.type=='testdev': torch.ops.test_device.allow_double(False)
    try: rb = quiet(lsuv_, b, y, pre=None, **OPTIONS[options])
    finally:
        if dev.type=='testdev': torch.ops.test_device.allow_double(True)
    tol = 5e-3 if dev.type=='cuda' or model=='offset' else 1e-4 # TF32, sums in another order; rounding beside a large mean
    if model!='offset': close(b, a, tol) # there many weights are right: see `test_beside_a_large_mean`
    same_report(rb, ra, tol)
    assert all(p.device==dev for p in b.state_dict().values())

@pytest.mark.parametrize('model', ['mlp','convs','residual','attention'])
@pytest.mark.parametrize('include_paramless', [False, True])
def test_waits_for_the_device_eight_times(own, model, include_paramless):
    "With the table looked at, however deep the model is: nothing is looked at on the way; before, for the draw, and after, for the notes"
    m,x = MODELS[model]()
    deep = nn.Sequential(*[nn.Linear(30,30) for _ in range(20)], m) if model=='mlp' else m
    deep,x = deep.to(own),x.to(own)
    with testdev.transfers() as t: n = len(quiet(lsuv_, deep, x, include_paramless=include_paramless).df)
    assert t.reads<=8 and t.items==0, (n, vars(t))

@pytest.mark.parametrize('scheme', ['kaiming','xavier','orthogonal','normal','default'])
def test_schemes(dev, scheme):
    "Right where the weights lie, without float64"
    if dev.type=='testdev': torch.ops.test_device.allow_double(False)
    model,x = nn.Sequential(nn.Linear(300,300), nn.ReLU(), nn.Linear(300,300), GeneralReLU(0.1, 0.4), nn.Linear(300,300)).to(dev),torch.randn(64,300).to(dev)
    try: r = init_(model, scheme, x)
    finally:
        if dev.type=='testdev': torch.ops.test_device.allow_double(True)
    want = dict(kaiming=(2/300)**0.5, xavier=(1/300)**0.5, orthogonal=(1/300)**0.5, normal=1., default=(1/900)**0.5)[scheme]
    for m in model[::2]: assert m.weight.device==dev and abs(m.weight.std().item()/want-1)<0.03
    assert list(r.df.status)==list(init_stats(model.cpu(), x.cpu()).df.status)

def test_auto_gain(dev):
    "Activations with a constant or a slope of their own, on the device"
    model = nn.Sequential(nn.Linear(300,300), GeneralReLU(0.1, 0.4), nn.Linear(300,300), nn.PReLU(init=0.5), nn.Linear(300,300)).to(dev)
    kaiming_(model, nonlinearity='auto')
    for i,gain in ((0,1.), (2,act_gain(GeneralReLU(0.1, 0.4))), (4,(2/1.25)**0.5)):
        assert abs(model[i].weight.std().item()*300**0.5/gain-1)<0.02
    assert abs(act_gain(nn.PReLU(init=0.5).to(dev))-(2/1.25)**0.5)<1e-6
    for act in (GeneralReLU(0.1, 0.4), Shifted()): assert abs(act_gain(act.to(dev))/act_gain(deepcopy(act).cpu())-1)<1e-6

class Shifted(nn.Module):
    "An activation of one's own with a buffer"
    def __init__(self):
        super().__init__()
        self.register_buffer('by', torch.tensor(0.3))
    def forward(self, x): return F.relu(x) - self.by

def test_own_activation_with_a_buffer(dev):
    assert is_activation(Shifted()) and is_activation(Shifted().to(dev))

def test_read_all(dev):
    ts = [torch.tensor(1.5, device=dev), 3, torch.tensor(2, device=dev), torch.tensor(0.1, dtype=torch.double), torch.tensor(2.5, device=dev), 0.25]
    assert read_all(ts)==[1.5, 3, 2, 0.1, 2.5, 0.25]

@pytest.mark.parametrize('options', [{}, dict(at='activation')], ids=['layer','activation'])
def test_identity_does_not_rest_on_addresses(own, options, monkeypatch):
    "On XLA every tensor has the address 0"
    model,x = mlp(nn.ReLU(), nn.ReLU(), nn.GELU()),torch.randn(64,30)
    a,b = deepcopy(model),deepcopy(model).to(own)
    ra = quiet(lsuv_, a, x, pre=None, **options)
    data_ptr = torch.Tensor.data_ptr
    monkeypatch.setattr(torch.Tensor, 'data_ptr', lambda t: data_ptr(t) if t.is_cpu else 0)
    rb = quiet(lsuv_, b, x.to(own), pre=None, **options)
    close(b, a)
    same_report(rb, ra)

class Noise(nn.Module):
    def forward(self, x): return x + 0.1*torch.randn_like(x)

def random_state(dev): return torch.get_device_module(dev.type).get_rng_state(dev)

def test_random_state(dev):
    "That of the device is where it was, after every function that calls the model or draws weights and puts them back"
    model,x = nn.Sequential(Noise(), nn.Linear(30,30), nn.ReLU(), nn.Linear(30,3)).to(dev),torch.randn(64,30).to(dev)
    y = torch.zeros(64, dtype=torch.long).to(dev)
    before = random_state(dev)
    for f in (lambda: lsuv_(model, x, pre=None), lambda: init_(model, 'kaiming', x), lambda: init_stats(model, x), lambda: layer_hists(model, x),
              lambda: layer_grads(model, F.cross_entropy, x, y)):
        quiet(f)
        assert torch.equal(random_state(dev), before)
    with pytest.raises(ZeroDivisionError), unmoved_rng():
        torch.randn(3, device=dev)
        raise ZeroDivisionError
    assert torch.equal(random_state(dev), before)

def test_another_default_device(own):
    "A model on the CPU while new tensors go elsewhere, and the other way round"
    for where,default in (('cpu',own), (own,'cpu'), (own,own)):
        model,x = mlp(nn.ReLU(), GeneralReLU(0.1, 0.4), Shifted()).to(where),torch.randn(64,30).to(where)
        torch.set_default_device(default)
        try:
            r = quiet(lsuv_, model, x)
            ra = quiet(lsuv_, model, x, at='activation')
            kaiming_(model, nonlinearity='auto')
            init_(model, 'orthogonal', x)
            h,g = layer_hists(model, x),layer_grads(model, F.cross_entropy, x, torch.zeros(64, dtype=torch.long, device=where))
            branches = residual_branches(model, x)
        finally: torch.set_default_device('cpu')
        assert ((r.df['std']-1).abs()<1e-3).all() and set(ra.df.status)=={'ok'} and len(g)==4 and abs(h.sum()-1).max()<1e-5 and not branches

@pytest.mark.parametrize('fails', [False, True])
def test_spectral_norm(dev, fails):
    "Looking at a weight moves the vectors of its power iteration: they are put back, also where an error follows"
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(30,30)), nn.ReLU(), nn.utils.spectral_norm(nn.Linear(30,30)), nn.Linear(30,3)).to(dev)
    was = {k:v.clone() for k,v in model.named_buffers()}
    assert len(was)==4
    weights = [p.clone() for p in (*model[0].parameters(), *model[2].parameters())]
    for f in (lsuv_, init_stats, lambda m,x: init_(m, 'orthogonal', x), lambda m,x: init_(m, 'kaiming', x)):
        try: quiet(f, model, torch.randn(64, 7 if fails else 30).to(dev))
        except ValueError: assert fails
        else: assert not fails
        for k,v in model.named_buffers(): assert torch.equal(v, was[k]), k
        assert all(torch.equal(p, q) for p,q in zip((*model[0].parameters(), *model[2].parameters()), weights))

def test_beside_a_large_mean(dev):
    "An offset of 1e5 in the data: what the second layer gives is at 1 in a pass of its own, as the report says"
    model,x = nn.Sequential(nn.Linear(30,30), nn.Linear(30,30), nn.Linear(30,5)).to(dev),(torch.randn(256,30)+1e5).to(dev)
    r = quiet(lsuv_, model, x)
    with torch.no_grad(): outs = [model[:i](x).double() if dev.type=='cuda' else model[:i](x).cpu().double() for i in (1,2,3)]
    for o,std,mean in zip(outs, r.df['std'], r.df['mean']):
        assert abs(o.std().item()/std-1)<1e-4 and abs(o.mean().item()-mean)<1e-3
    assert abs(outs[1].std().item()-1)<1e-3 and abs(outs[2].std().item()-1)<1e-3

def test_life_cycle(dev):
    "The callback in a Learner on the device: initialized once, trained weights left alone, export and reports as on the CPU"
    torch.manual_seed(0)
    x,y = torch.randn(256,30),torch.randint(0, 3, (256,))
    dl = DataLoader(list(zip(x,y)), bs=64, device=dev)
    dls = DataLoaders(dl, dl, device=dev)
    learn = Learner(dls, mlp(nn.ReLU(), GeneralReLU(0.1, 0.4)), loss_func=CrossEntropyLossFlat(), cbs=LSUVCallback())
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        assert ((learn.lsuv.report.df['std']-1).abs()<1e-3).all()
        after = [p.clone() for p in learn.model.parameters()]
        learn.fit(0)
        assert all(torch.equal(p, q) for p,q in zip(after, learn.model.parameters()))
        assert all(p.device.type==dev.type for p in learn.model.parameters())
        r = learn.init_report(grads=True)
        assert set(r.df.status)<={'ok','off target','large','small','vanishing','exploding'} and not r.df['std'].isna().any()
