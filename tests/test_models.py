"`lsuv_` on every kind of layer, model and wrapper that people train; what cannot be scaled is left alone and named."
import dataclasses, warnings
import pytest, timm, torch, transformers
from torch import nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from fastai.text.models.awdlstm import AWD_LSTM, awd_lstm_lm_config
from fastai.text.models.core import get_language_model
from fastai.collab import EmbeddingDotBias
from fastinit.all import *
from conftest import AFFINE, Unchanged, outputs

pytestmark = pytest.mark.filterwarnings('ignore')

def fit(model, *xb, near=1e-4, **kwargs):
    "`lsuv_` with nothing else changed; every scaled layer's output has std 1 in a pass of its own"
    may = {n for n,_ in model.named_parameters()}
    with Unchanged(model, may): report = lsuv_(model, *xb, **kwargs)
    done = report.df[report.df.scale.notna()]
    seen = outputs(model, (*AFFINE, nn.Embedding), *xb)
    for n in done.layer: assert abs(seen[n].std()-1)<near, n
    return report

def test_attention_is_one_unit():
    class M(nn.Module):
        def __init__(self, batch_first):
            super().__init__()
            self.attn,self.out = nn.MultiheadAttention(16, 4, batch_first=batch_first),nn.Linear(16,3)
        def forward(self, x): return self.out(self.attn(x, x, x)[0])
    for batch_first in (False, True):
        model,seen = M(batch_first),[]
        x,qkv = torch.randn(8,5,16),model.attn.in_proj_weight.clone()
        r = lsuv_(model, x)
        model.eval().attn.register_forward_hook(lambda m,i,o: seen.append(o[0].std().item()))
        model(x)
        assert abs(seen[0]-1)<1e-5 and r['attn.out_proj'].status=='ok' and torch.equal(qkv, model.attn.in_proj_weight)
        assert abs(init_stats(model, x)['attn.out_proj']['std']-1)<1e-5

def test_transformer_with_padding():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 3).eval()
    x,pad = torch.randn(6,7,16),torch.zeros(6,7,dtype=torch.bool)
    pad[:,5:] = True
    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc = model
        def forward(self, x, pad): return self.enc(x, src_key_padding_mask=pad)
    r = lsuv_(M(), x, pad)
    names = [n for n in r.df.layer if n.endswith(('out_proj','linear1','linear2'))]
    assert len(names)==9 and all(abs(r[n]['std']-1)<1e-5 for n in names)

@pytest.mark.parametrize('rnn', [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent(rnn):
    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn,self.head = rnn(10, 20, num_layers=2, batch_first=True),nn.Linear(20,4)
        def forward(self, x): return self.head(self.rnn(x)[0][:,-1])
    model = M()
    r = fit(model, torch.randn(32,7,10))
    for w in model.rnn.weight_hh_l1.split(20): assert torch.allclose(w@w.T, torch.eye(20), atol=1e-5)
    assert r['head'].status=='ok' and r['rnn'].status in ('ok','vanishing')
    x = torch.randn(32,7,10)
    with Unchanged(model, {'head.weight','head.bias'}): lsuv_(model, x, pre=None) # nothing to scale in a recurrent layer

def test_cells():
    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell,self.head = nn.LSTMCell(10,20),nn.Linear(20,4)
        def forward(self, x): return self.head(self.cell(x)[0])
    model = M()
    fit(model, torch.randn(32,10))
    assert (model.cell.bias_ih[20:40]==1).all()

@pytest.mark.parametrize('norm', [weight_norm, pytest.param(nn.utils.weight_norm, id='older')])
@pytest.mark.parametrize('pre', ['kaiming', 'orthogonal', None])
def test_weight_norm(norm, pre):
    model,x = nn.Sequential(norm(nn.Linear(30,30)), nn.ReLU(), norm(nn.Conv1d(1,4,3))),torch.randn(64,1,30)
    r = fit(model, x, pre=pre)
    assert list(r.df.scale.notna())==[True, True] and abs(model(x).std()-1)<1e-4

@pytest.mark.parametrize('norm', [spectral_norm, orthogonal, pytest.param(nn.utils.spectral_norm, id='older')])
def test_other_parametrizations_are_named(norm):
    model = nn.Sequential(norm(nn.Linear(30,30)), nn.Linear(30,30))
    before = [p.clone() for p in model[0].parameters()]
    with pytest.warns(UserWarning, match='1 unsupported parametrization .0.'): r = lsuv_(model, torch.randn(64,30))
    assert r['0'].status=='unsupported parametrization' and all(torch.equal(p, q) for p,q in zip(before, model[0].parameters()))

class Standardized(nn.Conv2d):
    "A convolution whose output does not scale with its weight"
    def _conv_forward(self, x, w, b): return super()._conv_forward(x, (w-w.mean())/w.std(), b)
class Doubling(nn.Linear):
    "A layer of one's own whose bias counts twice: it can be scaled, not centered by its mean"
    def forward(self, x): return 2*super().forward(x)

@pytest.mark.parametrize('lazy', [False, True], ids=['numbers','tensors'])
def test_subclasses(monkeypatch, lazy):
    "With statistics read at once, as on the CPU, and with tensors that nobody waits for"
    monkeypatch.setattr('fastinit.stats.Moments.__init__', lambda self, _=None: vars(self).update(lazy=lazy, buf=torch.empty(0)))
    model = nn.Sequential(nn.Conv2d(3,8,3), Standardized(8,8,3), nn.Flatten(), Doubling(8*36,10))
    with pytest.warns(UserWarning, match='1 not affine .1.'): r = lsuv_(model, torch.randn(16,3,10,10))
    assert r['1'].status=='not affine' and r['3'].status=='ok' and abs(r['3']['std']-1)<1e-5


def test_next_to_a_large_mean():
    "Beside a bias of 1 a weight of 1e-6 gives mostly rounding, as in gMLP's gates"
    model,x = nn.Sequential(nn.Linear(30,30), nn.Linear(30,30)),torch.randn(64,30)
    with torch.no_grad():
        model[0].weight.mul_(1e-5); model[0].bias.fill_(1.)
    fit(model, x, near=1e-3, pre=None)

class NormAct(nn.BatchNorm2d):
    "A normalization with an activation in it, as timm's"
    def __init__(self, n):
        super().__init__(n)
        self.act = nn.ReLU()
    def forward(self, x): return self.act(super().forward(x))

def test_norm_with_an_activation_inside():
    "It is seen, so that what is behind a zero one is zero by design, not dead"
    model = nn.Sequential(nn.Conv2d(3,8,3), NormAct(8), nn.Conv2d(8,8,3,bias=False), nn.ReLU())
    nn.init.zeros_(model[1].weight)
    assert list(lsuv_(model, torch.randn(4,3,9,9), pre=None).df.status)==['ok','zero','zero']

class Gained(Standardized):
    def __init__(self, *args):
        super().__init__(*args, bias=False)
        self.gain = nn.Parameter(torch.zeros(self.out_channels,1,1,1))
    def _conv_forward(self, x, w, b): return super()._conv_forward(x, w, b)*self.gain.view(-1,1,1)

def test_zero_by_its_gain():
    model,x = nn.Sequential(nn.Conv2d(3,8,3), Gained(8,8,3), nn.ReLU()),torch.randn(4,3,9,9)
    assert list(lsuv_(model, x, pre=None).df.status)==['ok','zero']
    with torch.no_grad(): model[1].gain += 1
    assert list(lsuv_(model, x, pre=None).df.status)==['ok','not affine']

def test_replaced_forward():
    model,x = nn.Sequential(nn.Linear(8,8), nn.Linear(8,8)),torch.randn(64,8)
    layer = model[0]
    layer.forward = lambda x: torch.tanh(nn.functional.linear(x, layer.weight, layer.bias))
    with pytest.warns(UserWarning, match='1 not affine .0.'): r = lsuv_(model, x)
    assert abs(r['1']['std']-1)<1e-5

@pytest.mark.parametrize('layer', ['StdConv2d','StdConv2dSame','ScaledStdConv2d','ScaledStdConv2dSame'])
def test_timms_standardized_convolutions(layer):
    "Named, left bit-identical, and what follows is right"
    conv = getattr(timm.layers, layer)(8, 8, 3)
    model,x = nn.Sequential(nn.Conv2d(3,8,3), conv, nn.ReLU(), nn.Conv2d(8,4,3)),torch.randn(8,3,12,12)
    before = [p.clone() for p in conv.parameters()]
    with pytest.warns(UserWarning, match='1 not affine .1.'): r = fit(model, x, pre=None)
    assert r['1'].status=='not affine' and list(r.df.scale.notna())==[True,False,True] and all(torch.equal(p, q) for p,q in zip(before, conv.parameters()))

def test_timms_same_convolution_and_conditional_one():
    "Conv2dSame pads by itself and is affine; CondConv2d mixes its weights anew for each item: no layer of ours, left alone"
    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.same,self.route,self.cond,self.head = timm.layers.Conv2dSame(3,8,3,stride=2),nn.Linear(8,4),timm.layers.CondConv2d(8,8,3,padding=1,num_experts=4),nn.Conv2d(8,4,3)
        def forward(self, x):
            x = self.same(x)
            return self.head(self.cond(x, self.route(x.mean((2,3))).sigmoid()))
    model = M()
    before = model.cond.weight.clone()
    r = fit(model, torch.randn(8,3,13,13))
    assert list(r.df.layer[r.df.scale.notna()])==['same','route','head'] and torch.equal(before, model.cond.weight)

def test_transformers_conv1d():
    "GPT-2's layers, by `layers=`"
    conv = transformers.pytorch_utils.Conv1D
    model = transformers.GPT2Model(transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=4))
    report = lsuv_(model, torch.randint(0, 50, (8,12)), layers=conv, pre=None)
    done = report.df[report.df.scale.notna()]
    assert len(done)==8 and set(done.type)=={'Conv1D'} and (done['std']-1).abs().max()<1e-5
    for n,o in outputs(model, conv, torch.randint(0, 50, (64,12))).items(): assert abs(o.std()-1)<0.2, n # on other tokens about the same

def test_packed_sequences():
    "A padded batch, packed on its way through the recurrent layer"
    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb,self.rnn,self.head = nn.Linear(6,10),nn.GRU(10,20,batch_first=True),nn.Linear(20,3)
        def forward(self, x, n):
            o,_ = nn.utils.rnn.pad_packed_sequence(self.rnn(nn.utils.rnn.pack_padded_sequence(self.emb(x), n, batch_first=True, enforce_sorted=False))[0], batch_first=True)
            return self.head(o[torch.arange(len(x)), n-1])
    r = fit(M(), torch.randn(16,9,6), torch.randint(2, 10, (16,)))
    assert list(r.df.layer)==['emb','rnn','head']

def test_tied_embeddings():
    "One weight in an embedding and the head: left alone, as no start suits both"
    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb,self.mid,self.head = nn.Embedding(40,16),nn.Linear(16,16),nn.Linear(16,40)
            self.head.weight = self.emb.weight
        def forward(self, x): return self.head(self.mid(self.emb(x)))
    model,x = M(),torch.randint(0, 40, (32,5))
    before = model.emb.weight.clone()
    with pytest.warns(UserWarning, match='1 shared .head.'): r = fit(model, x)
    assert torch.equal(before, model.head.weight) and model.head.weight is model.emb.weight and r['mid'].status=='ok'

def test_custom_layer():
    class Conv1D(nn.Module):
        "As in GPT-2: a linear layer with the weight the other way round"
        def __init__(self, ni, nf):
            super().__init__()
            self.weight,self.bias = nn.Parameter(torch.randn(ni,nf)),nn.Parameter(torch.zeros(nf))
        def forward(self, x): return x@self.weight+self.bias
    model,x = nn.Sequential(Conv1D(8,16), nn.GELU(), nn.Linear(16,4)),torch.randn(64,8)
    r = lsuv_(model, x, layers=(nn.Linear, Conv1D), pre=None)
    assert r.df.scale.notna().sum()==2 and abs(model[0](x).std()-1)<1e-5 and abs(model(x).std()-1)<1e-5

def test_embedding_if_asked():
    model,x = nn.Sequential(nn.Embedding(50, 8, padding_idx=0), nn.Flatten(), nn.Linear(24,4)),torch.randint(0, 50, (64,3))
    before = model[0].weight.clone()
    fit(model, x)
    assert torch.equal(model[0].weight, before)
    fit(model, x, layers=(nn.Linear, nn.Embedding), pre=None)
    assert model[0].weight[0].abs().max()==0

@dataclasses.dataclass
class Out:
    logits: torch.Tensor
    loss: object = None

def test_inputs_and_outputs():
    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b = nn.Linear(6,8),nn.Linear(5,8)
            self.pair = Pair()
        def forward(self, d, y): return Out(self.pair(self.a(d['x'])+self.b(y))['u'])
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(8,3)
        def forward(self, x): return {'u': self.l(x), 'v': None}
    r = fit(M(), {'x': torch.randn(32,6)}, torch.randn(32,5))
    assert len(r)==3

@pytest.mark.parametrize('pre', ['kaiming', None])
def test_complex(pre):
    model,x = nn.Sequential(nn.Linear(8,8,dtype=torch.cfloat), nn.Linear(8,4,dtype=torch.cfloat)),torch.randn(64,8,dtype=torch.cfloat)
    r = lsuv_(model, x, pre=pre)
    with torch.no_grad():
        for o in (model[0](x), model(x)): assert abs(o.std()-1)<1e-4 and o.mean().abs()<1e-4
    assert list(r.df.status)==['ok','ok']

def test_quantized_is_left_alone():
    if not torch.backends.quantized.supported_engines or torch.backends.quantized.engine=='none': pytest.skip('no quantized engine in this build of torch')
    model = nn.Sequential(nn.Linear(8,8), nn.ReLU(), nn.Linear(8,8))
    model[2] = torch.ao.quantization.quantize_dynamic(nn.Sequential(model[2]), {nn.Linear})[0]
    x = torch.randn(64,8)
    r = lsuv_(model, x)
    assert r.df.scale.notna().sum()==1 and abs(model[0](x).std()-1)<1e-5

def test_lazy_after_a_batch():
    model,x = nn.Sequential(nn.LazyConv2d(4,3), nn.Flatten(), nn.LazyLinear(3)),torch.randn(8,3,6,6)
    with pytest.raises(ValueError, match='run one batch through the model first'): lsuv_(model, x)
    model(x)
    assert len(fit(model, x))==2

def test_wrappers():
    x = torch.randn(64,8)
    make = lambda: nn.Sequential(nn.Linear(8,8), nn.ReLU(), nn.Linear(8,3))
    for wrap in (nn.DataParallel, lambda m: torch.compile(m, backend='eager')):
        inner = make()
        r = lsuv_(wrap(inner), x)
        assert list(r.df.layer)==['0','2'] and abs(inner(x).std()-1)<1e-5

def test_compiled_inside():
    model,x = nn.Sequential(torch.compile(nn.Sequential(nn.Linear(8,8), nn.ReLU()), backend='eager'), nn.Linear(8,3)),torch.randn(64,8)
    model[1].compile(backend='eager')
    model(x) # compiled by now
    r = lsuv_(model, x)
    assert len(r)==2 and all(abs(r.df['std']-1)<1e-5) and abs(model(x).std()-1)<1e-5

def test_scripted():
    inner = nn.Sequential(nn.Linear(8,8), nn.ReLU())
    with pytest.raises(ValueError, match='initialize it, then script it'): lsuv_(torch.jit.script(inner), torch.randn(64,8))
    model,x = nn.Sequential(torch.jit.script(inner), nn.Linear(8,3)),torch.randn(64,8)
    before = {k:v.clone() for k,v in model[0].state_dict().items()}
    r = lsuv_(model, x)
    assert abs(r['1']['std']-1)<1e-5 and all(torch.equal(v, before[k]) for k,v in model[0].state_dict().items())
    assert model[0].training and model[1].training

def test_awd_lstm():
    model = get_language_model(AWD_LSTM, 60, {**awd_lstm_lm_config, 'emb_sz':16, 'n_hid':24, 'n_layers':2})
    x = torch.randint(0, 60, (8,12))
    before = {k:v.clone() for k,v in model.state_dict().items()}
    r = lsuv_(model, x)
    assert r[r.df.layer[r.df.layer.str.contains('decoder')].iloc[0]].status=='shared' # tied to the embedding
    assert r.df.status.eq('unsupported parametrization').sum()==2 # WeightDropout keeps the hidden weights elsewhere
    for k,v in model.state_dict().items(): assert torch.equal(v, before[k]), k

def test_no_layer_of_ours():
    with pytest.raises(ValueError, match='no layer to initialize'): lsuv_(EmbeddingDotBias(8, 20, 30), torch.randint(0, 20, (16,2)))
