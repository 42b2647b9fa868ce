"Residual branches in whole architectures, and LSUV per channel and per branch: exact, in one pass of the batch, and nothing else changed."
import warnings
import pytest, torch, torchvision.models as tv
from torch import nn
import torch.nn.functional as F
from fastai.vision.all import Learner, ResBlock, create_body, resnet18, xresnet18, xresnet50, DynamicUnet
from fastai.test_utils import synth_learner
from fastinit.all import *
from fastinit.article import remove_norm
from fastinit.branches import never_heard
from conftest import Unchanged, outputs

def count(model, *xb): return len(residual_branches(model, *xb))

class Block(nn.Module):
    def __init__(self, d, way): super().__init__(); self.way,self.a,self.b,self.p = way,nn.Linear(d,d),nn.Linear(d,d),nn.Linear(d,d)
    def forward(self, x):
        f = lambda x: self.b(F.relu(self.a(x)))
        if self.way=='plain': return x + f(x)
        if self.way=='in place': return F.relu(f(x).add_(x), inplace=True)
        if self.way=='projection': return self.p(x) + f(x)
        if self.way=='scaled': return x*0.5 + 2*F.dropout(f(x), 0.1, self.training)
        if self.way=='gated': return x + f(x)*torch.sigmoid(self.p(x)).mean(-1, keepdim=True)
        if self.way=='parallel': return self.a(x) + self.b(x) # two layers side by side: no branch
        if self.way=='side by side': return x + f(x) + self.p(x)
        if self.way=='summed first': return (f(x) + self.p(x)) + x
        if self.way=='summed': return x + sum([F.relu(f(x)), self.p(x)])
        if self.way=='concatenated': return torch.cat([x, f(x)], -1)[:,:x.shape[-1]]
        if self.way=='seen elsewhere':
            self.seen = f(x)
            return x + self.seen

WAYS = dict(plain=['b'], **{'in place':['b'], 'projection':['b'], 'scaled':['b'], 'gated':['b'], 'parallel':[], 'side by side':['b','p'], 'summed first':['b','p'], 'summed':['b','p'], 'concatenated':[]})

@pytest.mark.parametrize('way', WAYS)
def test_ways(way):
    model,x = nn.Sequential(nn.Linear(8,8), nn.ReLU(), Block(8, way), nn.ReLU(), nn.Linear(8,3)),torch.randn(5,8)
    with Unchanged(model): b = residual_branches(model, x)
    assert list(b)==[f'2.{o}' for o in WAYS[way]] and not any(b.values())

class End(nn.Module):
    "A branch that ends in one layer, and what becomes of that"
    def __init__(self, end): super().__init__(); self.end,self.a,self.b,self.alpha = end,nn.Linear(8,8),nn.Linear(8,8),nn.Parameter(torch.zeros(1) if end=='rezero' else torch.full((1,), 1e-6))
    def forward(self, x):
        h = self.b(self.a(x).relu())
        if self.end=='relu': h = F.relu(h)
        if self.end=='in place': h = h.relu_()
        if self.end in ('rezero','layer scale'): h = self.alpha*h
        if self.end=='gate': h = h*torch.sigmoid(x).mean(1, keepdim=True)
        if self.end=='leaky': h = F.leaky_relu(h)
        return x + h

ENDS = {'plain':False, 'relu':True, 'in place':True, 'rezero':True, 'layer scale':False, 'gate':False, 'leaky':False}

@pytest.mark.parametrize('end', ENDS)
@pytest.mark.parametrize('head', [True, False])
def test_a_silent_branch_learns(end, head):
    "Every weight moves in a few steps; where nothing comes back to a layer that is 0, it is not silenced. Also under a head that is 0"
    torch.manual_seed(0)
    model,x = nn.Sequential(nn.Linear(8,8), End(end), End(end), nn.Linear(8,3)),torch.randn(64,8)
    if not head:
        for p in model[3].parameters(): nn.init.zeros_(p)
    with Unchanged(model): assert never_heard(model, ['1.b','2.b'], x)==({'1.b','2.b'} if ENDS[end] else set())
    r = lsuv_residual_(model, x)
    note = r.notes[0]
    if ENDS[end]: assert note=='2 residual branches end at std 0.707, as a silent one would get no gradient (first: 1.b)'
    else: assert note=='2 residual branches are silent until the first step (first: 1.b)'
    for n in ('1.b','2.b'): assert r[n]['std']==pytest.approx(0.5**0.5 if ENDS[end] else 0., abs=1e-5)
    before,opt = {n:p.clone() for n,p in model.named_parameters()},torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(5):
        opt.zero_grad()
        F.cross_entropy(model(x), torch.arange(64)%3).backward()
        opt.step()
    assert [n for n,p in model.named_parameters() if torch.equal(p, before[n]) and p.grad is not None]==[]

def test_a_layer_of_two_branches_is_heard_in_one():
    a,b = End('relu'),End('plain')
    b.b = a.b
    for model in (nn.Sequential(a, b), nn.Sequential(b, a)):
        name = '0.b' # the name of its first place
        assert list(residual_branches(model, torch.randn(5,8)))==[name] and never_heard(model, [name], torch.randn(5,8))==set()

class Sum(nn.Module):
    def __init__(self, f, **layers):
        super().__init__()
        for k,v in layers.items(): setattr(self, k, v)
        self.f = f
    def forward(self, *xs): return self.f(self, *xs)

def test_sums_of_several():
    "What does not come from the stream is no branch, nor is then the sum with it; a normalization after the sum is one after each"
    lin = lambda: nn.Linear(8,8)
    time = Sum(lambda s, x, t: x + (s.b(s.a(x).relu()) + s.t(t)), a=lin(), b=lin(), t=lin())
    assert residual_branches(time, torch.randn(5,8), torch.randn(5,8))=={}
    normed = Sum(lambda s, x: x + s.n(s.b(s.a(x).relu()) + s.d(s.c(x).relu())), a=lin(), b=lin(), c=lin(), d=lin(), n=nn.LayerNorm(8))
    assert residual_branches(nn.Sequential(lin(), normed), torch.randn(5,8))=={'1.b':True, '1.d':True}
    one = Sum(lambda s, x: x + (s.n(s.b(s.a(x).relu())) + s.d(s.c(x).relu())), a=lin(), b=lin(), c=lin(), d=lin(), n=nn.LayerNorm(8))
    assert residual_branches(nn.Sequential(lin(), one), torch.randn(5,8))=={'1.b':True, '1.d':False}
    stem = Sum(lambda s, x: x + (s.b(s.a(x).relu()) + s.p(x)), a=lin(), b=lin(), p=lin()) # the stem, a layer before it, is no branch
    assert list(residual_branches(nn.Sequential(lin(), stem), torch.randn(5,8)))==['1.b','1.p']

def test_a_thousand_blocks():
    model = nn.Sequential(*[Sum(lambda s, x: x + s.a(x), a=nn.Linear(4,4)) for _ in range(1000)])
    assert count(model, torch.randn(2,4))==1000

def test_never_heard_in_attention():
    "The layers of an attention, and of a model without any of the names"
    m,x = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),torch.randn(4,5,16)
    with Unchanged(m): assert never_heard(m, ['self_attn.out_proj','linear2'], x)==never_heard(m, [], x)==set()

def test_two_items_of_what_has_the_length_of_the_batch():
    "A list, a number in a tensor and a mask of another length are passed whole"
    class Guided(nn.Module):
        def __init__(self): super().__init__(); self.block,self.seen = Block(8, 'plain'),[]
        def forward(self, names, scale, x, mask):
            self.seen.append((len(names), scale.ndim, len(x), len(mask)))
            return self.block(x*scale)
    model,seen = Guided(),[]
    model.register_forward_pre_hook(lambda m,i: seen.append((len(i[0]), i[1].ndim, len(i[2]), len(i[3]))))
    assert list(residual_branches(model, ['a','b','c'], torch.tensor(2.), torch.randn(5,8), torch.randn(7)))==['block.b']
    assert seen==[(3,0,2,7)] and not model.seen

def test_used_elsewhere_is_no_branch():
    class Two(nn.Module):
        def __init__(self): super().__init__(); self.block,self.head = Block(8, 'seen elsewhere'),nn.Linear(8,2)
        def forward(self, x): return self.block(x), self.head(self.block.seen)
    assert count(Two(), torch.randn(5,8))==0

@pytest.mark.parametrize('name,n', [('resnet34',16), ('wide_resnet50_2',16), ('resnext50_32x4d',16), ('convnext_tiny',18), ('swin_v2_t',12), ('regnet_x_400mf',22), ('mnasnet0_5',10), ('shufflenet_v2_x0_5',0), ('squeezenet1_1',0)])
def test_torchvision(name, n): assert count(tv.get_model(name), torch.randn(2,3,64,64))==n

@pytest.mark.parametrize('name,n', [('nf_resnet26',8), ('mixer_s32_224',16), ('resmlp_12_224',24), ('poolformer_s12',12), ('deit_tiny_patch16_224',24), ('seresnet18',8), ('efficientvit_b0',0)])
def test_timm(name, n):
    timm = pytest.importorskip('timm')
    found = count(timm.create_model(name, pretrained=False), torch.randn(2,3,224,224))
    assert found==n if n else found>0

def test_transformers():
    t = pytest.importorskip('transformers')
    bert = t.BertModel(t.BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32))
    b = residual_branches(bert, torch.randint(0, 50, (2,7)))
    assert list(b)[:2]==['encoder.layer.0.attention.output.dense', 'encoder.layer.0.output.dense'] and len(b)==6

def test_fastai():
    assert count(xresnet50(n_out=3), torch.randn(2,3,64,64))==16
    unet = DynamicUnet(create_body(resnet18(), cut=-2), 3, (64,64))
    assert count(unet, torch.randn(2,3,64,64))>=8

def check(model, *xb, **kwargs):
    "Every corrected layer at its target, channel by channel, seen by other hooks; passes of the batch and of two items counted"
    sizes = []
    h = model.register_forward_pre_hook(lambda m,i: sizes.append(len(i[0])))
    may = {f'{n}.{k}' for n,m in init_layers(model).items() for k,_ in m.named_parameters()}
    with Unchanged(model, may): report = lsuv_(model, *xb, **kwargs)
    h.remove()
    silent = kwargs.get('branch_scale')==0 and bool(report.df.target.eq(0).any()) # does a gradient come back to them?
    assert sizes==[2]*(('branch_scale' in kwargs) + silent) + 2*[len(xb[0])]
    outs = outputs(model, (nn.Linear, nn.Conv2d), *xb)
    for r in report.df[report.df.scale.notna()].itertuples():
        o,m = outs[r.layer],model.get_submodule(r.layer)
        want = getattr(r, 'target', 1.)
        if want: assert abs(o.std().item()/want-1)<=1e-5, (r.layer, o.std(), want)
        else: assert not o.any() and not m.weight.any(), r.layer
        dims = [d for d in range(o.ndim) if d!=(1 if isinstance(m, nn.Conv2d) else o.ndim-1)]
        if m.bias is not None and kwargs.get('center')=='channel': assert o.mean(dims).abs().max()<=1e-4, r.layer
    return report

@pytest.mark.parametrize('kwargs', [dict(center='channel'), dict(branch_scale='auto'), dict(center='channel', branch_scale=0.1), dict(branch_scale=0), dict(center='channel', branch_scale=0.), dict(center='channel', branch_scale='auto', std=2., pre=None)])
def test_exact(kwargs):
    report = check(remove_norm(xresnet18(n_out=10)), torch.randn(8,3,32,32)+1, **kwargs)
    if 'branch_scale' in kwargs:
        part = 8**-0.5 if kwargs['branch_scale']=='auto' else kwargs['branch_scale']
        ends = report.df[report.df.layer.str.contains('convpath.1.0')]
        assert len(ends)==8 and ((ends.target/kwargs.get('std',1.)-part).abs()<1e-6).all() and ends.status.eq('ok' if part else 'zero').all() and ends.converged.all()

def test_silent_branches():
    "The stream passes as if there were no branches; a step later they speak; after the activation too, and once more changes nothing"
    for at in ('layer','activation'):
        model,x = remove_norm(xresnet18(n_out=10)),torch.randn(8,3,32,32)
        report = lsuv_(model, x, at=at, branch_scale=0)
        n = 8 if at=='layer' else 16 # with the identities where batchnorm was
        assert report.df.status.eq('zero').sum()==n and f'{n} zero by design' in report.summary, at
        outs = {}
        for b in (m for m in model.modules() if isinstance(m, ResBlock)): b.convpath.register_forward_hook(lambda m,i,o,b=b: outs.update({b:o}))
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(2):
            loss = model(x).square().mean()
            assert len(outs)==8 and all(o.any()==bool(step) for o in outs.values())
            loss.backward()
            opt.step()
    model = remove_norm(xresnet18(n_out=10))
    lsuv_(model, x, branch_scale=0)
    before = [p.clone() for p in model.parameters()]
    assert lsuv_(model, x, pre=None, branch_scale=0).df.status.eq('zero').sum()==8
    for p,q in zip(before, model.parameters()): torch.testing.assert_close(p, q)

def test_chosen_layers_only():
    "Branches that end in other layers keep their weights, and are not counted"
    model,x = remove_norm(xresnet18(n_out=10)),torch.randn(8,3,32,32)
    may = [n for n in init_layers(model) if n.startswith('4.')]
    with Unchanged(model, {f'{n}.{k}' for n in may for k in ('weight','bias')}): report = lsuv_residual_(model, x, layers=may)
    assert report.notes[0].startswith('2 residual branches are silent') and report.df.status.eq('zero').sum()==2
    assert lsuv_residual_(model, x, layers=['0.0']).notes==['no residual branch ends in a layer that is initialized']

def test_far_means():
    "A mean a thousand times the std of a channel"
    model = nn.Sequential(nn.Linear(20,20), nn.ReLU(), nn.Linear(20,20))
    x = torch.randn(256,20)
    with torch.no_grad(): model[0].bias.copy_(torch.linspace(-1e3, 1e3, 20))
    check(model, x, center='channel', pre=None)

def test_transformer_without_norm():
    class Net(nn.Module):
        def __init__(self): super().__init__(); self.emb,self.att,self.block,self.head = nn.Embedding(30,16),nn.MultiheadAttention(16, 2, batch_first=True),Block(16, 'plain'),nn.Linear(16,4)
        def forward(self, t):
            x = self.emb(t)
            x = x + self.att(x, x, x)[0]
            return self.head(self.block(x))
    model,t = Net(),torch.randint(0, 30, (8,9))
    report = lsuv_(model, t, center='channel', branch_scale='auto')
    for n in ('att.out_proj','block.b'): assert abs(report[n]['std']-0.5**0.5)<1e-5
    assert report.notes[0].startswith('2 residual branches end at std 0.707')

def test_without_branches_as_before():
    a,x = nn.Sequential(nn.Linear(20,20), nn.ReLU(), nn.Linear(20,5)),torch.randn(64,20)
    b = nn.Sequential(nn.Linear(20,20), nn.ReLU(), nn.Linear(20,5))
    b.load_state_dict(a.state_dict())
    lsuv_(a, x, pre=None); r = lsuv_(b, x, pre=None, branch_scale='auto')
    assert all(torch.equal(p, q) for p,q in zip(a.parameters(), b.parameters())) and r.notes==['no residual branches were found']

def test_norm_at_the_end_is_said():
    r = lsuv_(xresnet18(n_out=4), torch.randn(4,3,64,64), branch_scale='auto')
    assert r.notes[0].startswith('8 residual branches end in a normalization') and (r.df['std'][r.df.scale.notna()]-1).abs().max()<1e-5

@pytest.mark.parametrize('at', ['0','4.0.convpath.1.0','11'])
def test_all_or_nothing(at):
    model,x = remove_norm(xresnet18(n_out=10)),torch.randn(4,3,64,64)
    model.get_submodule(at).register_forward_hook(lambda m,i,o: 1/0 if len(o)==4 else None) # not in the pass of two items
    with Unchanged(model), pytest.raises(ZeroDivisionError): lsuv_(model, x, center='channel', branch_scale='auto')

def test_callback():
    learn = synth_learner(cbs=LSUVCallback(center='channel', branch_scale='auto'), model=nn.Sequential(nn.Linear(1,8), Block(8,'plain'), nn.Linear(8,1)))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert abs(learn.lsuv.report['1.b']['std']-1)<1e-5 # one branch: all of its std
    learn = synth_learner(cbs=InitCallback('lsuv_residual'), model=nn.Sequential(nn.Linear(1,8), Block(8,'plain'), Block(8,'plain'), nn.Linear(8,1)))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert learn.init.report['1.b']['std']==0 and learn.init.report['1.b']['status']=='zero' # silent until the first step

class Autoencoder(nn.Module):
    "Gives its error beside what it makes of the input"
    def __init__(self):
        super().__init__()
        self.enc,self.dec = nn.Sequential(nn.Linear(20,8), nn.ReLU()),nn.Linear(8,20)
    def forward(self, x):
        y = self.dec(self.enc(x))
        return ((y-x)**2).mean(),y
def test_an_error_is_no_branch():
    m = Autoencoder()
    assert residual_branches(m, torch.randn(8,20))=={}
    lsuv_residual_(m, torch.randn(64,20))
    assert m.dec.weight.any()

# What is no way around a layer

class Conditioned(nn.Module):
    "As in a diffusion model: what is known of the time is added within each block"
    def __init__(self):
        super().__init__()
        self.inner,self.time,self.last = nn.Linear(8,8),nn.Linear(8,8),nn.Linear(8,8)
    def forward(self, x, t): return x + self.last(F.silu(self.inner(x) + self.time(t)))

class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.time,self.first,self.blocks,self.out = nn.Linear(1,8),nn.Linear(2,8),nn.ModuleList(Conditioned() for _ in range(3)),nn.Linear(8,2)
    def forward(self, x, t):
        t,x = self.time(t).relu(),self.first(x)
        for b in self.blocks: x = b(x, t)
        return self.out(x)

def test_what_all_blocks_get_is_no_projection():
    "A layer on the time, beside the inner layer of a block: one branch a block ends, in its last layer"
    m,x = Denoiser(),(torch.randn(16,2), torch.rand(16,1))
    assert list(residual_branches(m, *x))==[f'blocks.{i}.last' for i in range(3)]
    lsuv_residual_(m, *x)
    assert [n for n,l in m.named_modules() if isinstance(l, nn.Linear) and not l.weight.any()]==[f'blocks.{i}.last' for i in range(3)]

class Spectral(nn.Module):
    "Two ways side by side, each with a weight, one of them a parameter: none goes around the other"
    def __init__(self):
        super().__init__()
        self.first,self.weight,self.beside,self.out = nn.Linear(3,8),nn.Parameter(torch.randn(8,8)*0.3),nn.Linear(8,8),nn.Linear(8,1)
    def forward(self, x):
        h = self.first(x)
        return self.out(F.gelu(h@self.weight + self.beside(h)))

def test_a_parameter_makes_a_way_with_a_weight():
    m,x = Spectral(),torch.randn(4,3)
    with Unchanged(m): assert residual_branches(m, x)=={}
    assert lsuv_residual_(m, x).notes[0]=='no residual branches were found' and m.beside.weight.any()

class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.b,self.out = nn.Linear(6,6),nn.Linear(6,6),nn.Linear(6,3)
    def forward(self, links, x): return self.out(x + self.b(torch.sparse.mm(links, self.a(x)).relu()))

@pytest.mark.parametrize('sparse', [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr])
def test_sparse_inputs(sparse):
    "Passed as they are, with all items of the others"
    x = sparse((torch.rand(12,12)>0.6).float()),torch.randn(12,6)
    assert residual_branches(Graph(), *x)=={'b':False} and lsuv_residual_(Graph(), *x)['b'].status=='zero'

class Adapts(nn.Module):
    "Takes a step of training in its forward"
    def __init__(self):
        super().__init__()
        self.a,self.out = nn.Linear(6,8),nn.Linear(8,1)
    def forward(self, x):
        with torch.enable_grad(): grad, = torch.autograd.grad(self.out(self.a(x)).square().mean(), self.a.weight)
        return self.out(F.linear(x, self.a.weight - 0.01*grad, self.a.bias))

def test_a_model_that_takes_gradients_of_its_weights():
    "Its branches cannot be looked for, and that is said; the rest is done"
    m,x = Adapts(),torch.randn(16,6)
    with pytest.warns(UserWarning, match='residual branches cannot be looked for: Adapts'): r = lsuv_residual_(m, x)
    assert (r.df.status=='ok').all() and (r.df['std']-1).abs().max()<0.02
    with pytest.warns(UserWarning, match='cannot be looked for') as ws: assert residual_branches(m, x)=={}
    assert ws[0].filename==__file__ # the line that asked
    with pytest.raises(InitError, match='failed on a batch'): residual_branches(m, x[:,:2])

class Way(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f,self.first,self.a,self.g,self.out = f,nn.Linear(6,6),nn.Linear(6,6),nn.Linear(6,6),nn.Linear(6,3)
    def forward(self, x): return self.out(self.f(self, self.first(x)))

@pytest.mark.parametrize('f', [lambda s,x: x.lerp(s.a(x), 0.5), lambda s,x: x + s.a(x)*F.hardsigmoid(s.g(x))])
def test_other_sums_and_gates(f): assert residual_branches(Way(f), torch.randn(4,6))=={'a':False}

def test_a_branch_whose_gradient_would_be_nan_is_not_silenced():
    "The root of 0"
    r = lsuv_residual_(Way(lambda s,x: x + (s.a(x)**2).sqrt()), torch.randn(16,6))
    assert r['a'].status=='ok' and r['a']['std']==pytest.approx(1, rel=0.02)
