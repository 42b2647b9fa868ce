"Choices that a `partial` binds, functions of one's own, modules that keep state, outputs in odd memory: each as a user meets it."
import math, time, warnings
from functools import partial
import matplotlib.pyplot as plt
import pytest, torch
import torch.nn.functional as F
from torch import nn
from fastai.vision.all import CrossEntropyLossFlat, DataLoaders, Learner
from fastinit.all import *
from fastinit.acts import act_gain
from fastinit.schemes import bound_choice
from fastinit.stats import layer_grads
from fastinit.watched import Watched
from conftest import Net, outputs

def net(): return nn.Sequential(nn.Linear(8,8), nn.ReLU(), nn.Linear(8,3))

@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(64,8)

def quiet_learner(model):
    ds = [(torch.randn(8), i%3) for i in range(32)]
    return Learner(DataLoaders.from_dsets(ds, ds, bs=16, num_workers=0), model, loss_func=CrossEntropyLossFlat())

# What a partial binds

def test_partial_layers(x):
    "Only those are drawn: in `init_`, as `pre`, in a callback, in a comparison"
    m = net()
    w = m[2].weight.clone()
    init_(m, partial(kaiming_, layers='0'), x)
    assert torch.equal(w, m[2].weight)
    lsuv_(m, x, pre=partial(kaiming_, layers='0'))
    assert torch.allclose(F.cosine_similarity(w.flatten(), m[2].weight.flatten(), 0), torch.tensor(1.), atol=1e-6) # scaled, not drawn
    learn = quiet_learner(net())
    w = learn.model[2].weight.clone()
    learn.add_cb(InitCallback(partial(kaiming_, layers='0')))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.)
    assert torch.equal(w, learn.model[2].weight)
    reports = learn.compare_inits({'all':lsuv_, 'first':partial(lsuv_, layers='0')})
    assert reports['all']['2']['std']==pytest.approx(1, abs=1e-4) and abs(reports['first']['2']['std']-1)>0.01
    plt.close('all')

def test_partial_force_and_listing(x):
    m = net()
    m[0].requires_grad_(False)
    w = m[0].weight.clone()
    init_(m, partial(kaiming_, force=True), x)
    assert not torch.equal(w, m[0].weight)
    assert init_(m, partial(lsuv_, include_paramless=True, force=True), x).df.layer.tolist()==['0','1','2']

def test_what_is_passed_comes_first(x):
    f = partial(kaiming_, layers='0', force=True)
    assert bound_choice(f, layers='2', force=False)==dict(layers='2', force=True)
    assert bound_choice('kaiming', layers=(o for o in 'ab'), force=False)==dict(layers=['a','b'], force=False)

def test_generators_and_sets():
    "A generator is read once, a set is checked as a list is"
    learn = quiet_learner(m := net())
    learn.add_cb(LSUVCallback(layers=(o for o in [m[0]])))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.)
    assert learn.lsuv.report['0']['std']==pytest.approx(1, abs=1e-4)
    assert list(learn.compare_inits(['kaiming','lsuv'], layers=(o for o in ['0'])))==['kaiming','lsuv']
    with pytest.raises(ValueError, match="named 'nope'"): init_layers(m, {'0','nope'})
    plt.close('all')

# Functions of one's own

def fill_all(model): model.apply(lambda m: nn.init.normal_(m.weight) if hasattr(m, 'weight') else None)

@pytest.mark.parametrize('init', [lambda m,x: lsuv_(m, x, pre=fill_all), lambda m,x: init_(m, 'lsuv', x, pre=fill_all), lambda m,x: init_(m, fill_all, x)])
def test_all_or_nothing(init, x):
    "A function that changes more than the layers: after an error all is as it was"
    m = nn.Sequential(nn.Linear(8,8), nn.LayerNorm(8), nn.Linear(8,3))
    x[0,0] = math.nan
    was = [p.clone() for p in m.parameters()]
    try: init(m, x)
    except InitError: assert all(torch.equal(a, b) for a,b in zip(was, m.parameters()))
    else: assert init_(m, fill_all, x).df.status.eq('not finite').any() # measured and told, which is no error

def test_takes_one_batch(x):
    "(model, x) as well as (model, *xb)"
    got = []
    def _mine(model, batch): got.append(batch)
    init_(net(), _mine, x)
    assert got[0] is x

def test_not_a_scheme():
    for f in (nn.init.xavier_normal_, partial(nn.init.normal_, std=2.)):
        with pytest.raises(TypeError, match='fills a tensor; schemes are functions of .model., or default, '): InitCallback(f)
        with pytest.raises(TypeError, match='fills a tensor'): LSUVCallback(pre=f)
    for k in ('tol','max_iter','std'):
        for v in ('1e-3', None, 0, -1):
            with pytest.raises(ValueError, match=f'{k}=.*must be a .*number over 0'): LSUVCallback(**{k:v})

# Weights of one dimension

def test_one_dimension():
    m,x = nn.Sequential(nn.Conv2d(3,8,3), nn.BatchNorm2d(8)),torch.randn(4,3,8,8)
    for pre in ('kaiming','xavier','orthogonal'):
        r = lsuv_(m, x, layers=[nn.Conv2d,nn.BatchNorm2d], pre=pre)
        assert (r.df['std']-1).abs().max()<1e-4 and r.df.scale.notna().all()
    for f in (kaiming_, xavier_, orthogonal_):
        w = m[0].weight.clone()
        with pytest.raises(ValueError, match=r'1 \(BatchNorm2d\) has a weight of one dimension.*leave it out'): f(m, layers=[nn.Conv2d,nn.BatchNorm2d])
        assert torch.equal(w, m[0].weight)
    assert normal_(m, std=3., layers=nn.BatchNorm2d)[1].weight.std()>0.5

# Modules that keep state, or give odd memory

class Noise(nn.Module):
    "Counts its calls, keeps its largest input, draws"
    def __init__(self):
        super().__init__()
        self.n = 0
        self.register_buffer('largest', torch.zeros(()))
    def forward(self, x):
        self.n += 1
        self.largest.copy_(torch.maximum(self.largest, x.max()))
        return x + 0.*torch.randn_like(x)

@pytest.mark.parametrize('init', [lambda m,x: lsuv_(m, x, at='activation'), lambda m,x: init_(m, 'kaiming', x, nonlinearity='auto')])
def test_tried_on_a_copy(init, x):
    "A module that might be an activation keeps its state, its hooks are not called for a trial, no random number is drawn"
    m,calls = nn.Sequential(nn.Linear(8,8), Noise(), nn.ReLU(), nn.Linear(8,3)),[]
    m[2].register_forward_hook(lambda m,i,o: calls.append(len(o)))
    state = torch.get_rng_state()
    init(m, x)
    assert (m[1].n, m[1].largest.item())==(0, 0.) and torch.equal(state, torch.get_rng_state()) and set(calls)=={64}

class Standardized(nn.Linear):
    def forward(self, x):
        w = self.weight
        return F.linear(x, (w-w.mean(1, keepdim=True))/w.std(1, keepdim=True)*0.1, self.bias)

def test_what_an_activation_subtracts_goes_back(x):
    "with the weights of a layer that does not answer to them; that of another layer stays moved"
    m = nn.Sequential(Standardized(8,8), GeneralReLU(), nn.Linear(8,8), GeneralReLU())
    before = m[:2](x)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        r = lsuv_(m, x, at='activation')
    assert r['0']['status']=='not affine' and torch.equal(before, m[:2](x)) and m[1].sub==0
    assert abs(m(x).mean())<1e-3 and abs(m(x).std()-1)<1e-3 and m[3].sub>0.1

class OneOfTwo(nn.Module):
    def __init__(self):
        super().__init__()
        self.g = nn.Parameter(torch.ones(1))
    def forward(self, x): return (x*self.g)[...,:1]

class OverAndOver(nn.Module):
    def __init__(self):
        super().__init__()
        self.g = nn.Parameter(torch.ones(()))
    def forward(self, x): return self.g.expand(len(x))

def test_samples_of_views():
    "Every second value, or one value over and over, and nothing beside it"
    x = torch.stack([torch.ones(8192), -torch.ones(8192)], 1)
    assert init_stats(nn.Sequential(OneOfTwo(), nn.Linear(1,1)), x).df.near_zero[0]==0
    assert init_stats(nn.Sequential(OverAndOver(), nn.Linear(8192,1)), x).df['mean'][0]==1

class Mask(nn.Module):
    def forward(self, a): return a.masked_fill(torch.ones(a.shape[-2:]).triu(1).bool(), -math.inf)

class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.q,self.k,self.h,self.mask = nn.Linear(8,8),nn.Linear(8,8),nn.Linear(8,3),Mask()
    def forward(self, x): return self.h(self.mask(self.q(x)@self.k(x).transpose(1,2)).softmax(-1)@x)

@pytest.mark.parametrize('options', [dict(include_paramless=True), dict(at='activation')])
def test_minus_infinity_on_purpose(options):
    "An option that lists more rows does not turn success into an error"
    r = lsuv_(Masked(), torch.randn(16,4,8), **options)
    assert r['mask']['status']=='not finite' and (r.df['std'][r.df.scale.notna()]-1).abs().max()<1e-4

@pytest.mark.parametrize('width', [7, 8])
def test_channels_of_a_normalization(width):
    "Its channels are dimension 1, though the width has the same size"
    torch.manual_seed(0)
    m = nn.Sequential(nn.Conv2d(3,8,3,padding=1), nn.BatchNorm2d(8))
    x = torch.randn(32,3,8,width)*torch.linspace(.1,3,width)+torch.linspace(-3,3,width)
    nn.init.normal_(m[1].bias)
    lsuv_(m, x, layers=[m[1]], pre=None, center='channel')
    y = m(x)
    assert y.mean((0,2,3)).abs().max()<1e-5 and abs(y.std()-1)<1e-4

# What is zero by design, dead, or gone

class Rezero(nn.Module):
    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1))
    def forward(self, x): return x*self.alpha

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.f,self.r,self.h = nn.Linear(8,8),Rezero(),nn.Linear(8,3)
    def forward(self, x): return self.h(x + self.r(self.f(x)))

def test_zero_by_design(x):
    assert init_stats(Block(), x)['r']['status']=='zero' and 'dead' not in str(lsuv_(Block(), x))
    m = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.)
    nn.init.zeros_(m.self_attn.out_proj.weight)
    xs = torch.randn(16,4,8)
    assert init_stats(m, xs).df.status[0]==lsuv_(m, xs).df.status[0]=='zero'

@pytest.mark.parametrize('stds,words', [([1,1,50.,500.,math.nan], 'has exploded and gone to NaN or inf (first: a, at step 3)'),
    ([1,1e-3,1e-3,0.], 'has died (first: a, at step 4)'), ([1,1e-3,1,1e-3,1e-3], 'has vanished (first: a, at step 4)'),
    ([1,1e-3,1], 'the one layer has not'), ([1e-3,1,1], 'had vanished at first (first: a, until step 1)'), ([1e-3,1,50.], 'after 3 steps 1 layer of 1 has exploded (first: a, at step 3)')]) # later ones are noise
def test_when_it_began(stds, words):
    "The step at which the status began that the layer has at the end"
    w = Watched()
    for s in stds: w.add({'a':dict(type='Linear', shape=(64,8), mean=s if s!=s else float(s==0), std=s, near_zero=0., grad_std=1.)}, 1.)
    assert words in w.summary and (words[:5]!='after' or words==w.summary)

# Comparisons by training

@pytest.mark.parametrize('options,match', [(dict(sceeds=3), 'sceeds'), (dict(axs=None), 'afterwards'), (dict(figsize=(3,3)), 'afterwards')])
def test_refused_before_the_training(options, match):
    learn,steps = quiet_learner(net()),[]
    learn.model.register_forward_hook(lambda *_: steps.append(1))
    with pytest.raises(TypeError, match=match): learn.compare_inits(['kaiming'], steps=2, **options)
    assert not steps

def test_every_scheme_diverged():
    "A result, not an error"
    m = nn.Sequential(*[o for _ in range(40) for o in (nn.Linear(8 if not _ else 400,400), nn.ReLU())], nn.Linear(400,3))
    learn = quiet_learner(m)
    with learn.no_bar(), learn.no_logging(): res = learn.compare_inits(['normal'], steps=2)
    assert res.best.startswith('every scheme diverged') and res.table.diverged.eq(1).all()
    plt.close('all')

# Numbers

def test_complex_gradients():
    "As a hook of one's own sees them"
    torch.manual_seed(0)
    m,x,r = nn.Sequential(nn.Linear(4,4,dtype=torch.cfloat)),torch.randn(64,4,dtype=torch.cfloat),torch.randn(64,4)
    def _loss(o): return (o*(1+3j)).real.mul(r).sum()
    seen = []
    def _keep(m, i, o): o.register_hook(seen.append)
    h = m[0].register_forward_hook(_keep)
    _loss(m(x)).backward()
    h.remove()
    assert layer_grads(m, _loss, x, ()).item()==pytest.approx(seen[0].std().item(), rel=1e-5) and seen[0].std()>2

def test_complex_orthogonal():
    for l in orthogonal_(nn.Sequential(nn.Linear(8,32,dtype=torch.cfloat), nn.Linear(32,8,dtype=torch.cfloat))):
        w = l.weight.detach()
        w = w if len(w)<w.shape[1] else w.mH
        assert (w@w.mH-torch.eye(8)).abs().max()<1e-5

@pytest.mark.parametrize('std,far', [(1., 1e150), (1e-4, 1e-150)])
def test_beyond_squares(std, far):
    "Stds whose squares double precision does not hold"
    torch.manual_seed(0)
    m,x = nn.Sequential(*[nn.Linear(200,200) for _ in range(140 if far>1 else 60)]).double(),torch.randn(4,200).double()
    got = init_(m, 'normal', x, std=std).df['std'].iloc[-1]
    with torch.no_grad(): y = m(x)
    unit = y.abs().max()
    assert got==pytest.approx((unit*(y/unit).std()).item(), rel=1e-6) and (got>far if far>1 else 0<got<far)

# Gains

def test_gain_of_a_class():
    assert act_gain(nn.ReLU)==act_gain('relu')
    KaimingCallback(nonlinearity=nn.SiLU)
    with pytest.raises(ValueError, match='is not an elementwise function'): act_gain(nn.GLU())

class Pooled(nn.Module):
    "Each of many steps takes what is there twice"
    def __init__(self, depth):
        super().__init__()
        self.depth,self.a,self.b = depth,nn.Linear(8,8),nn.Linear(8,3)
    def forward(self, x):
        x = F.relu(self.a(x))
        for _ in range(self.depth): x = x + F.avg_pool1d(x[:,None], 3, 1, 1)[:,0]
        return self.b(input=x)

def test_auto_is_linear_in_depth():
    "2^300 ways through the graph; and a layer that is called by keyword"
    t,m = time.process_time(),Pooled(300)
    torch.manual_seed(0)
    w = kaiming_(m, nonlinearity='auto').b.weight.clone()
    torch.manual_seed(0)
    assert torch.equal(w, kaiming_(m, nonlinearity='relu').b.weight)
    assert time.process_time()-t<60

# Messages

def test_assertions_of_torch():
    for f in (lsuv_, init_stats):
        with pytest.raises(InitError, match=r'0\.self_attn \(MultiheadAttention\) failed on a batch of shape \(4, 3, 6\)'):
            f(nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)), torch.randn(4,3,6))

class Branched(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.b,self.h = nn.Linear(8,8),nn.Linear(8,8),nn.Linear(8,3)
    def forward(self, x):
        x = self.a(x)
        return self.h(x + torch.sigmoid(self.b(torch.relu(x))))

def test_target_of_its_own(x):
    "The warning names what was aimed at, and what there is"
    with pytest.warns(UserWarning, match=r'1 layer did not reach std 0.6 within 0.001 \(first: b, at 0.1\d+ after its activation\)'):
        lsuv_residual_(Branched(), x, branch_scale=.6, at='activation', center=True)

def test_waiting_ends_with_the_learner():
    "A callback that waited for a first batch in one Learner begins anew in another"
    cb,a,b = LSUVCallback(),quiet_learner(net()),quiet_learner(net())
    a.add_cb(cb)
    order = cb.order
    cb.wait('a stream')
    assert cb.order>order
    b.add_cb(cb)
    assert cb.order==order and not cb.late
    with b.no_bar(), b.no_logging(): b.fit(1, 0.)
    assert not any('initialized at the first training batch' in o for o in cb.report.notes)

# A batch, or a weight, that somebody else holds

def stds(model, *xb): return {n:o.std().item() for n,o in outputs(model, nn.Linear, *xb).items()}

CHANGES = {'scaled': lambda x: x.div_(255.), 'shifted': lambda x: x.sub_(.5), 'doubled': lambda x: x.mul_(2)}
def by_grads(m, x): return layer_grads(m, lambda y: y.square().mean(), x, ())

@pytest.mark.parametrize('change', CHANGES)
def test_batch_changed_in_place(change):
    "Each pass sees the batch that the user gave, and so does the user"
    torch.manual_seed(0)
    x = torch.randint(0, 256, (64,8)).float()
    given = x.clone()
    m = Net(lambda s,x: s.b(torch.relu(s.a(CHANGES[change](x)))), a=nn.Linear(8,8), b=nn.Linear(8,3))
    for f in (lsuv_, lsuv_residual_, partial(lsuv_, verify=False), init_stats, by_grads, layer_hists):
        f(m, x)
        assert torch.equal(x, given)
        assert stds(m, x.clone()) == pytest.approx(dict(a=1, b=1), abs=1e-4)

def test_batch_in_containers():
    "Dicts lose no item, and integers stay"
    m = Net(lambda s,d: s.b(torch.relu(s.a(d.pop('x')))), a=nn.Linear(8,8), b=nn.Linear(8,3))
    d = {'x':torch.randn(64,8)}
    lsuv_(m, d)
    assert list(d)==['x'] and stds(m, dict(d)) == pytest.approx(dict(a=1, b=1), abs=1e-4)
    m,ids = Net(lambda s,i: s.a(s.e(i.add_(1))), e=nn.Embedding(9,8), a=nn.Linear(8,3)),torch.arange(8)
    init_stats(m, ids)
    assert ids.tolist()==list(range(8))

ALIASES = {'attribute': lambda m: setattr(m, 'w', m.a.weight.data), 'buffer': lambda m: m.register_buffer('w', m.a.weight.data),
           'in a dict': lambda m: setattr(m, 'd', {'a':m.a.weight.detach()}), 'transposed': lambda m: setattr(m, 'w', m.a.weight.data.t())}

@pytest.mark.parametrize('alias', ALIASES)
@pytest.mark.parametrize('kwargs', [{}, dict(verify=False), dict(pre=None)])
def test_weight_known_elsewhere(x, alias, kwargs):
    m = Net(lambda s,x: s.b(torch.relu(s.a(x))), a=nn.Linear(8,8), b=nn.Linear(8,3))
    ALIASES[alias](m)
    r = lsuv_(m, x, **kwargs)
    assert r.df.converged.all() and stds(m, x) == pytest.approx(dict(a=1, b=1), abs=1e-4)

class Positions(nn.Module):
    def __init__(self, expand):
        super().__init__()
        self.weight,self.expand = nn.Parameter(torch.randn(1,8)*10 if expand else torch.randn(64,8)*10),expand
    def forward(self, x): return self.weight.expand(x.shape) if self.expand else self.weight[:len(x)]

@pytest.mark.parametrize('expand', [True,False])
@pytest.mark.parametrize('verify', [True,False])
def test_output_that_is_the_weight(x, expand, verify):
    m = Net(lambda s,x: s.h(s.a(x)+s.p(x)), a=nn.Linear(8,8), p=Positions(expand), h=nn.Linear(8,3))
    was = m.p(x).std().item()
    r = lsuv_(m, x, layers=[nn.Linear,Positions], verify=verify, pre=None)
    assert m.p(x).std().item()==pytest.approx(1, abs=1e-4)==r['p']['std'] and r['p']['scale']==pytest.approx(1/was, rel=1e-4)

# Branches

def branched(branch, **layers):
    "A network with one residual branch"
    def _forward(s, x):
        h = s.i(x)
        return s.h(h + branch(s, h))
    return Net(_forward, **{k:nn.Linear(8,8) for k in 'iabg'}, h=nn.Linear(8,3), **layers)

def test_stem_that_is_also_a_branch(x):
    def _loop(s, x):
        h = s.a(x)
        for _ in range(3): h = h + s.a(torch.relu(h))
        return s.h(h)
    m = Net(_loop, a=nn.Linear(8,8,bias=False), h=nn.Linear(8,3))
    assert residual_branches(m, x)=={} and lsuv_residual_(m, x).notes[0]=='no residual branches were found'
    assert m(x).std().item()==pytest.approx(1, abs=1e-4) # it was 0
    assert residual_branches(branched(lambda s,h: s.b(torch.relu(s.b(h)))), x)=={} # both inside and at the end: silent for ever

def test_gradients_that_are_not_finite(x):
    "√(x²) at 0 gives back 0·∞"
    m = branched(lambda s,h: s.b(torch.relu(s.a(h))).square().sqrt())
    assert lsuv_residual_(m, x).notes[0]=='1 residual branch ends at std 1, as a silent one would get no gradient (first: b)'
    m(x).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in m.parameters() if p.grad is not None)

def test_silent_is_said_of_what_is_silent(x):
    m = branched(lambda s,h: s.b(torch.relu(s.a(h))))
    m.b.weight = m.a.weight
    r = lsuv_residual_(m, x)
    assert r['b'].status=='tied' and r.notes[0]=='no residual branch ends in a layer that is initialized'

GATED = {'sigmoid': lambda s,h: s.b(torch.relu(s.a(h)))*torch.sigmoid(s.g(h)), 'gate first': lambda s,h: F.hardsigmoid(s.g(h))*s.b(h),
         'softmax': lambda s,h: s.b(s.a(h))*s.g(h).softmax(-1), 'SiLU by hand': lambda s,h: (lambda z: z*torch.sigmoid(z))(s.b(s.a(h)))}

@pytest.mark.parametrize('gate', GATED)
def test_gates_of_the_same_shape(x, gate):
    m = branched(GATED[gate])
    assert residual_branches(m, x)=={'b':False}
    assert lsuv_residual_(m, x).notes[0]=='1 residual branch is silent until the first step (first: b)' and not m.b.weight.any()

def test_complex_branches(x):
    m = branched(lambda s,h: s.b(s.a(h))).to(torch.cfloat)
    assert residual_branches(m, x.cfloat())=={'b':False}

# Layers that cannot be initialized, passes that cannot be hooked

class LowRank(nn.Linear):
    def __init__(self, ni, no):
        super().__init__(ni, no)
        del self.weight
        self.u,self.v = nn.Parameter(torch.randn(no,2)),nn.Parameter(torch.randn(2,ni))
    def forward(self, x): return F.linear(x, self.u@self.v, self.bias)

def test_layer_without_a_weight(x):
    m = nn.Sequential(LowRank(8,8), nn.ReLU(), nn.Linear(8,3))
    u = m[0].u.clone()
    with pytest.warns(UserWarning, match='0'): r = lsuv_(m, x)
    assert r['0'].status=='unsupported parametrization' and torch.equal(u, m[0].u) and r['2']['std']==pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match=r'0 \(LowRank\) has no weight'): lsuv_(m, x, layers=LowRank)

def test_weights_that_cannot_be_changed(x):
    m = nn.Sequential(nn.Linear(8,8))
    m[0].weight = nn.Parameter(m[0].weight.data.to_sparse_csr())
    with torch.inference_mode(): inferred = nn.Sequential(nn.Linear(8,8))
    lazy = nn.Sequential(nn.Linear(8,8), nn.LazyBatchNorm1d(affine=False))
    for o,why in ((m,'0.weight is sparse'), (inferred,'0.weight was made in inference mode'), (lazy,'1.running_mean is not built yet')):
        with pytest.raises(ValueError, match=why): lsuv_(o, x)

def test_branches_in_inference_mode():
    m = branched(lambda s,h: s.b(torch.relu(s.a(h))))
    with torch.inference_mode(): assert residual_branches(m, torch.randn(64,8))=={'b':False}

def test_gradients_through_reentrant_checkpoints(x):
    from torch.utils.checkpoint import checkpoint
    m = branched(lambda s,h: s.b(torch.relu(s.a(h))))
    plain = by_grads(m, x)
    m.f = lambda s,x: s.h(checkpoint(lambda h: h + s.b(torch.relu(s.a(h))), s.i(x), use_reentrant=True))
    assert by_grads(m, x).to_dict()==pytest.approx(plain.to_dict(), rel=1e-5)

def test_scripted_part_at_the_activation(x):
    m = nn.Sequential(nn.Linear(8,8), torch.jit.script(nn.Sequential(nn.Linear(8,8), nn.ReLU())), nn.Linear(8,8), nn.Tanh(), nn.Linear(8,3))
    r = lsuv_(m, x, at='activation', std=.6)
    assert r['2'].std_after==pytest.approx(.6, abs=1e-3)

def test_first_call_without_items(x):
    "An expert that gets no tokens at first: the later call is drawn, and its gradient measured"
    m = Net(lambda s,x: s.h(torch.cat([s.a(x[:0]), s.a(x)])), a=nn.Linear(8,8), h=nn.Linear(8,3))
    assert layer_hists(m, x)['a'].sum()==pytest.approx(1, abs=1e-5)
    assert by_grads(m, x)['a']>0
