"Weights that must not be lost: whatever the optimizer, the wrapper, the scheme; and what there is to say where nothing can be done."
import subprocess, sys, warnings
import numpy as np, pandas as pd, pytest, torch
import matplotlib.pyplot as plt
from torch import nn
from copy import copy, deepcopy
from functools import partial
from fastai.vision.all import (Adam, Callback, CancelFitException, CrossEntropyLossFlat, DataLoader, DataLoaders, defaults, L, Learner, MSELossFlat, OptimWrapper, params, RMSProp, SGD)
from fastai.callback.progress import ProgressCallback
from fastai.collab import CollabDataLoaders, EmbeddingDotBias, collab_learner
from fastai.callback.schedule import *
from fastinit.all import *
from fastinit.trained import known_of, note, see, was_trained

def data(n=128, bs=16, d=12):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, d, generator=g)
    ds = list(zip(x, (x[:,0]>0).long()))
    return DataLoaders.from_dsets(ds, ds[:16], bs=bs, num_workers=0)
def net(): return nn.Sequential(nn.Sequential(nn.Linear(12,24), nn.ReLU()), nn.Sequential(nn.Linear(24,24), nn.ReLU(), nn.Linear(24,2)))
def groups(m): return [params(m[0]), params(m[1])]
def learner(model=None, cbs=None, **kwargs):
    return Learner(data(), model or net(), loss_func=CrossEntropyLossFlat(), cbs=cbs, **kwargs).remove_cb(ProgressCallback)
def weights(model): return [p.detach().clone() for p in model.parameters()]
def same(a, b): return all(torch.equal(p, q) for p,q in zip(a, b, strict=True))
def fit(learn, *args, **kwargs):
    with learn.no_logging(): learn.fit(*args, **kwargs)

@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield
    plt.close('all')

def find(learn, n): learn.lr_find(num_it=n, start_lr=1e-9, end_lr=1e-8, show_plot=False, suggest_funcs=())

# Trained with any optimizer

OPTS = dict(sgd=SGD, sgd_wd=partial(SGD, wd=0.1), momentum=partial(SGD, mom=0.9), adam=Adam, rms=RMSProp,
            **{f'torch_{o.__name__}':partial(OptimWrapper, opt=o) for o in (torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad)})
@pytest.mark.parametrize('between', ['nothing', 'validate', 'another optimizer', 'lr_find'])
@pytest.mark.parametrize('opt', OPTS)
def test_trained(tmp_path, opt, between):
    "A callback that comes after training leaves all as it is, and a loop of `fit(1, cbs=…)` initializes once"
    learn = learner(opt_func=OPTS[opt], path=tmp_path)
    fit(learn, 1, 1e-2)
    trained = weights(learn.model)
    with learn.no_logging():
        if between=='validate': learn.validate()
        if between=='another optimizer': learn.create_opt()
        if between=='lr_find': find(learn, 6)
    n_it = len(learn.recorder.lrs)
    with pytest.warns(UserWarning, match='3 loaded'): fit(learn, 1, 0., cbs=LSUVCallback())
    assert n_it==(6 if between=='lr_find' else 0 if between=='validate' else 8)
    assert same(trained, weights(learn.model))

@pytest.mark.parametrize('opt', ['sgd','adam','torch_SGD'])
@pytest.mark.parametrize('then', ['nothing','validate','new optimizer','no optimizer'])
@pytest.mark.parametrize('n', [4,20]) # iterations: half an epoch, and more than two
def test_trained_then_lr_find(tmp_path, opt, then, n):
    "What `lr_find` records takes the place of what training did: it was trained all the same"
    learn = learner(opt_func=OPTS[opt], path=tmp_path)
    fit(learn, 1, 1e-2)
    trained = weights(learn.model)
    with learn.no_logging():
        if then=='validate': learn.validate()
        if then=='new optimizer': learn.create_opt()
        if then=='no optimizer': learn.opt = None # as `export` leaves it
        find(learn, n)
    with pytest.warns(UserWarning, match='3 loaded'): fit(learn, 1, 0., cbs=LSUVCallback())
    assert same(trained, weights(learn.model))

@pytest.mark.parametrize('n', [4,20])
def test_lr_find_twice_is_no_training(tmp_path, n):
    learn = learner(path=tmp_path)
    with learn.no_logging(): find(learn, n); find(learn, n)
    fit(learn, 1, 0., cbs=LSUVCallback())
    assert list(learn.init_report().df.status)==['ok']*3

@pytest.mark.parametrize('at', [(0,1), (5,63), (63,0)])
def test_loaded_in_a_single_value(at):
    "Most of a weight may be as it was, where its inputs are mostly 0"
    model = nn.Sequential(nn.Linear(12,64), nn.Linear(64,64,bias=False), nn.Linear(64,2))
    learn = learner(model, LSUVCallback())
    with torch.no_grad(): model[1].weight[at] += 1
    was = weights(model[1])
    fit(learn, 1, 0.)
    assert learn.lsuv.report['1'].status=='loaded' and same(was, weights(model[1])) and learn.lsuv.report['0'].status=='ok'

def test_another_callback_takes_its_place():
    "What was loaded while one was there is not lost to the next"
    learn = learner(cbs=LSUVCallback())
    with torch.no_grad(): learn.model[0][0].weight.mul_(2)
    learn.remove_cb(LSUVCallback).add_cb(KaimingCallback())
    fit(learn, 1, 0.)
    assert list(learn.init_report().df.status)==['loaded','ok','ok']

def test_report_of_a_replaced_model():
    "Is that of the model that is there, and not what was recorded of the other"
    learn = learner(cbs=LSUVCallback())
    fit(learn, 1, 0.)
    learn.model = nn.Linear(12,2)
    report = learn.init_report()
    assert list(report.df.layer)==['Linear'] and report.scheme==''

@pytest.mark.parametrize('opt', OPTS)
def test_loop(opt):
    "The second and third `fit(1, cbs=LSUVCallback())` train on"
    learn,got = learner(opt_func=OPTS[opt]),[]
    for _ in range(3):
        fit(learn, 1, 1e-3, cbs=LSUVCallback())
        got.append(weights(learn.model))
    for a,b in zip(got, got[1:]):
        assert not same(a, b) and all((p-q).abs().max()<0.05 for p,q in zip(a, b)) # eight steps of 1e-3, not a new draw
    assert learn.init_report().summary=='before training: 3 layers: 3 ok'

@pytest.mark.parametrize('opt', ['sgd','torch_AdamW'])
def test_after_lr_find_alone(tmp_path, opt):
    "`lr_find` puts the weights back: the model is not trained"
    learn = learner(opt_func=OPTS[opt], path=tmp_path)
    with learn.no_logging(): learn.lr_find(num_it=10, show_plot=False)
    cb = LSUVCallback()
    fit(learn, 1, 0., cbs=cb)
    assert set(cb.report.df.status)=={'ok'}

# One callback, several Learners

@pytest.mark.parametrize('order', ['one after the other', 'made first'])
def test_several_learners(order):
    "Each is initialized once, and each has its own report"
    cb = LSUVCallback()
    learns = []
    for d in (24,40):
        learns.append(learner(nn.Sequential(nn.Linear(12,d), nn.ReLU(), nn.Linear(d,2)), cbs=[cb]))
        if order=='one after the other': fit(learns[-1], 1, 0.)
    if order=='made first':
        for l in learns: fit(l, 1, 0.)
    for l,d in zip(learns, (24,40)):
        assert l.lsuv.done and l.lsuv.report['0']['shape']==(16,d) and l.lsuv.learn is l and sum(isinstance(o, LSUVCallback) for o in l.cbs)==1
        assert (init_stats(l.model, *l.dls.train.new(shuffle=False).one_batch()[:1]).df['std']-1).abs().max()<0.6
    before = [weights(l.model) for l in learns]
    for l,w in zip(learns, before):
        fit(l, 1, 0.)
        assert same(w, weights(l.model))

def test_several_learners_given_to_fit():
    cb = LSUVCallback()
    for d in (24,40):
        learn = learner(nn.Sequential(nn.Linear(12,d), nn.ReLU(), nn.Linear(d,2)))
        fit(learn, 1, 0., cbs=cb)
        assert cb.done and cb.report['0']['shape']==(16,d)
        w = weights(learn.model)
        fit(learn, 1, 0., cbs=cb)
        assert same(w, weights(learn.model))

# Parameters are known by themselves

class Around(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner,self.last = inner,nn.Linear(2,2)
    def forward(self, x): return self.last(self.inner(x))

@pytest.mark.parametrize('wrap,new', [(nn.DataParallel, []), (lambda m: nn.Sequential(m, nn.Linear(2,2)), ['1']), (Around, ['last'])], ids=['parallel','nested','around'])
@pytest.mark.parametrize('what', ['loaded', 'pretrained'])
def test_wrapped(what, wrap, new):
    "What was loaded or pretrained stays, and what came with the wrapper is new"
    learn = learner(cbs=LSUVCallback(), **({} if what=='loaded' else dict(splitter=groups)))
    if what=='loaded': learn.model[0].load_state_dict(net()[0].state_dict())
    else:
        learn.pretrained = True
        learn.freeze()
        learn.unfreeze()
    inner = learn.model
    kept,others = weights(inner[0]),weights(inner[1])
    learn.model = wrap(inner)
    if new and what=='pretrained': learn.splitter = lambda m: [params(inner[0]), params(inner[1])+params(m.last if isinstance(m, Around) else m[1])]
    with pytest.warns(UserWarning, match=f'1 {what}'): fit(learn, 1, 0.)
    assert same(kept, weights(inner[0])) and not any(torch.equal(p, q) for p,q in zip(others, weights(inner[1])))
    df = learn.lsuv.report.df.set_index('layer')
    assert sorted(df.index[df.status=='ok'])==sorted([n for n in df.index if n.endswith(('1.0','1.2'))]+new)

def test_pretrained_frozen_then_wrapped():
    learn = learner(cbs=LSUVCallback(), splitter=groups)
    learn.pretrained = True
    learn.freeze()
    kept = weights(learn.model[0])
    learn.model = nn.DataParallel(learn.model)
    fit(learn, 1, 0.)
    assert same(kept, weights(learn.model.module[0])) and list(learn.lsuv.report.df.status)==['pretrained','ok','ok']

def test_replaced():
    "Another model in the same Learner is new, all of it"
    learn = learner(cbs=LSUVCallback())
    learn.model = net()
    fit(learn, 1, 0.)
    assert set(learn.lsuv.report.df.status)=={'ok'}

@pytest.mark.parametrize('norm', [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.parametrize('loaded', [True, False])
def test_loaded_then_weight_norm(norm, loaded):
    "A weight norm alone does not make a layer a loaded one"
    learn = learner(cbs=LSUVCallback())
    if loaded: learn.model.load_state_dict(net().state_dict())
    for o in (learn.model[0][0], learn.model[1][0]): norm(o)
    before = weights(learn.model)
    fit(learn, 1, 0.)
    assert same(before, weights(learn.model))==loaded and set(learn.lsuv.report.df.status)=={'loaded' if loaded else 'ok'}

def test_pretrained_copy():
    "The optimizer of another model's parameters knows nothing; the Learner's splitter does"
    learn = learner(cbs=LSUVCallback(), splitter=groups)
    learn.pretrained = True
    learn.create_opt()
    learn.model = deepcopy(learn.model)
    kept = weights(learn.model[0])
    fit(learn, 1, 0.)
    assert same(kept, weights(learn.model[0])) and list(learn.lsuv.report.df.status)==['pretrained','ok','ok']
    learn = learner(cbs=LSUVCallback(), splitter=lambda m: [params(m.nothing), params(m)])
    learn.pretrained,learn.opt = True,learn.opt_func([p for p in net().parameters()], lr=0.1)
    kept = weights(learn.model)
    fit(learn, 1, 0.)
    assert same(kept, weights(learn.model)) and set(learn.lsuv.report.df.status)=={'pretrained'} # a model that the splitter does not know

def test_pretrained_in_one_group():
    "Nothing tells the body from the head then: all is kept"
    for opt,splitter in ((None, params), (lambda ps: OptimWrapper(ps, torch.optim.SGD, lr=0.1), params), (lambda ps: SGD(ps, lr=0.1), lambda m: [params(m)])):
        learn = learner(cbs=LSUVCallback(), splitter=splitter)
        learn.pretrained = True
        if opt: learn.opt = opt(params(learn.model))
        kept = weights(learn.model)
        fit(learn, 1, 0.)
        assert same(kept, weights(learn.model)) and set(learn.lsuv.report.df.status)=={'pretrained'}
    learn = learner(cbs=LSUVCallback(), splitter=groups) # an optimizer of one group, but a splitter that knows two
    learn.pretrained,learn.opt = True,SGD(params(learn.model), lr=0.1)
    kept = weights(learn.model[0])
    fit(learn, 1, 0.)
    assert same(kept, weights(learn.model[0])) and list(learn.lsuv.report.df.status)==['pretrained','ok','ok']

def test_trained_without_a_recorder():
    "The state of the optimizer tells, fastai's or the one in it"
    for opt in (Adam, partial(SGD, mom=0.9), OPTS['torch_AdamW']):
        learn = learner(opt_func=opt)
        learn.remove_cb(learn.recorder)
        learn.fit(1, 1e-2)
        vars(learn).pop('smooth_loss', None)
        trained = weights(learn.model)
        learn.fit(1, 0., cbs=LSUVCallback())
        assert same(trained, weights(learn.model)), opt

@pytest.mark.parametrize('layer,said', [(nn.LazyLinear(24), 'is not built yet .lazy module.: run one batch through the model first'),
                                        (nn.Linear(12,24,device='meta'), 'has no values .meta device.')])
def test_layers_without_values(layer, said):
    "A Learner of them can be made, with the callback; the fit says what to do"
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(24,2))
    if not layer.weight.is_meta: # fastai's optimizer needs the parameters, too
        learn = learner(model, cbs=LSUVCallback())
        with pytest.raises(ValueError, match='0.weight '+said): learn.lsuv.initialize((torch.randn(4,12),))
    from fastinit.trained import changed_params, remember
    seen = remember(model)
    assert seen[layer]=={} or layer.bias is not None and set(seen[layer])<={'bias'}
    assert set(seen[model[2]])=={'weight','bias'} and changed_params(model, seen)==set()

# A scheme of one's own

def ones(model):
    for p in model.parameters(): nn.init.ones_(p)
def ones_of_layers(model, layers=None): ones(model) # which does not do as it is told

def embedded(): return nn.Sequential(nn.Linear(12,8), nn.LayerNorm(8), nn.Linear(8,2))
@pytest.mark.parametrize('scheme', [ones, ones_of_layers])
@pytest.mark.parametrize('why', ['frozen', 'loaded', 'pretrained', 'not chosen'])
def test_own_scheme_keeps(why, scheme):
    "Whatever a scheme does: what is named as left alone, and frozen or loaded parameters of other modules, are bit-identical"
    learn = learner(embedded(), cbs=InitCallback(scheme, layers='2' if why=='not chosen' else None), splitter=lambda m: [params(m[:2]), params(m[2])])
    if why=='loaded': learn.model[:2].load_state_dict({k:torch.randn_like(v) for k,v in learn.model[:2].state_dict().items()})
    if why=='frozen': learn.freeze()
    if why=='frozen': learn.model[1].requires_grad_(False)
    if why=='pretrained': learn.pretrained = True
    kept = weights(learn.model[:2])
    fit(learn, 1, 0.)
    assert same(kept, weights(learn.model[:2])) and all((p==1).all() for p in learn.model[2].parameters())
    if why!='not chosen': assert learn.init.report['0'].status==why

def test_own_scheme_forced():
    learn = learner(embedded(), cbs=InitCallback(ones, force=True))
    learn.model.load_state_dict({k:torch.randn_like(v) for k,v in learn.model.state_dict().items()})
    learn.model[0].requires_grad_(False)
    fit(learn, 1, 0.)
    assert all((p==1).all() for p in learn.model.parameters())

def test_own_scheme_before_lsuv():
    "`pre=` without `layers=`, where a layer is loaded and another frozen"
    learn = learner(cbs=LSUVCallback(pre=ones))
    learn.model[0].load_state_dict(net()[0].state_dict())
    learn.model[1][2].requires_grad_(False)
    a,b = weights(learn.model[0]),weights(learn.model[1][2])
    fit(learn, 1, 0.)
    assert same(a, weights(learn.model[0])) and same(b, weights(learn.model[1][2]))
    w = learn.model[1][0].weight
    assert torch.allclose(w, w[0,0].expand_as(w)) and w[0,0]!=1 # of ones, scaled

# Where there is little to do

def test_no_layer_was_called():
    class Lost(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(12,2)
        def forward(self, x): return x[:,:2]*2
    model,x = Lost(),torch.randn(8,12)
    before = weights(model)
    for f,n in ((lsuv_, 1), (partial(lsuv_, at='activation'), 1), (lambda m,x: init_(m, 'kaiming', x), 0), (init_stats, 0)):
        report = f(model, x)
        assert list(report.df.layer)==['a'][:n] and list(report.df.status)==['not called'][:n] and repr(report) and report._repr_html_()
        with warnings.catch_warnings():
            warnings.simplefilter('error', UserWarning)
            report.plot()
        if f is lsuv_: assert same(before, weights(model))
    class LostAndFound(Lost):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))
        def forward(self, x): return x[:,:2]*self.scale
    learn = learner(LostAndFound(), cbs=LSUVCallback(watch=2))
    fit(learn, 1, 1e-3)
    assert list(learn.lsuv.report.df.status)==['not called'] and len(learn.lsuv.report.watched)==2
    with pytest.raises(ValueError, match='none of the layers was called'): learn.init_report().plot_steps()

def collab():
    g = torch.Generator().manual_seed(0)
    ds = [(torch.randint(0, 20, (2,), generator=g), torch.rand(1, generator=g)*4) for _ in range(64)]
    return Learner(DataLoaders.from_dsets(ds, ds, bs=16, num_workers=0), EmbeddingDotBias(5, 20, 20, (0,5)), loss_func=MSELossFlat(), cbs=LSUVCallback()).remove_cb(ProgressCallback)
def test_nothing_to_initialize():
    "A warning, and the fit goes on"
    learn = collab()
    with pytest.warns(UserWarning, match='EmbeddingDotBias has no layer that lsuv initializes'): fit(learn, 1, 1e-3)
    assert learn.lsuv.done and len(learn.recorder.values)==1
    learn = collab()
    before = weights(learn.model)
    fit(learn, 1, 0.)
    assert same(before, weights(learn.model))

def test_only_layers_of_transformers():
    "GPT-2's linear layers are known by default, also where a model has no others"
    from transformers.pytorch_utils import Conv1D
    learn = learner(nn.Sequential(Conv1D(24,12), nn.ReLU(), Conv1D(2,24)), cbs=LSUVCallback())
    fit(learn, 1, 0.)
    df = learn.lsuv.report.df
    assert list(df.status)==['ok','ok'] and (df['std']-1).abs().max()<1e-3 and df.scale.notna().all()

@pytest.mark.parametrize('use_nn', [False, True])
def test_collab_learner(use_nn):
    "Embeddings keep what they are; the linear layers of the network after them are initialized"
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(user=rng.integers(0,20,200), item=rng.integers(0,20,200), rating=rng.random(200)*5))
    learn = collab_learner(CollabDataLoaders.from_df(df, bs=32), n_factors=8, y_range=(0,5), use_nn=use_nn, layers=[16] if use_nn else None, cbs=LSUVCallback(watch=2))
    before = [m.weight.detach().clone() for m in learn.model.modules() if isinstance(m, nn.Embedding)]
    fit(learn.remove_cb(ProgressCallback), 1, 0.)
    assert same(before, [m.weight for m in learn.model.modules() if isinstance(m, nn.Embedding)])
    df = learn.lsuv.report.df
    assert list(df.layer[df.scale.notna()])==(['layers.0.0','layers.1.0'] if use_nn else []) and np.allclose(df['std'][df.scale.notna()], 1., atol=1e-4)
    assert learn.init_report(grads=True).df.grad_std.gt(0).all() and len(learn.lsuv.report.watched)==2

def test_in_default_callbacks(monkeypatch):
    "One callback for every Learner that is made"
    monkeypatch.setattr(defaults, 'callbacks', [*defaults.callbacks, LSUVCallback()])
    learns = [learner(), learner()]
    for l in learns: fit(l, 1, 0.)
    assert all(set(l.lsuv.report.df.status)=={'ok'} for l in learns)
    assert len({id(l.lsuv) for l in learns})==2

def test_wrong_layers_are_an_error():
    learn = learner(cbs=LSUVCallback(layers=nn.Conv2d))
    with pytest.raises(ValueError, match='no layer to initialize'): fit(learn, 1)

def test_batch_of_one():
    "As `lsuv_` on one item"
    ds = [(torch.randn(12), torch.tensor(i%2)) for i in range(4)]
    model = net()
    learn = Learner(DataLoaders(DataLoader(ds, bs=1), DataLoader(ds, bs=1)), model, loss_func=CrossEntropyLossFlat(), cbs=LSUVCallback()).remove_cb(ProgressCallback)
    fit(learn, 1, 0.)
    assert (learn.lsuv.report.df['std']-1).abs().max()<1e-3

class Tuple(nn.Module):
    "Gives its output and what led to it, as fastai's text models"
    def __init__(self):
        super().__init__()
        self.a,self.b = nn.Linear(12,24),nn.Linear(24,2)
    def forward(self, x):
        h = self.a(x).relu()
        return self.b(h),h
class TakeFirst(Callback):
    def after_pred(self): self.learn.pred,self.learn.hidden = self.pred

def test_gradients_by_the_learners_own_loss():
    learn = learner(Tuple(), cbs=TakeFirst())
    fit(learn, 1, 1e-3)
    before = weights(learn.model)
    report = learn.init_report(grads=True)
    x,y = learn.dls.train.new(shuffle=False).one_batch()
    assert report.df.grad_std.gt(0).all() and same(before, weights(learn.model))
    from fastinit.batch import inputs_targets
    (x,),(y,) = inputs_targets(learn)
    h = learn.model.a(x)
    out = learn.model.b(h.relu())
    g = torch.autograd.grad(learn.loss_func(out, y), [h, out])
    for n,v in zip('ab', g): assert abs(report[n].grad_std/v.std().item()-1)<1e-4

def test_gradients_of_text_models(tmp_path):
    "A language model gives a tuple, a classifier too; the numbers are those of plain hooks"
    from fastai.text.all import AWD_LSTM, BaseTokenizer, TextBlock, ColReader, DataBlock, CategoryBlock, RandomSplitter, awd_lstm_clas_config, awd_lstm_lm_config
    from fastai.text.all import language_model_learner, text_classifier_learner
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(text=[' '.join(rng.choice(list('abcdefgh'), 20)) for _ in range(64)], label=['x','y']*32))
    for lm in (True, False):
        blocks = [TextBlock.from_df('text', is_lm=lm, tok=BaseTokenizer(), n_workers=1, min_freq=1)] + ([] if lm else [CategoryBlock])
        getters = dict(get_x=ColReader('text'), **({} if lm else dict(get_y=ColReader('label'))))
        dls = DataBlock(blocks=tuple(blocks), splitter=RandomSplitter(0.25, seed=0), **getters).dataloaders(df, bs=8, seq_len=10, num_workers=0, path=tmp_path)
        f,config = (language_model_learner,awd_lstm_lm_config) if lm else (text_classifier_learner,awd_lstm_clas_config)
        learn = f(dls, AWD_LSTM, config={**config, 'emb_sz':12, 'n_hid':16, 'n_layers':2}, pretrained=False, cbs=LSUVCallback())
        for _ in range(2):
            before,report = weights(learn.model),learn.init_report(grads=True, hist=True)
            assert len(report)==(3 if lm else 6) and report.df.grad_std.gt(0).all() and same(before, weights(learn.model))
            fit(learn.remove_cb(ProgressCallback), 1, 1e-3)
        assert any('2 WeightDropout' in o and 'RNNDropout' in o for o in learn.lsuv.report.notes)

class Logits(Callback):
    def after_pred(self): self.learn.pred = self.pred.logits
def test_transformers_model():
    "It has methods and attributes that a Learner passes on, such as `_init_weights`"
    transformers = pytest.importorskip('transformers')
    cfg = transformers.DistilBertConfig(vocab_size=50, dim=16, n_heads=2, n_layers=2, hidden_dim=32, max_position_embeddings=16)
    g = torch.Generator().manual_seed(0)
    ds = [(torch.randint(0, 50, (10,), generator=g), torch.tensor(i%2)) for i in range(64)]
    learn = Learner(DataLoaders.from_dsets(ds, ds, bs=16, num_workers=0), transformers.DistilBertForSequenceClassification(cfg), loss_func=CrossEntropyLossFlat(),
                    cbs=[Logits(), LSUVCallback(watch=2)]).remove_cb(ProgressCallback)
    assert learn.init_report(grads=True).df.grad_std[1:].gt(0).all()
    fit(learn, 1, 1e-3)
    df = learn.lsuv.report.df
    assert df.scale.notna().sum()==14 and np.allclose(df['std'][df.scale.notna()], 1., atol=1e-4) and len(learn.init_report().watched)==2
    w = weights(learn.model)
    fit(learn, 1, 0.)
    assert same(w, weights(learn.model))
    assert len(learn.compare_inits(['default','lsuv'], steps=2).table)==2

class Named(nn.Module):
    "Whose attributes have the names of a Learner's"
    _init_weights = _fastinit = pretrained = recorder = final_record = skip_to_epoch = lr_finder = progress = n_epoch = True
    def __init__(self):
        super().__init__()
        self.net = net()
    def forward(self, x): return self.net(x)
def test_names_in_the_model():
    "They are the model's: the Learner is not pretrained, trained or watched for them"
    learn = learner(Named(), cbs=LSUVCallback(watch=3))
    assert len(learn.compare_inits(['default','lsuv']))==2
    fit(learn, 1, 1e-3)
    assert set(learn.lsuv.report.df.status)=={'ok'} and len(learn.lsuv.report.watched)==3 and learn.init_report() is learn.lsuv.report

class GeneralRelu(nn.Module):
    "As in the course"
    def __init__(self, leak=None, sub=None, maxv=None):
        super().__init__()
        self.leak,self.sub,self.maxv = leak,sub,maxv
    def forward(self, x):
        x = nn.functional.leaky_relu(x, self.leak) if self.leak is not None else nn.functional.relu(x)
        if self.sub is not None: x -= self.sub
        if self.maxv is not None: x.clamp_max_(self.maxv)
        return x
def test_the_courses_general_relu():
    "Its std is right, its number stays, and the report says that its mean does"
    model,x = nn.Sequential(nn.Linear(12,64), GeneralRelu(0.1, 0.4), nn.Linear(64,64), GeneralRelu(0.1, 0.4)),torch.randn(256,12)
    report = lsuv_(model, x, at='activation')
    assert any(o.startswith('2 GeneralRelu subtract a plain number, which stays') for o in report.notes)
    after = [model[:i](x) for i in (2,4)]
    assert model[1].sub==0.4 and all(abs(o.std()-1)<2e-3 and abs(o.mean())>0.05 for o in after)
    assert not any('subtract' in o for o in lsuv_(model, x, at='activation', center=False).notes)

@pytest.mark.parametrize('how', ['fit','add'])
@pytest.mark.parametrize('with_opt', [True,False])
@pytest.mark.parametrize('opt', OPTS)
def test_loaded_before_the_callback_came(tmp_path, opt, with_opt, how):
    "`load` notes what the weights were, be there a callback or not, and whatever the file has of the optimizer"
    old = learner(opt_func=OPTS[opt], path=tmp_path)
    fit(old, 1)
    old.save('model', with_opt=with_opt)
    learn = learner(opt_func=OPTS[opt], path=tmp_path)
    learn.load('model', with_opt=with_opt)
    cb = LSUVCallback()
    if how=='add': fit(learn.add_cb(cb), 1, 0.)
    else: fit(learn, 1, 0., cbs=cb)
    assert set(cb.report.df.status)=={'loaded'}
    for a,b in zip(learn.model.parameters(), old.model.parameters()): assert torch.equal(a, b)

def test_what_a_shallow_copy_learns_stays_there(tmp_path):
    learn = learner(path=tmp_path)
    see(learn)
    again = copy(learn)
    note(again, trained=True, seen={})
    assert not known_of(learn).trained and len(known_of(learn).seen)==8 and was_trained(again) and not was_trained(learn)

def test_a_file_without_a_report_needs_no_fastinit(tmp_path):
    "Of a Learner that loaded weights, or looked for a rate after training"
    code = """import sys
from fastai.basics import *
class Items(list):
    def new_empty(self): return Items(self[:0])
ds = Items([(torch.randn(3), torch.randn(1)) for _ in range(32)])
def learner(): return Learner(DataLoaders.from_dsets(ds, ds, bs=8, num_workers=0), nn.Linear(3,1), loss_func=MSELossFlat(), path=sys.argv[1])
if sys.argv[2]=='export':
    from fastinit.all import *
    from fastinit.trained import known_of
    with (learn := learner()).no_logging(), learn.no_bar(): learn.fit(1)
    learn.save('m')
    learn.lr_find(num_it=4, show_plot=False)
    learn.load('m')
    assert known_of(learn).trained and len(known_of(learn).seen)==1
    learn.export('l.pkl')
else:
    sys.modules['fastinit'] = None
    assert '_fastinit' in vars(load_learner(sys.argv[1]+'/l.pkl'))
"""
    for what in ('export','load'): subprocess.run([sys.executable, '-W', 'ignore', '-c', code, str(tmp_path), what], check=True, timeout=300)

def test_a_head_that_was_put_in_and_then_loaded(tmp_path):
    "After the callback came: it is told from one that is new"
    old = learner(path=tmp_path)
    old.save('model', with_opt=False)
    for load in (True, False):
        learn = learner(path=tmp_path, cbs=LSUVCallback())
        learn.model[1][2] = nn.Linear(24,2)
        if load: learn.load('model', with_opt=False)
        fit(learn, 1, 0.)
        assert list(learn.lsuv.report.df.status)==(['loaded']*3 if load else ['ok']*3)
        assert torch.equal(learn.model[1][2].weight, old.model[1][2].weight)==load

def test_a_fit_that_was_cancelled_in_its_first_steps():
    "SGD without momentum, no epoch ended, four rates that are the same: no range test"
    class Stop(Callback):
        def after_batch(self):
            if self.training and self.iter==3: raise CancelFitException()
    learn = learner(opt_func=partial(SGD, mom=0.))
    fit(learn, 1, 0.1, cbs=Stop())
    was = weights(learn.model)
    learn.add_cb(LSUVCallback())
    fit(learn, 1, 0.)
    assert same(weights(learn.model), was)

def test_an_optimizer_that_begins_with_a_state():
    "Adagrad's has one before its first step"
    learn = learner(opt_func=partial(OptimWrapper, opt=torch.optim.Adagrad), cbs=LSUVCallback())
    learn.create_opt()
    fit(learn, 1, 0.)
    assert learn.lsuv.report.left=={}
