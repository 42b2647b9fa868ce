"""Do all results stay the same, bit for bit, when code is moved? Weights, reports, warnings and errors of many cases.

    python tools/same_results.py before.json              # with the old code: record
    python tools/same_results.py before.json --compare    # with the new code: name what differs, exit with 1
"""
import hashlib, json, sys, warnings
from functools import partial
import matplotlib; matplotlib.use('agg')
import torch, torch.nn.functional as F
from torch import nn
from fastai.vision.all import xresnet18
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from fastinit.all import *

class Tied(nn.Module):
    "An embedding and an output layer of one weight"
    def __init__(self):
        super().__init__()
        self.emb,self.mid,self.out = nn.Embedding(50,16),nn.Linear(16,16),nn.Linear(16,50,bias=False)
        self.out.weight = self.emb.weight
    def forward(self, x): return self.out(F.gelu(self.mid(self.emb(x))))

class Twice(nn.Module):
    "A layer that is called twice, and two that share a weight"
    def __init__(self):
        super().__init__()
        self.a,self.b,self.c = nn.Linear(8,8),nn.Linear(8,8),nn.Linear(8,8)
        self.c.weight = self.b.weight
    def forward(self, x): return self.c(F.relu(self.b(F.relu(self.a(F.tanh(self.a(x)))))))

class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb,self.rnn,self.head = nn.Embedding(50,8),nn.LSTM(8,12,batch_first=True),nn.Linear(12,3)
    def forward(self, x): return self.head(self.rnn(self.emb(x))[0][:,-1])

class Standardized(nn.Linear):
    def forward(self, x): return F.linear(x, self.weight/self.weight.std(), self.bias)

def mlp(act=nn.ReLU, n=4, d=20): return nn.Sequential(*[o for _ in range(n) for o in (nn.Linear(d,d), act())], nn.Linear(d,5))

def without_norm():
    m = xresnet18(n_out=4)
    for n,o in list(m.named_modules()):
        if isinstance(o, nn.BatchNorm2d): m.set_submodule(n, nn.Identity())
    return m

def zero_in_the_middle():
    m = mlp()
    nn.init.zeros_(m[4].weight); nn.init.zeros_(m[4].bias)
    return m

def frozen():
    m = mlp()
    m[2].requires_grad_(False)
    return m

def wrapped(f, i):
    m = mlp()
    f(m[i])
    return m

vectors,images,words = (lambda: torch.randn(64,20)),(lambda: torch.randn(8,3,32,32)),(lambda: torch.randint(0,50,(16,7)))
#: Name → (function that makes the model, function that makes the batch)
models = dict(mlp=(mlp,vectors), gelu=(partial(mlp,nn.GELU),vectors), tanh=(partial(mlp,nn.Tanh),vectors), general=(partial(mlp,partial(GeneralReLU,0.1)),vectors),
    convs=(lambda: nn.Sequential(nn.Conv2d(3,8,3), nn.ReLU(), nn.ConvTranspose2d(8,6,4,stride=2,groups=2), nn.LeakyReLU(0.2), nn.Conv2d(6,6,3,groups=6), nn.Flatten(), nn.LazyLinear(4)),images),
    xresnet18=(partial(xresnet18,n_out=4),images), without_norm=(without_norm,images), tied=(Tied,words), twice=(Twice,lambda: torch.randn(32,8)), recurrent=(Recurrent,words),
    attention=(lambda: nn.TransformerEncoderLayer(16,2,32,batch_first=True),lambda: torch.randn(4,6,16)),
    zero=(zero_in_the_middle,vectors), frozen=(frozen,vectors), weight_norm=(partial(wrapped,weight_norm,2),vectors), spectral=(partial(wrapped,spectral_norm,2),vectors),
    standardized=(lambda: nn.Sequential(nn.Linear(20,20), nn.ReLU(), Standardized(20,20), nn.Linear(20,5)),vectors),
    half=(lambda: mlp().bfloat16(),lambda: torch.randn(64,20).bfloat16()), nan=(mlp,lambda: torch.full((64,20), torch.nan)), unfit=(mlp,lambda: torch.randn(64,3)), single=(lambda: nn.Linear(3,1),lambda: torch.randn(1,3)))

#: Name → function of (model, x)
runs = {**{k:partial(init_, scheme=k) for k in ('default','normal','xavier','kaiming','orthogonal')},
    'kaiming auto':partial(kaiming_, nonlinearity='auto'), 'kaiming uniform':partial(kaiming_, nonlinearity='gelu', mode='fan_out', distribution='uniform'), 'xavier normal':partial(xavier_, distribution='normal', gain=2.),
    'stats':init_stats, 'stats of all':partial(init_stats, include_paramless=True), 'hists':layer_hists, 'grads':lambda m,x: layer_grads(m, lambda o: o.square(), x, ()), 'branches':residual_branches,
    'lsuv':lsuv_, 'lsuv keep':partial(lsuv_, pre=None), 'lsuv orthogonal':partial(lsuv_, pre='orthogonal', center=False, std=0.5), 'lsuv at activation':partial(lsuv_, at='activation'),
    'lsuv per channel':partial(lsuv_, center='channel'), 'lsuv branches':partial(lsuv_, branch_scale='auto'), 'lsuv_residual':lsuv_residual_, 'lsuv some':partial(lsuv_, layers=[nn.Conv2d, '4', '2']), 'init lsuv':partial(init_, scheme='lsuv', std=2.)}
takes_no_batch = ('kaiming auto','kaiming uniform','xavier normal')

def in_words(o):
    "What a run returned, every digit of it"
    if isinstance(o, InitReport): return '\n'.join([o.df.to_json(double_precision=15, orient='split', default_handler=str), repr(o), str(o), *o.notes])
    if hasattr(o, 'to_json'): return o.to_json(double_precision=15, orient='split')
    return '' if isinstance(o, nn.Module) else repr(o)

def digest(model, text):
    h = hashlib.sha256(text.encode())
    for k,v in model.state_dict().items():
        h.update(k.encode())
        h.update(v.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if v.ndim else repr(v.item()).encode())
    return h.hexdigest()[:16]

def case(make, batch, f, no_batch):
    "(hash of weights and report, warnings, error) of one run"
    torch.manual_seed(0)
    x = batch()
    model = make()
    with torch.no_grad(), warnings.catch_warnings(): # lazy layers are built
        warnings.simplefilter('ignore')
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters()): model(x)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        try: text,error = in_words(f(model) if no_batch else call(f, model, x)),''
        except Exception as e: text,error = '',f'{type(e).__name__}: {e}'
    return dict(hash=digest(model, text), warnings=[str(w.message) for w in said if issubclass(w.category, UserWarning)], error=error)

def call(f, model, x):
    "`init_` takes its scheme before the batch"
    if isinstance(f, partial) and f.func is init_:
        kw = dict(f.keywords)
        return init_(model, kw.pop('scheme'), x, **kw)
    return f(model, x)

def main(path, compare=False):
    torch.set_num_threads(1)
    res = {f'{k}, {r}': case(*models[k], f, r in takes_no_batch) for k in models for r,f in runs.items()}
    if not compare:
        with open(path, 'w') as o: json.dump(res, o, indent=1)
        return print(f"{len(res)} cases, {sum(bool(r['error']) for r in res.values())} of them errors")
    with open(path) as o: was = json.load(o)
    for k in {**was, **res}:
        for what in ('hash','warnings','error'):
            if (a := was.get(k, {}).get(what))!=(b := res.get(k, {}).get(what)): print(f'{k}: {what} {a!r} → {b!r}')
    same = sum(was.get(k)==res.get(k) for k in {**was, **res})
    print(f'{same} of {len({**was, **res})} cases are the same')
    return int(was!=res)

if __name__=='__main__': sys.exit(main(sys.argv[1], '--compare' in sys.argv))
