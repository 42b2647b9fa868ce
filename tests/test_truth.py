"A report says only what a pass measured: each case is a situation that people are in, seen by hooks of the test's own."
import math, warnings
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
import pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm
from fastinit.all import *
from fastinit.tensors import first_tensor
from conftest import Net, Unchanged, copied

@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield

def measured(model, *xb, context=nullcontext):
    "Dotted name → std of each output of each layer, as it gives it, in the modes that the model is in but for dropout; in a pass of a copy"
    model,seen = copied(model),{}
    for n,m in model.named_modules():
        if isinstance(m, nn.modules.dropout._DropoutNd): m.eval()
        if not list(m.children()) or m._parameters:
            def _keep(m, i, kw, o, n=n):
                o = first_tensor(o)
                if o is not None and o.is_nested: o = o.values()
                if o is not None and o.numel()>1 and not torch._C._functorch.is_functorch_wrapped_tensor(o): seen.setdefault(n, []).append(o.detach().double().std().item())
            m.register_forward_hook(_keep, prepend=True, with_kwargs=True)
    with torch.no_grad(), context(): model(*xb)
    return seen

def true(model, *xb, eps=2e-3, context=nullcontext, f=lsuv_, may=(), **kwargs):
    "`lsuv_`, whose every row is what a pass of the test's own measures; 'ok' within twice `tol` of the target; nothing else changed"
    named = {f'{n}.{k}' for n,m in model.named_modules() for k,_ in m.named_parameters(recurse=False)}
    with context():
        report = f(model, *xb, **kwargs)
        seen = measured(model, *xb, context=context)
    done = report.df.scale.notna() if 'scale' in report.df else report.df.status.eq('ok')
    for r in report.df[done].itertuples():
        stds = seen[r.layer]
        assert any(abs(s-r.std)<=eps*max(r.std, 1e-3) for s in stds), (r.layer, r.std, stds)
        if r.status=='ok' and kwargs.get('at')!='activation':
            target = getattr(r, 'target', report.target)
            assert any(abs(s/target-1)<=eps for s in stds) or not r.converged, (r.layer, stds)
    return report

def all_ok(report, *names, eps=2e-3):
    for n in names: assert report[n].status=='ok' and abs(report[n]['std']-report.target)<=eps*report.target, (n, report[n])

class Times(nn.Module):
    def __init__(self, k):
        super().__init__()
        self.k = k
    def forward(self, x): return self.k*x

x = torch.randn(64, 30, generator=torch.Generator().manual_seed(0))
im = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))

# "std 1, ok", measured otherwise

def test_tied_autoencoder():
    net = Net(lambda s,x: s.out(F.linear(s.enc(x).relu(), s.enc.weight.t())), enc=nn.Linear(30,10), out=nn.Linear(30,5))
    all_ok(true(net, x), 'enc', 'out')

@pytest.mark.parametrize('how', ['part','transposed','data'])
def test_weights_that_share_memory(how):
    net = nn.Sequential(nn.Linear(30,30), nn.ReLU(), nn.Linear(30,30), nn.ReLU(), nn.Linear(30,5))
    w = net[0].weight
    net[2].weight = nn.Parameter(w.t()) if how=='transposed' else nn.Parameter(w.detach()) if how=='part' else nn.Parameter(w.data)
    assert net[2].weight.data_ptr()==w.data_ptr()
    r = true(net, x)
    all_ok(r, '0', '4')
    assert r['2'].status=='tied'

def test_a_users_hook_changes_the_output():
    net = nn.Sequential(nn.Linear(30,30), nn.Linear(30,30), nn.Linear(30,5))
    net[0].register_forward_hook(lambda m,i,o: torch.tanh(3*o))
    net.register_forward_hook(lambda m,i,o: o*10)
    all_ok(true(net, x), '0', '1', '2')

def test_a_hook_before_changes_the_weight():
    net = nn.Sequential(nn.Linear(30,30,bias=False), nn.ReLU(), nn.Linear(30,5))
    def _unit(m, i): m.weight.data.div_(m.weight.data.norm())
    net[0].register_forward_pre_hook(_unit)
    before = net[0].weight.detach().clone()
    r = true(net, x)
    assert r['0'].status=='not affine' and torch.equal(before, net[0].weight)
    all_ok(r, '2')

def test_autocast():
    net = nn.Sequential(nn.Linear(30,64), nn.ReLU(), nn.Linear(64,64), nn.ReLU(), nn.Linear(64,5))
    context = lambda: torch.autocast('cpu', torch.bfloat16)
    with context():
        net(x) # which keeps 16-bit copies of the weights
        r = lsuv_(net, x)
        inside = {n:v[0] for n,v in measured(net, x).items()}
        with torch.no_grad(): y = net(x)
    all_ok(r, '0', '2', '4', eps=0.02) # in 16 bits
    assert all(abs(inside[n]-1)<=0.02 for n in '024') and abs(y.double().std()-1)<=0.02

class MaxNorm(nn.Conv2d):
    "As in EEGNet: the weight is renormed in each forward"
    def forward(self, x):
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=0.1)
        return super().forward(x)

def test_max_norm():
    net = nn.Sequential(MaxNorm(3,8,3), nn.ReLU(), nn.Conv2d(8,4,3))
    before,data = net[0].weight.detach().clone(),net[0].weight.data_ptr()
    r = true(net, im)
    assert r['0'].status=='not affine' and torch.equal(before, net[0].weight) and net[0].weight.data_ptr()==data
    all_ok(r, '2')

def test_a_bias_does_not_answer_for_the_weight():
    "As by the spread of its channels: it would be scaled until they are at std 1, and the weight counts for nothing"
    net = nn.Sequential(MaxNorm(3,8,3), nn.ReLU(), nn.Conv2d(8,4,3))
    weight,bias = net[0].weight.detach().clone(),net[0].bias.detach().clone()
    r = true(net, im, pre=None)
    assert r['0'].status=='not affine' and torch.equal(weight, net[0].weight) and torch.equal(bias, net[0].bias)
    all_ok(r, '2')

def test_frozen_normalization():
    net = nn.Sequential(nn.Conv2d(3,8,3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8,4,3)).train()
    net[1].running_var.fill_(25.)
    net[1].eval()
    r = true(net, im)
    all_ok(r, '0', '3')
    assert 'evaluation mode' in str(r) and not net[1].training and net.training

def test_an_expert_without_tokens():
    def _forward(s, x):
        h = torch.cat([s.expert(x[:0]), s.other(x)])
        return s.out(torch.cat([h[:32], s.expert(h[32:])]).relu())
    net = Net(_forward, expert=nn.Linear(30,30), other=nn.Linear(30,30), out=nn.Linear(30,5))
    all_ok(true(net, x), 'expert', 'other', 'out')
    assert init_stats(net, x)['expert']['std']>0.5
    never = Net(lambda s,x: s.out(torch.cat([s.expert(x[:0]), x])), expert=nn.Linear(30,30), out=nn.Linear(30,5))
    before = never.expert.weight.detach().clone()
    r = true(never, x)
    assert r['expert'].status=='not called' and torch.equal(before, never.expert.weight)
    assert 'expert' not in list(init_stats(never, x).df.layer)

def test_zero_state_of_a_cell():
    def _forward(s, x):
        h = torch.zeros(len(x), 20)
        for _ in range(3): h = torch.tanh(s.i(x) + s.h(h))
        return s.out(h)
    net = Net(_forward, i=nn.Linear(30,20), h=nn.Linear(20,20,bias=False), out=nn.Linear(20,5))
    all_ok(true(net, x), 'i', 'h', 'out')

def test_calls_that_differ_are_told():
    net = Net(lambda s,x: s.b(s.a(s.a(x).relu()*10)), a=nn.Linear(30,30), b=nn.Linear(30,5))
    r = true(net, x)
    assert 'a gave a std from 1 to ' in str(r) and ' in 2 calls' in str(r)

class Standardized(nn.Conv2d):
    def forward(self, x):
        w = self.weight
        w = (w-w.mean((1,2,3), keepdim=True))/w.std((1,2,3), keepdim=True)
        return F.conv2d(x, w, self.bias)

@pytest.mark.parametrize('pre', ['kaiming','orthogonal',None])
def test_left_alone_to_the_bit(pre):
    "Weight-standardized, never called, and used by name: named, with the weights that they had"
    def _forward(s, x): return s.out(F.linear(s.std(x).flatten(1), s.by_name.weight, s.by_name.bias).relu())
    net = Net(_forward, std=Standardized(3,8,3), by_name=nn.Linear(800,20), aux=nn.Linear(20,20), out=nn.Linear(20,5))
    may = {'out.weight','out.bias'}
    with Unchanged(net, may): r = true(net, im, pre=pre)
    assert {n:r[n].status for n in ('std','by_name','aux')}=={'std':'not affine','by_name':'not called','aux':'not called'}
    all_ok(r, 'out')

def test_attention_pool():
    "Layers used through `F.multi_head_attention_forward`, as in CLIP"
    def _forward(s, x):
        return s.out(F.multi_head_attention_forward(x, x, x, 30, 3, None, torch.cat([s.q.bias,s.k.bias,s.v.bias]), None, None, False, 0., s.c.weight, s.c.bias,
            use_separate_proj_weight=True, q_proj_weight=s.q.weight, k_proj_weight=s.k.weight, v_proj_weight=s.v.weight)[0])
    net = Net(_forward, **{k:nn.Linear(30,30) for k in 'qkvc'}, out=nn.Linear(30,5))
    q = torch.randn(7,8,30)
    with Unchanged(net, {'out.weight','out.bias'}): r = true(net, q)
    assert all(r[k].status=='not called' for k in 'qkvc')
    all_ok(r, 'out')

def test_quantization_aware():
    from torch.ao.quantization import get_default_qat_qconfig, prepare_qat
    net = nn.Sequential(nn.Conv2d(3,8,3), nn.ReLU(), nn.Flatten(), nn.Linear(800,10)).train()
    net.qconfig = get_default_qat_qconfig('fbgemm')
    net = prepare_qat(net)
    was = deepcopy(net.state_dict())
    r = lsuv_(net, im)
    seen = measured(net, im)
    for n in ('0','3'):
        assert r[n].status=='not affine' and torch.equal(net.get_submodule(n).weight, was[f'{n}.weight']) or abs(seen[n][0]-1)<=0.02
    assert all(torch.equal(v, was[k]) for k,v in net.state_dict().items() if not k.endswith(('.weight','.bias')))

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.half])
def test_16_bits(dtype):
    "What rounding leaves is said: no row is converged that is off by more than tol"
    net = nn.Sequential(*[o for _ in range(4) for o in (nn.Linear(30,30), nn.ReLU())], nn.Linear(30,5)).to(dtype)
    r = true(net, x.to(dtype))
    for row in r.df[r.df.scale.notna()].itertuples(): assert row.converged==(abs(row.std-1)<=1e-3)

def test_zero_layer_in_the_middle():
    net = nn.Sequential(nn.Linear(30,30), nn.ReLU(), nn.Linear(30,30,bias=False), nn.ReLU(), nn.Linear(30,5,bias=False))
    nn.init.zeros_(net[2].weight)
    r = true(net, x)
    assert list(r.df.status)==['ok','zero','zero'] and 'activation' not in r.advice and 'off target' not in r.advice

class Custom(nn.Module):
    def forward(self, x): return torch.where(x>0, x, 0.3*x) + 0.1*torch.sin(x)

ACTS = dict(prelu=nn.PReLU(), many_prelu=nn.PReLU(30), sin=torch.sin, clamp=lambda o: o.clamp(-1.5,1.5), method=lambda o: o.tanh(), custom=Custom(), own=lambda o: o*torch.sigmoid(1.5*o),
            f_prelu=lambda o: F.prelu(o, torch.tensor([.1])), swish=nn.SiLU(), scaled=lambda o: (2*o).relu(), scaled_view=lambda o: (o.view(-1)*2).tanh().view_as(o), scaled_transposed=lambda o: ((o.t()*2).view(-1,2,len(o))-1).tanh().view(-1,len(o)).t(),
            inplace=lambda o: F.leaky_relu_(o, 0.2))

@pytest.mark.parametrize('act', ACTS)
def test_after_any_activation(act):
    "The std after the activation is 1 as the test sees it, or said not to be"
    f,seen = ACTS[act],[]
    def _forward(s, x):
        h = s.act(s.a(x)) if isinstance(f, nn.Module) else f(s.a(x))
        seen.append(h.detach().double().std().item())
        return s.b(h)
    net = Net(_forward, a=nn.Linear(30,30), b=nn.Linear(30,5), **({'act':deepcopy(f)} if isinstance(f, nn.Module) else {}))
    r = true(net, x, at='activation')
    seen.clear()
    with torch.no_grad(): net(x)
    if act not in ('own','sin'): assert r['a'].converged # there is no such scale for a sine; `own` begins with a sigmoid
    if r['a'].converged and abs(r['a']['std']-1)>2e-3: assert abs(seen[0]-1)<=5e-3, seen
    elif act not in ('own','sin'): assert abs(seen[0]-1)<=5e-3, seen
    all_ok(r, 'b')

def test_siren():
    "w0 = 30: what is made of the layer is found, and the scale where there is one"
    seen = []
    def _forward(s, x):
        h = torch.sin(30*s.a(x))
        seen.append(h.double().std().item())
        return s.b(h)
    net = Net(_forward, a=nn.Linear(30,30), b=nn.Linear(30,5))
    r = lsuv_(net, x, at='activation', std=.6)
    seen.clear(); net(x)
    assert r['a'].converged and abs(seen[0]-.6)<=3e-3, seen
    assert r['a'].status=='ok' and r['a']['std']<0.06 and abs(r['a'].std_after-seen[0])<=1e-5 and not r.advice # a sine wants so small an input
    assert 'std_after' in str(r) and math.isnan(r['b'].std_after)

def test_where_an_activation_is_saturated():
    "A tanh has a std of 1 only there: the report says so, and not that there is no weight"
    r = lsuv_(nn.Sequential(nn.Linear(30,30), nn.Tanh(), nn.Linear(30,5)), x, at='activation')
    assert list(r.df.status)==['exploding','ok','ok'] and abs(r['0'].std_after-1)<=1e-3 and 'saturated' in r.advice and 'scaled nothing' not in r.advice
    assert 'scaled nothing' in lsuv_(nn.Sequential(nn.Linear(30,30), Times(100.), nn.Linear(30,5)), x, at='activation', include_paramless=True).advice

@pytest.mark.parametrize('f', [partial(lsuv_, center='channel'), lsuv_residual_])
def test_one_value_a_channel(f):
    "A batch of one, and a layer that gives the same for every item: no channel has a spread, all values together have"
    net = nn.Sequential(nn.Conv2d(3,8,3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8,20), nn.ReLU(), nn.Linear(20,4))
    all_ok(true(net, im[:1], f=f), '0', '4', '6')
    def _forward(s, x): return s.a(x) + s.b(s.token).expand(len(x), -1)
    r = true(Net(_forward, a=nn.Linear(30,20), b=nn.Linear(16,20), token=nn.Parameter(torch.randn(1,16))), x, f=f)
    all_ok(r, 'a', 'b')
    assert r['b'].converged and r['b'].std_before>0.1 and r['b'].mean_before!=0 and abs(r['b']['mean'])<1e-5

def test_a_channel_with_a_spread_in_a_later_call():
    "The zero state of a cell has one value a channel, the bias: the call after it counts"
    def _forward(s, x):
        h = x.new_zeros(len(x), 20)
        for _ in range(3): h = torch.tanh(s.i(x) + s.h(h))
        return h
    net = Net(_forward, i=nn.Linear(30,20), h=nn.Linear(20,20))
    lsuv_(net, x, pre=None, center='channel')
    calls = [s for s in measured(net, x)['h']]
    o = net.h(torch.tanh(net.i(x) + net.h(torch.zeros(64,20))))
    assert (o-o.mean(0)).std().item()==pytest.approx(1, abs=0.05) and calls[0]<1, calls

# Something else changed

class Reset(nn.Module):
    "A method `reset` of its own, that nobody may call"
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(30,30)
    def reset(self): raise AssertionError('reset was called')
    def forward(self, x): return self.a(x)

def test_nothing_but_forward_is_called():
    net = Reset()
    init_stats(net, x); layer_hists(net, x)
    all_ok(true(net, x), 'a')

class Stateful(nn.Module):
    "Spikes, counts, caches, draws, renorms and writes parameters"
    def __init__(self):
        super().__init__()
        self.v,self.n,self.cache,self.gen = torch.zeros(30),0,{'k':[torch.ones(2)]},torch.Generator().manual_seed(1)
        self.scale,self.known = nn.Parameter(torch.ones(30)),False
        self.register_buffer('wide', torch.ones(1).expand(30))
        self.register_buffer('count', torch.tensor(0))
        self.a,self.b = nn.Linear(30,30),nn.Linear(30,5)
    def forward(self, x):
        h = self.a(x)
        if not self.known: # ActNorm's data-dependent start
            self.scale.data = 1/h.std(0)
            self.known = True
        self.v += h.mean(0)
        self.n += 1
        self.count += 1
        self.cache['k'].append(h); self.cache['k'][0] += 1
        self.last = h
        return self.b((h + torch.randn(h.shape, generator=self.gen))*self.scale*self.wide + 0.1*self.v)

@pytest.mark.parametrize('f', [lambda m: lsuv_(m, x), lambda m: lsuv_(m, x, at='activation'), lambda m: lsuv_residual_(m, x), lambda m: init_stats(m, x), lambda m: layer_hists(m, x)])
def test_state_is_put_back(f):
    net = Stateful()
    v,gen,item = net.v,net.gen.get_state(),net.cache['k'][0]
    with Unchanged(net, {'a.weight','a.bias','b.weight','b.bias'}): f(net)
    assert net.v is v and not v.any() and net.n==0 and not net.known and not hasattr(net, 'last')
    assert len(net.cache['k'])==1 and net.cache['k'][0] is item and torch.equal(item, torch.ones(2)) and torch.equal(net.gen.get_state(), gen)
    assert net.count==0 and torch.equal(net.wide, torch.ones(30))

def test_state_does_not_count():
    all_ok(true(Stateful(), x), 'a', 'b')

def test_embedding_max_norm_and_padding():
    net = Net(lambda s,i: s.out(s.emb(i).flatten(1)), emb=nn.Embedding(20, 8, padding_idx=3, max_norm=0.5), out=nn.Linear(40,5))
    i = torch.randint(0, 20, (16,5))
    with Unchanged(net, {'out.weight','out.bias'}): lsuv_(net, i); init_stats(net, i)
    net = Net(net.f, emb=nn.Embedding(20, 8, padding_idx=3), out=nn.Linear(40,5))
    for f in (lambda m: lsuv_(m, i, layers=(nn.Embedding,nn.Linear)), lambda m: normal_(m, layers=nn.Embedding), lambda m: kaiming_(m, layers=nn.Embedding)):
        f(net)
        assert not net.emb.weight[3].any() and net.emb.weight[4].all()

def test_spectral_norms_vectors_stay():
    net = nn.Sequential(spectral_norm(nn.Linear(30,30)), nn.ReLU(), nn.Linear(30,5)).train()
    p = net[0].parametrizations.weight[0]
    u,v = p._u.clone(),p._v.clone()
    for f in (lambda: lsuv_(net, x), lambda: init_stats(net, x), lambda: kaiming_(net), lambda: init_layers(net), lambda: residual_branches(net, x), lambda: pytest.raises(InitError, lsuv_, net, x[:,:2])):
        f()
        assert torch.equal(u, p._u) and torch.equal(v, p._v)

# Raw Python errors

@pytest.mark.parametrize('f', [lambda s,x: s.b(s.a(input=x)), lambda s,x: s.b.forward(s.a(x)), lambda s,x: s.b(torch.func.vmap(s.a)(x)),
                               lambda s,x: s.b(torch.func.functional_call(s.a, dict(s.a.named_parameters()), (x,)))], ids=['keyword','forward','vmap','functional_call'])
def test_unusual_calls(f):
    net = Net(f, a=nn.Linear(30,30), b=nn.Linear(30,5))
    r = true(net, x)
    assert all(o in ('ok','not called','unsupported output') for o in r.df.status), r
    init_stats(net, x)

@pytest.mark.parametrize('layout', [torch.strided, torch.jagged])
def test_nested_tensors(layout):
    "Sequences of different lengths without padding: what counts is what is in them"
    parts = [torch.randn(n, 30, generator=torch.Generator().manual_seed(n)) for n in (3,40,7)]
    xn = torch.nested.nested_tensor(parts, layout=layout)
    def _net(): return Net(lambda s,x: s.out(x + s.b(F.relu(s.a(x)))), a=nn.Linear(30,30), b=nn.Linear(30,30), out=nn.Linear(30,5))
    net = _net()
    all_ok(true(net, xn), 'a', 'b', 'out')
    assert F.linear(torch.cat(parts), net.a.weight, net.a.bias).std().item()==pytest.approx(1, abs=1e-3)
    assert init_stats(net, xn)['a']['std']==pytest.approx(1, abs=1e-3) and layer_hists(net, xn).sum().tolist()==pytest.approx([1]*3)
    grads = layer_grads(net, lambda y: y.values().pow(2).mean(), xn, ())
    dense = layer_grads(net, lambda y: y.pow(2).mean(), torch.cat(parts), ())
    assert grads.to_dict()==pytest.approx(dense.to_dict(), rel=1e-4)
    net = _net()
    r = true(net, xn, at='activation')
    assert r['a'].converged and F.linear(torch.cat(parts), net.a.weight, net.a.bias).relu().std().item()==pytest.approx(1, abs=1e-3)
    r = lsuv_residual_(_net(), xn)
    assert r['b'].status=='zero' and r['b']['std']==0 and r['out'].status=='ok'

def test_output_size_by_keyword():
    net = Net(lambda s,x: s.b(s.a(x, output_size=[25,25])), a=nn.ConvTranspose2d(3,4,3,stride=2), b=nn.Conv2d(4,2,3))
    all_ok(true(net, im), 'a', 'b')

@pytest.mark.parametrize('center', [True,False])
def test_gradients_within_the_forward(center):
    "Forces, as in physics-informed networks"
    def _forward(s, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            e = s.b(torch.tanh(s.a(x))).sum()
            return torch.autograd.grad(e, x, create_graph=True)[0]
    net = Net(_forward, a=nn.Linear(30,30), b=nn.Linear(30,1))
    all_ok(true(net, x, center=center), 'a', 'b')

def test_no_inputs_at_all():
    net = Net(lambda s,x: s.b(torch.cat([s.a(x[:,:0]), x], 1)), a=nn.Linear(0,4), b=nn.Linear(34,5))
    all_ok(true(net, x), 'b')

@pytest.mark.parametrize('pre', ['kaiming','orthogonal','xavier','default'])
def test_recurrent_in_bfloat16(pre):
    net = Net(lambda s,x: s.out(s.rnn(x)[0]), rnn=nn.GRU(30,16,batch_first=True), out=nn.Linear(16,5)).to(torch.bfloat16)
    all_ok(lsuv_(net, torch.randn(8,6,30).bfloat16(), pre=pre), 'out', eps=0.02)

def test_compiled_method():
    net = Net(lambda s,x: s.b(s.g(x)), a=nn.Linear(30,30), b=nn.Linear(30,5))
    net.g = torch.compile(lambda x: F.gelu(net.a(x)), backend='eager')
    for at in ('layer','activation'): assert lsuv_(net, x, at=at)['b'].status=='ok'

def test_residual_of_inputs_that_are_no_batches():
    "An edge list and class weights go on as they are"
    def _forward(s, x, edges, w):
        h = s.a(x)
        h = h + s.b(torch.zeros_like(h).index_add(0, edges[1], h[edges[0]])).relu()
        return s.out(h)*w
    net = Net(_forward, a=nn.Linear(30,16), b=nn.Linear(16,16), out=nn.Linear(16,5))
    lsuv_residual_(net, x, torch.randint(0, 64, (2,200)), torch.ones(5))

@pytest.mark.parametrize('add', [lambda h,f: h-f, lambda h,f: torch.lerp(h, h+f, 0.5), lambda h,f: torch.add(h, f, alpha=0.3), lambda h,f: h.add(f, alpha=2), lambda h,f: torch.sub(h, f)],
                         ids=['minus','lerp','alpha','method','sub'])
def test_residual_sums(add):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b = nn.Linear(30,30),nn.Linear(30,30)
        def forward(self, x): return add(x, self.b(self.a(x).relu()))
    net = nn.Sequential(nn.Linear(30,30), Block(), Block(), nn.Linear(30,5))
    assert list(residual_branches(net, x))==['1.b','2.b']

def test_checkpointed_branches():
    from torch.utils.checkpoint import checkpoint
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b = nn.Linear(30,30),nn.Linear(30,30)
        def forward(self, x): return x + checkpoint(lambda x: self.b(self.a(x).relu()), x, use_reentrant=True)
    net = nn.Sequential(nn.Linear(30,30), Block(), nn.Linear(30,5))
    assert list(residual_branches(net, x))==['1.b']

def test_a_hand_written_rnn_is_no_residual_network():
    def _forward(s, x):
        h = s.i(x[:,0])
        for t in range(1, 4): h = torch.tanh(s.i(x[:,t]) + s.h(h))
        return s.out(h)
    net,seq = Net(_forward, i=nn.Linear(30,16), h=nn.Linear(16,16), out=nn.Linear(16,5)),torch.randn(64,4,30)
    r = true(net, seq, f=lsuv_residual_)
    assert r['h']['std']>0.5 and 'silent' not in str(r)

# Nothing said

def test_conv1d_of_transformers():
    from transformers.pytorch_utils import Conv1D
    net = nn.Sequential(Conv1D(90, 30), nn.ReLU(), Conv1D(20, 90))
    kaiming_(net)
    assert abs(net[0].weight.std()-(2/30)**.5)<0.01 and abs(net[2].weight.std()-(2/90)**.5)<0.01
    assert fans(net[0])==(30,90)
    for center in (True,'channel'): all_ok(true(net, x, center=center), '0', '2')

class GraphConv(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(i, o))
    def forward(self, x): return x@self.weight

class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(4, 30, 30))
    def forward(self, x): return (x@self.w1).sum(0)

def test_unknown_weights_are_named():
    net = nn.Sequential(GraphConv(30,30), Experts(), nn.Linear(30,5))
    for r in (true(net, x), init_(net, 'kaiming', x), init_(net, 'lsuv', x)):
        assert '2 weights in 2 modules of unknown type (GraphConv, Experts; first: 0): not initialized; name them in `layers=`' in str(r)
    r = true(net, x, layers=(GraphConv, nn.Linear))
    assert 'unknown type' not in str(r)
    all_ok(r, '0', '2')

def test_layers_made_in_the_forward():
    class Late(nn.Module):
        def forward(self, x):
            if not hasattr(self, 'fc'): self.fc = nn.Linear(x.shape[1], 5)
            return self.fc(x)
    net = nn.Sequential(nn.Linear(30,30), Late())
    r = lsuv_(net, x)
    assert 'makes fc in its forward' in str(r) and not hasattr(net[1], 'fc')
    net(x)
    all_ok(true(net, x), '0', '1.fc')

def test_weights_of_a_functional_call():
    "A layer that is called with its own weights is scaled; with others, made of them or by another network, it is left alone"
    def _with(change): return lambda s, x: s.b(torch.func.functional_call(s.a, {k:change(p) for k,p in s.a.named_parameters()}, (x,)).relu())
    for change,status in ((lambda p: p,'ok'), (lambda p: p*0.5,'not affine'), (lambda p: nn.Parameter(p*0.5),'not affine'), (torch.zeros_like,'not affine')):
        net = Net(_with(change), a=nn.Linear(30,20), b=nn.Linear(20,5))
        before = [p.clone() for p in net.a.parameters()]
        for kw in ({}, dict(at='activation'), dict(center='channel')):
            r = true(net, x, **kw)
            assert r['a'].status==status
            assert all(torch.equal(p, q) for p,q in zip(before, net.a.parameters()))==(status!='ok')

def test_remedies_fit_what_was_done():
    net = nn.Sequential(nn.Linear(30,30), nn.LayerNorm(30), nn.Linear(30,5))
    nn.init.constant_(net[1].weight, 1e-3)
    assert 'initialize with LSUV or Kaiming' in init_stats(net, x).advice
    r = lsuv_(net, x)
    assert r['1'].status=='vanishing' and 'initialize with' not in r.advice
    assert 'Kaiming' not in init_(net, 'kaiming', x).advice

class OwnNorm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))
    def forward(self, x): return self.weight*x*torch.rsqrt(x.square().mean(-1, keepdim=True)+1e-6)

@pytest.mark.parametrize('norm', [nn.RMSNorm, nn.LayerNorm, OwnNorm])
def test_normalizations_start_variance_anew(norm):
    net = nn.Sequential(nn.Linear(30,400), nn.ReLU(), norm(400), nn.Linear(400,400))
    kaiming_(net, nonlinearity='auto')
    assert abs(net[3].weight.std()*400**.5-1)<0.02

# Messages

def fails(error, match, f, *args, **kwargs):
    with pytest.raises(error, match=match): f(*args, **kwargs)

def test_an_embedding_has_a_weight():
    net,i = nn.Sequential(nn.Embedding(50,16), nn.Linear(16,4)),torch.randint(0, 50, (8,6))
    nn.init.normal_(net[0].weight, std=.02)
    r = true(net, i)
    assert r['0'].status=='vanishing' and r.advice.startswith('1 vanishing (0): an embedding is initialized only if it is named in `layers=`')
    all_ok(true(net, i, layers=(nn.Embedding,nn.Linear)), '0', '1')

def test_weights_that_are_in_no_layer():
    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.ParameterList([nn.Parameter(torch.randn(5,30))])
        def forward(self, x): return F.linear(x, self.w[0])
    fails(ValueError, 'initialize its weights by hand; it has ParameterList$', lsuv_, M(), x)
    fails(ValueError, 'choose with `layers=`; it has GraphConv$', lsuv_, GraphConv(30, 20), x)

def test_messages():
    from torch.utils.data import DataLoader
    net,y = nn.Sequential(nn.Linear(30,30), nn.ReLU(), nn.Linear(30,5)),torch.zeros(64)
    with Unchanged(net):
        fails(InitError, 'without the targets', lsuv_, net, [x, y])
        fails(InitError, 'without the targets', lsuv_, net, (x, y))
        fails(InitError, r"batch\['x'\]", lsuv_, net, {'x':x})
        fails(InitError, 'from_numpy', lsuv_, net, x.numpy())
        fails(InitError, 'next', lsuv_, net, DataLoader([0]))
        fails(InitError, 'leave out the targets', lsuv_, net, x, y)
        fails(InitError, "on cpu: pass the batch there", lsuv_, net, x.to('meta'))
        fails(InitError, "pre='kaiming'", lsuv_, net, 'kaiming')
        fails(ValueError, 'near: 0, 2', lsuv_, net, x, layers='zzz')
        fails(ValueError, 'chooses none; it has Linear', lsuv_, net, x, layers=[nn.Conv2d])
        fails(KeyError, "no layer 'typo'", lambda: init_stats(net, x)['typo'])

def test_a_constant_first_call_in_channels():
    "The row is that of the call that was corrected, though the first has a spread over the channels"
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.i,self.h,self.o = nn.Linear(8,8),nn.Linear(8,8),nn.Linear(8,3)
        def forward(self, x):
            h = x.new_zeros(len(x), 8)
            for t in range(3): h = torch.tanh(self.i(x[:,t])+self.h(h))
            return self.o(h)
    torch.manual_seed(0)
    m,seen = Cell(),[]
    x = torch.randn(32,3,8)
    r = lsuv_(m, x, center='channel')
    m.h.register_forward_hook(lambda m,i,o: seen.append(o.std().item()))
    with torch.no_grad(): m(x)
    assert r['h']['std']==pytest.approx(seen[1], rel=1e-4)==pytest.approx(1, abs=0.02) and abs(seen[0]-seen[1])>0.1

def test_zero_weight_with_a_bias():
    "A normalization that begins at 0, as fastai's with a bias of 0.001, is so by design"
    m = nn.Sequential(nn.Linear(20,8), nn.BatchNorm1d(8))
    m[1].weight.data.zero_()
    m[1].bias.data.fill_(1e-3)
    for r in (init_stats(m, torch.randn(16,20)), lsuv_(m, torch.randn(16,20))): assert list(r.df.status)==['ok','zero'] and not r.advice

@pytest.mark.parametrize('at', ['layer','activation'])
def test_off_by_rounding(at):
    "Not for want of a scale, and in digits that show it"
    m = nn.Sequential(nn.Linear(20,64), nn.Linear(64,64), nn.Linear(64,5)).bfloat16()
    with pytest.warns(UserWarning, match=r'did not reach std 1 within 1e-05 \(first: \w, at (0.9|1.0)\d+\)'): r = lsuv_(m, torch.randn(64,20).bfloat16(), at=at, tol=1e-5)
    assert 'off target' in r.advice and 'the std does not follow the weight alone' in r.advice
