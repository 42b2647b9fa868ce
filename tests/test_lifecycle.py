"The callbacks on real Learners: once, at the right time, and never on weights that must not be lost."
import random, warnings
from copy import deepcopy
import pytest, torch
from torch import nn
import numpy as np
from functools import partial
from PIL import Image
from fastai.vision.all import (accuracy, ActivationStats, aug_transforms, Callback, CancelFitException, CrossEntropyLossFlat, DataLoader, DataLoaders, ImageDataLoaders,
                               L, Learner, load_learner, MSELossFlat, params, ProgressCallback, Resize, resnet18, set_seed, vision_learner, xresnet18)
from fastinit.all import *
from conftest import Unchanged

def data(n=96, bs=16, d=12):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, d, generator=g)
    ds = list(zip(x, (x[:,0]>0).long()))
    return DataLoaders.from_dsets(ds[:n*2//3], ds[n*2//3:], bs=bs, num_workers=0)

def net(): return nn.Sequential(nn.Linear(12,24), nn.ReLU(), nn.Linear(24,24), nn.ReLU(), nn.Linear(24,2))
def learner(dls=None, model=None, **kwargs):
    set_seed(7)
    return Learner(dls or data(), model or net(), loss_func=CrossEntropyLossFlat(), metrics=accuracy, **kwargs)
@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield

def weights(learn): return [p.detach().clone() for p in learn.model.parameters()]
def same(a, b): return all(torch.equal(p, q) for p,q in zip(a, b))
def quiet(learn): return learn.remove_cb(ProgressCallback)

STARTS = dict(fit=lambda l: l.fit(1, 0.), one_cycle=lambda l: l.fit_one_cycle(1, 1e-30), fine_tune=lambda l: l.fine_tune(1, 0.))
@pytest.mark.parametrize('start', STARTS)
@pytest.mark.parametrize('cb', [LSUVCallback, KaimingCallback, partial(InitCallback, 'xavier')])
def test_once(start, cb):
    learn = quiet(learner(cbs=cb()))
    before = weights(learn)
    with learn.no_logging():
        STARTS[start](learn)
        after = weights(learn)
        assert not same(before, after)
        STARTS[start](learn)
    assert all(torch.allclose(p, q, atol=1e-6) for p,q in zip(after, weights(learn)))

def test_not_without_fit():
    learn = quiet(learner(cbs=LSUVCallback()))
    before = weights(learn)
    with learn.no_logging():
        learn.validate(); learn.get_preds(); learn.summary()
    assert same(before, weights(learn)) and not learn.lsuv.done

def test_lr_find_keeps_it(tmp_path):
    learn = quiet(learner(cbs=LSUVCallback(), path=tmp_path))
    with learn.no_logging(): learn.lr_find(num_it=5, show_plot=False)
    assert learn.lsuv.done
    rep = init_stats(learn.model, *learn.dls.train.new(shuffle=False).one_batch()[:1])
    assert (rep.df['std']-1).abs().max()<0.5 # another batch than the one it was made on
    after = weights(learn)
    with learn.no_logging(): learn.fit(1, 0.)
    assert same(after, weights(learn))

def test_same_data_and_rng_as_without():
    "A fit with the callback sees the same batches, in the same order, as a fit without it"
    class Seen(Callback):
        def __init__(self): self.xs = []
        def before_batch(self):
            if self.training: self.xs.append(self.x.clone())
    got = []
    for cbs in ([], [LSUVCallback()], [KaimingCallback()]):
        learn = quiet(learner(cbs=[Seen(), *cbs]))
        with learn.no_logging(): learn.fit(2, 0.)
        got.append((torch.cat(learn.seen.xs), torch.get_rng_state(), random.getstate()))
    for x,r,s in got[1:]: assert torch.equal(x, got[0][0]) and torch.equal(r, got[0][1]) and s==got[0][2]

def test_done_is_bit_identical():
    "Training on with a callback that has done its work equals training on without it"
    a,b = (quiet(learner(cbs=LSUVCallback())) for _ in range(2))
    for l in (a,b):
        set_seed(3)
        with l.no_logging():
            l.fit(1, 0.)
            if l is b: l.remove_cb(LSUVCallback)
            l.fit(1, 1e-3)
    assert same(weights(a), weights(b))

@pytest.mark.parametrize('error', [KeyboardInterrupt, CancelFitException, RuntimeError])
def test_interrupted(error):
    learn = quiet(learner(cbs=LSUVCallback()))
    before,broken = weights(learn),[True]
    def _fail(*_):
        if broken: raise error()
    learn.model[2].register_forward_hook(_fail)
    with learn.no_logging():
        try: learn.fit(1, 0.)
        except (KeyboardInterrupt, RuntimeError, ValueError): pass
        assert same(before, weights(learn)) and not learn.lsuv.done
        broken.clear()
        learn.fit(1, 0.)
    assert learn.lsuv.done and not same(before, weights(learn))

def test_loaded(tmp_path):
    a = quiet(learner(model_dir=tmp_path))
    with a.no_logging(): a.fit(1, 1e-2)
    a.save('a')
    for opt in (True, False):
        b = quiet(learner(model_dir=tmp_path, cbs=LSUVCallback()))
        b.load('a', with_opt=opt)
        with b.no_logging(), pytest.warns(UserWarning, match='3 loaded'): b.fit(1, 0.)
        assert same(weights(a), weights(b))
        assert set(b.lsuv.report.df.status)=={'loaded'}
    c = quiet(learner(model_dir=tmp_path, cbs=LSUVCallback(force=True)))
    c.load('a')
    with c.no_logging(): c.fit(1, 0.)
    assert not same(weights(a), weights(c))

def test_added_after_training():
    learn = quiet(learner())
    with learn.no_logging():
        learn.fit(1, 1e-2)
        before = weights(learn)
        with pytest.warns(UserWarning, match='loaded'): learn.fit(1, 0., cbs=LSUVCallback())
    assert same(before, weights(learn))

def test_frozen():
    learn = quiet(learner(cbs=LSUVCallback()))
    for p in learn.model[0].parameters(): p.requires_grad_(False)
    w = learn.model[0].weight.clone()
    with learn.no_logging(), pytest.warns(UserWarning, match='1 frozen .0.'): learn.fit(1, 0.)
    assert torch.equal(w, learn.model[0].weight) and learn.lsuv.report['0'].status=='frozen'

def test_pretrained_body_unfrozen():
    learn = quiet(learner(splitter=lambda m: [params(m[0]), params(m[2:])], cbs=LSUVCallback()))
    learn.pretrained = True
    w = learn.model[0].weight.clone()
    with learn.no_logging(), pytest.warns(UserWarning, match='1 pretrained .0.'): learn.fit(1, 0.)
    assert torch.equal(w, learn.model[0].weight)

def test_users_activation_stats():
    learn = quiet(learner(cbs=[ActivationStats(), LSUVCallback()]))
    with learn.no_logging(): learn.fit(2, 0.)
    assert len(learn.activation_stats.stats)==2*len(learn.dls.train)

def test_optimizer_untouched():
    learn = quiet(learner(cbs=LSUVCallback(), splitter=lambda m: [params(m[0]), params(m[2:])]))
    learn.create_opt()
    ids = [[id(p) for p in g] for g in learn.opt.param_lists]
    with learn.no_logging(): learn.fit(1, slice(1e-5,1e-3))
    assert [[id(p) for p in g] for g in learn.opt.param_lists]==ids==[[id(p) for p in g] for g in learn.splitter(learn.model)]

def test_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b = nn.Linear(3,8),nn.Linear(4,8)
        def forward(self, x, y): return (self.a(x)*self.b(y)).sum(1)
    ds = [(torch.randn(3), torch.randn(4), torch.randn(1)[0]) for _ in range(64)]
    dls = DataLoaders.from_dsets(ds[:48], ds[48:], bs=16, num_workers=0)
    learn = quiet(Learner(dls, Two(), loss_func=MSELossFlat(), cbs=LSUVCallback()))
    with learn.no_logging(): learn.fit(1, 0.)
    assert (learn.lsuv.report.df['std']-1).abs().max()<1e-5

@pytest.mark.parametrize('n,bs,match', [(0,16,'gives no batch'), (4,16,'gives no batch'), (1,1,'one item')])
def test_too_little_data(n, bs, match):
    ds = [(torch.randn(12), torch.tensor(0)) for _ in range(n)]
    dls = DataLoaders(DataLoader(ds, bs=bs, drop_last=bs>1, shuffle=True), DataLoader(ds, bs=bs))
    for act in (lambda l: l.fit(1), lambda l: l.init_report(), lambda l: l.compare_inits()):
        learn = quiet(learner(dls, cbs=LSUVCallback()))
        before = weights(learn)
        with learn.no_logging(), pytest.raises(ValueError, match=match): act(learn)
        assert same(before, weights(learn))

def test_unbuilt():
    with pytest.raises(TypeError, match='pass a built model'): Learner(data(), net, loss_func=CrossEntropyLossFlat(), cbs=LSUVCallback())
    with pytest.raises(TypeError, match='pass a built model'): lsuv_(learner(), torch.randn(4,12))
    with pytest.raises(ValueError, match="unknown scheme 'nope'; known: default, normal, xavier, kaiming, orthogonal, lsuv"): InitCallback('nope')

def test_compare_leaves_all_as_it_was():
    learn = quiet(learner(model=nn.Sequential(nn.Linear(12,24), nn.BatchNorm1d(24), GeneralReLU(0.1), nn.Linear(24,2))))
    with learn.no_logging(): learn.fit(1, 1e-2)
    opt = deepcopy(learn.opt.state_dict())
    py = random.getstate()
    with Unchanged(learn.model): reports = learn.compare_inits(['normal','default','xavier','kaiming','orthogonal','lsuv'])
    assert random.getstate()==py and list(reports)[0]=='normal'
    now = learn.opt.state_dict()
    for s,s0 in zip(now['state'], opt['state']): assert all(torch.equal(torch.as_tensor(s[k]), torch.as_tensor(s0[k])) for k in s0)
    learn.init_report()

@pytest.fixture(scope='module')
def images(tmp_path_factory):
    "DataLoaders of a folder of images, a subfolder a class"
    path,rng = tmp_path_factory.mktemp('images'),np.random.default_rng(0)
    for c in 'ab':
        (path/c).mkdir()
        for i in range(12): Image.fromarray(rng.integers(0,255,(32,32,3),dtype=np.uint8)).save(path/c/f'{i}.png')
    return ImageDataLoaders.from_folder(path, valid_pct=0.25, item_tfms=Resize(32), batch_tfms=aug_transforms(), bs=8, num_workers=0)

def test_readme_snippet_and_export(images, tmp_path):
    learn = quiet(Learner(images, xresnet18(n_out=2), metrics=accuracy, cbs=LSUVCallback(), path=tmp_path))
    with learn.no_logging():
        learn.fit_one_cycle(1)
        learn.predict(images.train_ds.items[0]); learn.tta()
    report = learn.init_report()
    assert (report.df[report.df.scale.notna()]['std']-1).abs().max()<1e-5
    learn.export()
    again = load_learner(tmp_path/'export.pkl')
    assert again.lsuv.done and again.init_report().summary==report.summary

@pytest.mark.parametrize('workers', [0,2])
def test_vision_learner(images, workers):
    images.num_workers = workers
    learn = quiet(vision_learner(images, resnet18, pretrained=False, metrics=accuracy, cbs=LSUVCallback()))
    with learn.no_logging(): learn.fine_tune(1)
    assert learn.lsuv.done and learn.lsuv.report.df.converged.any()

@pytest.mark.parametrize('when', ['before the Learner', 'after it'])
@pytest.mark.parametrize('wrap', [nn.DataParallel, partial(torch.compile, backend='eager')])
def test_wrapped_keeps_loaded(wrap, when):
    "A wrapper gives layers other names; what was loaded is still told"
    trained,model = net(),net()
    learn = quiet(learner(model=model if when=='after it' else wrap(model), cbs=LSUVCallback()))
    model.load_state_dict(trained.state_dict())
    if when=='after it': learn.model = wrap(model)
    with learn.no_logging(): learn.fit(1, 0.)
    assert learn.lsuv.done and same(model.parameters(), trained.parameters())
    assert (learn.lsuv.report.df.status=='loaded').all() and list(learn.lsuv.report.df.layer)==['0','2','4']

def test_wrapped_is_initialized():
    model = net()
    learn = quiet(learner(model=nn.DataParallel(model), cbs=LSUVCallback(force=True)))
    before = weights(learn)
    with learn.no_logging(): learn.fit(1, 0.)
    assert not same(before, weights(learn)) and list(init_layers(learn.model))==['0','2','4']
