"""`lsuv_` on whole architectures, with random weights and small inputs: one pass, every called layer at std 1, nothing else changed.

A few in `make test`; all of them by `make zoo`, which writes benchmarks/zoo.csv and zoo.png.
"""
import gc, os, time
from contextlib import suppress
from copy import deepcopy
from functools import partial
from pathlib import Path
import pandas as pd, pytest, timm, torch, torchvision, transformers
import torch.nn.functional as F
from torch import nn
import fastai.vision.models.xresnet as xresnet
from fastai.collab import EmbeddingDotBias
from fastai.tabular.model import TabularModel
from fastai.text.models.awdlstm import AWD_LSTM, awd_lstm_clas_config, awd_lstm_lm_config
from fastai.text.models.core import get_language_model, get_text_classifier
from fastai.vision.models.unet import DynamicUnet
from fastinit.all import *
from fastinit.layers import affine_types
from fastinit.probe import probing
from conftest import AFFINE, Unchanged, outputs

WHOLE = bool(os.environ.get('FASTINIT_ZOO'))
DETECTION = ('fasterrcnn','maskrcnn','keypointrcnn','retinanet','fcos','ssd')

# torchvision: all that it lists

def torchvision_model(name):
    kw,size = {},64
    if name.startswith('vit_'): kw['image_size'] = size = 56 if name=='vit_h_14' else 64
    if name.endswith(('googlenet','inception_v3')): kw,size = dict(init_weights=False),128
    if name=='maxvit_t': size = 224
    if name.startswith(('deeplab','fcn','lraspp',*DETECTION)): kw['weights_backbone'] = None
    if name.startswith(DETECTION) and not name.startswith('ssd'): kw.update(min_size=96, max_size=128)
    x = torch.randn(4,3,size,size)
    if name.startswith(DETECTION): x = list(torch.rand(2,3,96,128)) # a list of images, and no targets in evaluation mode
    if name in ('r3d_18','mc3_18','r2plus1d_18') or 'swin3d' in name: x = torch.randn(2,3,16,64,64)
    elif name=='s3d': x = torch.randn(2,3,16,224,224)
    elif name.startswith('mvit'): x = torch.randn(1,3,16,224,224) # made for this size only
    model = torchvision.models.get_model(name, weights=None, **kw)
    return model,((torch.rand(2,3,128,128), torch.rand(2,3,128,128)) if name.startswith('raft') else (x,))

# timm: the smallest of each of its modules, and further ones with layers of their own

TIMM = '''beit_base_patch16_224 test_byobnet cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32 test_convnext cpubone_nano crossvit_tiny_240 csatv2
    cs3darknet_focus_s cspnext_tiny davit_tiny deepseek_vit_412m deit_tiny_patch16_224 densenet121 dla46x_c dpn48b edgenext_xx_small efficientformer_l1
    efficientformerv2_s0 test_efficientnet efficientvim_m1 efficientvit_b0 efficientvit_m0 vit_tiny_patch16_dinov3_qkvb fasternet_t0 fastvit_t8 focalnet_tiny_srf
    gcvit_xxtiny gemma4_vit_167m ghostnet_050 hardcorenas_b hgnetv2_b0 hiera_tiny_224 sam2_hiera_tiny hrnet_w18_small iformer_t inception_next_atto
    inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_128s lowformer_b0 test_mambaout test_coatnet poolformerv2_s12 gmlp_ti16_224
    mobilenetv3_small_050 mobilenetv5_base mobilevit_xxs mvitv2_tiny naflexvit_base_patch16_parfac_gap nasnetalarge nest_tiny nextvit_small test_nfnet pit_ti_224
    pnasnet5large pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d test_resnet resnetv2_18 rexnet_100 selecsls42
    legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224
    tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny test_vit vit_tiny_r_s16_p8_224 test_vit_relpos samvit_base_patch16_224
    vitamin_small_224 volo_d1_224 ese_vovnet19b_slim_dw legacy_xception xception41p xcit_nano_12_p8_224
    halonet26t botnet26t_256 lambda_resnet26t resnetv2_50x1_bit eca_nfnet_l0 nf_resnet26 resnet26d seresnext26t_32x4d ecaresnet26t resnet50_gn resnetblur50
    tf_efficientnet_b0 tf_efficientnet_cc_b0_4e mixnet_s mobilenetv2_050 mnasnet_small fbnetc_100 mobilenetv4_conv_small mobilenetv4_hybrid_medium efficientnet_lite0
    mixer_s32_224 resmlp_12_224 convformer_s18 caformer_s18 maxvit_tiny_rw_224 coatnet_pico_rw_224 gernet_s repvgg_a0 regnety_002 darknet53 mobileone_s0
    twins_pcpvt_small cspresnet50 convnextv2_atto vit_tiny_patch16_224 vit_base_patch32_clip_224'''.split()
TIMM_SIZES = dict(deepseek_vit_412m=56, efficientformer_l1=224, inception_resnet_v2=160, inception_v3=160, inception_v4=224, tiny_vit_5m_224=128, halonet26t=256)

def timm_model(name):
    size = TIMM_SIZES.get(name, 64)
    fixed = {} if name=='crossvit_tiny_240' else dict(img_size=size)
    try: model = timm.create_model(name, num_classes=10, **fixed)
    except TypeError: model = timm.create_model(name, num_classes=10) # takes any size
    return model,(torch.randn(2 if size>200 else 4, 3, size, size),)

# transformers, with small configurations

SMALL = dict(vocab_size=100, max_position_embeddings=64, n_positions=64, hidden_size=32, n_embd=32, d_model=32, dim=32, embedding_size=32, word_embed_proj_dim=32, 
    num_hidden_layers=2, n_layer=2, n_layers=2, encoder_layers=2, decoder_layers=2, num_layers=2, num_attention_heads=4, n_head=4, n_heads=4, num_heads=4,
    encoder_attention_heads=4, decoder_attention_heads=4, num_key_value_heads=2, head_dim=8, d_kv=8, intermediate_size=64, hidden_dim=64, encoder_ffn_dim=64,
    decoder_ffn_dim=64, ffn_dim=64, d_ff=64, d_inner=64, image_size=32, patch_size=8)
TRANSFORMERS = 'bert distilbert roberta albert electra mobilebert gpt2 gpt_neo gpt_neox opt bloom llama mistral mixtral mamba t5 bart deberta-v2 xlnet fnet vit'.split()

def transformers_model(name):
    config = transformers.AutoConfig.for_model(name)
    for k,v in SMALL.items():
        with suppress(NotImplementedError): # of xlnet, which has no longest sequence
            if hasattr(config, k): setattr(config, k, v)
    x = torch.randn(4,3,32,32) if name=='vit' else torch.randint(0, 100, (4,16))
    model = transformers.AutoModel.from_config(config)
    if name not in ('t5','bart'): return model,(x,)
    model.forward = partial(model.forward, decoder_input_ids=x) # its second input by name
    return model,(x,)

# fastai, and a Transformer-XL

class XLAttention(nn.Module):
    "Attention over this segment and the memory of the one before, by relative positions (Dai et al. 2019)"
    def __init__(self, d, n):
        super().__init__()
        self.n,self.q,self.kv,self.r,self.out,self.norm = n,nn.Linear(d,d,bias=False),nn.Linear(d,2*d,bias=False),nn.Linear(d,d,bias=False),nn.Linear(d,d,bias=False),nn.LayerNorm(d)
        self.u,self.v = (nn.Parameter(torch.zeros(n,1,d//n)) for _ in range(2))
    def forward(self, x, mem, pos):
        heads = lambda t: t.unflatten(-1, (self.n,-1)).transpose(-3,-2)
        c = x if mem is None else torch.cat([mem, x], 1)
        q,r,(k,v) = heads(self.q(x)),heads(self.r(pos[-c.shape[1]:])),map(heads, self.kv(c).chunk(2,-1))
        score = (q+self.u)@k.transpose(-2,-1) + (q+self.v)@r.transpose(-2,-1)
        mask = torch.ones(x.shape[1], c.shape[1], dtype=torch.bool).triu(1+c.shape[1]-x.shape[1])
        a = (score*q.shape[-1]**-0.5).masked_fill(mask, -1e4).softmax(-1)@v
        return self.norm(x + self.out(a.transpose(1,2).flatten(2)))

class TransformerXL(nn.Module):
    "It remembers the last segment, as fastai's language models do; `reset` forgets"
    def __init__(self, vocab=60, d=32, n=4, layers=3):
        super().__init__()
        self.emb,self.d,self.mem = nn.Embedding(vocab, d),d,[None]*layers
        self.attn,self.ff = nn.ModuleList(XLAttention(d, n) for _ in range(layers)),nn.ModuleList(nn.Sequential(nn.Linear(d,64), nn.GELU(), nn.Linear(64,d)) for _ in range(layers))
        self.head = nn.Linear(d, vocab)
        self.head.weight = self.emb.weight # tied
    def reset(self): self.mem = [None]*len(self.mem)
    def forward(self, x):
        h,n = self.emb(x),torch.arange(2*x.shape[1], 0, -1.)[:,None]*10000**-torch.linspace(0, 1, self.d//2)
        pos = torch.cat([n.sin(), n.cos()], 1)
        for i,(attn,ff) in enumerate(zip(self.attn, self.ff)):
            mem,self.mem[i] = self.mem[i],h.detach()
            h = attn(h, mem, pos)
            h = h + ff(h)
        return self.head(h)

def xresnet_model(name):
    x = torch.randn(4,3,64,64)
    if name!='xsenet154': return getattr(xresnet, name)(n_out=10),(x,)
    return xresnet.XResNet(xresnet.SEBlock, 4, xresnet.g3, groups=64, reduction=16, p=0.2, n_out=10),(x,) # fastai's own function forgets the 4

def unet(arch):
    body = nn.Sequential(*list(getattr(xresnet, arch)(n_out=4).children())[:-4])
    return DynamicUnet(body, 3, (64,64)),(torch.randn(2,3,64,64),)

tokens = lambda *shape: torch.randint(0, 60, shape)
small_lm = dict(emb_sz=32, n_hid=48, n_layers=3)
FASTAI = {'DynamicUnet(xresnet18)': partial(unet, 'xresnet18'), 'DynamicUnet(xresnet34)': partial(unet, 'xresnet34'),
    'TabularModel': lambda: (TabularModel([(5,3),(7,4)], 6, 2, [200,100]), (torch.randint(0, 5, (64,2)), torch.randn(64,6))),
    'AWD_LSTM language model': lambda: (get_language_model(AWD_LSTM, 60, {**awd_lstm_lm_config, **small_lm}), (tokens(8,12),)),
    'AWD_LSTM untied': lambda: (get_language_model(AWD_LSTM, 60, {**awd_lstm_lm_config, **small_lm, 'tie_weights':False}), (tokens(8,12),)),
    'AWD_LSTM classifier': lambda: (get_text_classifier(AWD_LSTM, 60, 3, seq_len=10, config={**awd_lstm_clas_config, **small_lm}), (tokens(16,25),)),
    'TransformerXL': lambda: (TransformerXL(), (tokens(8,12),)),
    'EmbeddingDotBias': lambda: (EmbeddingDotBias(8, 20, 30), (torch.randint(0, 20, (64,2)),))}
OPTIONS = {'EmbeddingDotBias': dict(layers=nn.Embedding), 'gpt2': dict(layers=(*affine_types, transformers.pytorch_utils.Conv1D))} # they have no other layers

ZOO = dict(torchvision={n:torchvision_model for n in torchvision.models.list_models()}, timm=dict.fromkeys(TIMM, timm_model),
           transformers=dict.fromkeys(TRANSFORMERS, transformers_model),
           fastai={**{n:xresnet_model for n in xresnet.__all__ if n.startswith(('xresnet','xse','xresnext'))}, **{k:lambda _,f=f: f() for k,f in FASTAI.items()}})
FEW = dict(torchvision=['alexnet','resnext50_32x4d','mobilenet_v2','vit_b_32','maxvit_t','fcn_resnet50','r3d_18'], timm=['test_efficientnet','test_nfnet','test_vit_relpos',
    'mobilevit_xxs','xcit_nano_12_p8_224','nf_resnet26','tf_efficientnet_cc_b0_4e','levit_128s','ghostnet_050'], transformers=['gpt2','albert','t5'], fastai=['xresnet34_deep',*FASTAI])
NO_SIGNAL = dict(csatv2='its LayerNorms over one channel give 0') # whatever the weights
AGAIN = dict(keypointrcnn_resnet50_fpn='looks at other boxes in the second pass', convmixer_768_32='rounding grows through it')
rows = []

def timed(f):
    t = time.perf_counter()
    f()
    return time.perf_counter()-t

def slightly_larger(x):
    "Two or so in the last digit of float32"
    if isinstance(x, list): return [slightly_larger(o) for o in x]
    return x*(1+2e-7) if x.is_floating_point() else x

def warm_times(f, model, xb, least=3, seconds=2.):
    "Seconds of f() and of a forward pass in the modes of the initialization, the best of some interleaved runs"
    a,b = [],[]
    while len(a)<least and sum(a+b)<seconds:
        a.append(timed(f))
        with probing(model, *xb):
            if not b: model(*xb)
            b.append(timed(lambda: model(*xb)))
    return min(a),min(b)

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('library,name', [(k,n) for k,ns in (ZOO if WHOLE else FEW).items() for n in ns])
def test_zoo(library, name):
    model,xb = ZOO[library][name](name)
    model.train() # fastai's DynamicUnet leaves its encoder in evaluation mode
    options,calls = OPTIONS.get(name, {}),[]
    h = model.register_forward_pre_hook(lambda *_: calls.append(1))
    todo = init_layers(model, options.get('layers'))
    with Unchanged(model, {f'{n}.{k}' for n,m in todo.items() for k,_ in m.named_parameters()}): report = lsuv_(model, *xb, pre=None, **options)
    h.remove()
    again = name in AGAIN or 'not affine' in set(report.df.status)
    assert len(calls)<=(4 if again else 2) # one corrects, one measures, and again for what is off
    status = report.df.set_index('layer').status
    done = report.df[report.df.scale.notna() & ~report.df.status.isin(['zero']+['dead']*(name in NO_SIGNAL))] # zero: fed by zeros, as in a branch behind a zero norm
    seen = outputs(model, options.get('layers', AFFINE), *xb)
    worst = max([abs(seen[n].std().item()-1) for n in done.layer], default=0.)
    assert worst<=1e-3, report
    left = status[[n for n in seen if n not in set(done.layer)]]
    reasons = ['zero','shared','tied','not affine','unsupported parametrization'] + ['dead']*(name in NO_SIGNAL)
    assert left.isin(reasons).all(), left # every layer that was called is right, or named with its reason
    assert not (set(status.index[status.eq('not called')]) & set(seen))
    row = dict(model=name, library=library, layers=len(report), scaled=len(done), worst=worst,
               left='; '.join(f'{c} {s}' for s,c in status[~status.isin(['ok','vanishing','exploding','dead'])].value_counts().items()))
    if WHOLE:
        other = outputs(model, options.get('layers', AFFINE), *map(slightly_larger, xb))
        row['rounding'] = max([abs(seen[n].std().item()-other[n].std().item()) for n in done.layer], default=0.)
        row['seconds'],row['forward'] = warm_times(lambda: lsuv_(model, *xb, pre=None, **options), model, xb)
    rows.append(row)
    del model
    gc.collect()

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', [n for n in ZOO['torchvision'] if 'rcnn' in n] if WHOLE else ['fasterrcnn_mobilenet_v3_large_320_fpn'])
def test_choices_in_detection(name, monkeypatch):
    "Which boxes a detector looks at flips with the last bit; given the boxes of the initialization's own pass, its errors are no larger than elsewhere"
    model,xb = torchvision_model(name)
    kept = {}
    def _same_again(m, k):
        f = getattr(m, k)
        setattr(m, k, lambda *args, **kwargs: kept.setdefault(k, f(*args, **kwargs)))
    _same_again(model.rpn, 'filter_proposals'); _same_again(model.roi_heads, 'postprocess_detections')
    report = lsuv_(model, *xb, pre=None)
    seen = {}
    for n in report.df.layer[report.df.scale.notna()]: model.get_submodule(n).register_forward_hook(lambda m,i,o,n=n: seen.update({n:o.double().std().item()}) if n not in seen else None)
    with probing(model, *xb): model(*xb)
    assert all(abs(v-1)<5e-5 for v in seen.values())

def draw(df, path):
    "The chart of zoo.csv"
    import matplotlib.pyplot as plt
    from fastinit.looks import save_png
    axs = plt.subplots(1, 2, figsize=(10,4), layout='constrained')[1]
    for (lib,d),c in zip(df.groupby('library', sort=False), ['#009E73','#0072B2','#D55E00','#CC79A7']):
        axs[0].scatter(d.scaled, d.worst.clip(lower=1e-8), s=14, color=c, alpha=0.8, label=f'{lib} ({len(d)})')
        axs[1].scatter(d.forward, d.ratio, s=14, color=c, alpha=0.8)
    for ax,v,what in ((axs[0],1e-3,'the tolerance'), (axs[1],1,'one forward pass')):
        ax.axhline(v, color='0.5', ls='--', lw=1)
        ax.text(0.02, v, what, va='bottom', fontsize=9, color='0.35', transform=ax.get_yaxis_transform())
    axs[0].set(yscale='log', xscale='log', xlabel='layers scaled (log scale)', ylabel='worst |std − 1| of a layer (log scale)', title=f'{len(df)} architectures')
    axs[0].legend(fontsize=9, frameon=False)
    axs[1].set(xscale='log', xlabel='seconds of one forward pass (log scale)', ylabel='time of lsuv_ ÷ one forward pass', title='best of up to 3 runs each', ylim=0)
    save_png(axs[0].figure, path, dpi=110)

def teardown_module():
    if not WHOLE or len(rows)<100: return
    out,df = Path(__file__).parent.parent/'benchmarks',pd.DataFrame(rows)
    df['ratio'] = df.seconds/df.forward
    df.to_csv(out/'zoo.csv', index=False, float_format='%.3g')
    draw(df, out/'zoo.png')
