"The callbacks on real Learners: once, at the right time, and never on weights that must not be lost."
import gc, itertools, pickle, random, re, subprocess, sys, warnings, weakref
from contextlib import contextmanager, nullcontext, suppress
from copy import deepcopy
import pytest, torch
from torch import nn
import cloudpickle, numpy as np, pandas as pd, timm
import matplotlib.pyplot as plt
from functools import partial
from PIL import Image
from fastai.vision.all import (accuracy, ActivationStats, aug_transforms, Callback, CancelBatchException, CancelFitException, CancelTrainException, ClassificationInterpretation, ContextManagers,
    CrossEntropyLossFlat, DataLoader, DataLoaders, EarlyStoppingCallback, GradientAccumulation, GradientClip, ImageDataLoaders, L, Learner, load_learner,
    load_model, MixedPrecision, MixUp, MSELossFlat, OptimWrapper, params, ProgressCallback, Resize, resnet18, SaveModelCallback, set_seed, TerminateOnNaNCallback,
    unet_learner, vision_learner, xresnet18)
from fastai.callback.channelslast import ChannelsLast
from fastai.distributed import ParallelTrainer
from fastai.text.all import (AWD_LSTM, BaseTokenizer, awd_lstm_clas_config, awd_lstm_lm_config, get_language_model, language_model_learner, text_classifier_learner,
                             DataBlock, TextBlock, CategoryBlock, ColReader, RandomSplitter)
from fastinit.all import *
from fastinit.layers import unwrap
from conftest import AFFINE, Unchanged, outputs

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

@pytest.fixture(scope='module')
def images(tmp_path_factory):
    "DataLoaders of a folder of images, a subfolder a class"
    path,rng = tmp_path_factory.mktemp('images'),np.random.default_rng(0)
    for c in 'ab':
        (path/c).mkdir()
        for i in range(12): Image.fromarray(rng.integers(0,255,(32,32,3),dtype=np.uint8)).save(path/c/f'{i}.png')
    return ImageDataLoaders.from_folder(path, valid_pct=0.25, item_tfms=Resize(32), batch_tfms=aug_transforms(), bs=8, num_workers=0)

def convnet():
    return nn.Sequential(nn.Sequential(nn.Conv2d(3,8,3,stride=2), nn.BatchNorm2d(8), nn.ReLU()),
                         nn.Sequential(nn.Conv2d(8,8,3,stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8,2)))
def image_learner(dls, **kwargs): return quiet(learner(dls, convnet(), splitter=lambda m: [params(m[0]), params(m[1])], **kwargs))

@pytest.fixture
def inits(monkeypatch):
    "The schemes that were run, in order"
    import fastinit.callback as callback
    done,f = [],callback.init_split
    def _init(model, scheme, *args, **kwargs):
        done.append(scheme)
        return f(model, scheme, *args, **kwargs)
    monkeypatch.setattr(callback, 'init_split', _init)
    return done

# When: before the first fit, once

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

class Placed(nn.Module):
    "Works only where fastai has put it"
    placed = False
    def __init__(self):
        super().__init__()
        self.net = net()
    def to(self, *args, **kwargs):
        self.placed = True
        return super().to(*args, **kwargs)
    def forward(self, x):
        if not self.placed: raise RuntimeError('not on the device yet')
        return self.net(x)
@pytest.mark.parametrize('cb', [partial(LSUVCallback, watch=2), KaimingCallback, partial(InitCallback, 'xavier')])
def test_on_the_device(cb):
    learn = quiet(learner(model=Placed(), cbs=cb()))
    with learn.no_logging(): learn.fit(1, 0.)
    report = learn.init_report()
    assert set(report.df.status)=={'ok'} and not any('initialized at the first training batch' in o for o in report.notes) # nothing had to wait

STAGES = [lambda l: l.fit(1, 1e-3), lambda l: l.freeze(), lambda l: l.fit_one_cycle(1, 1e-3), lambda l: l.unfreeze(), lambda l: l.fit_flat_cos(1, 1e-3),
          lambda l: l.fit_sgdr(1, 1, 1e-3), lambda l: l.fit(1, reset_opt=True), lambda l: l.lr_find(num_it=6, show_plot=False), lambda l: l.fine_tune(1)]
def test_several_fits(inits, tmp_path):
    learn = quiet(learner(cbs=LSUVCallback(), splitter=lambda m: [params(m[0]), params(m[2:])], path=tmp_path))
    with learn.no_logging():
        for f in STAGES: f(learn)
    assert inits==['lsuv']

def _interpret(learn): ClassificationInterpretation.from_learner(learn).top_losses(2)
def _context(learn):
    if learn.opt is None: learn.create_opt() # fastai's own wish
    with learn: learn._do_epoch_validate()

PASSIVE = dict(validate=lambda l: l.validate(), get_preds=lambda l: l.get_preds(), get_preds_of_training_data=lambda l: l.get_preds(0, with_loss=True),
               predict=lambda l: l.predict(l.dls.train_ds.items[0]), tta=lambda l: l.tta(n=2), summary=lambda l: l.summary(),
               show_results=lambda l: l.show_results(), interpret=_interpret, context=_context, freeze=lambda l: l.freeze(), 
               save_and_load=lambda l: (l.save('same'), l.load('same')), init_report=lambda l: l.init_report())

@pytest.mark.parametrize('opt', ['no optimizer', 'optimizer'])
@pytest.mark.parametrize('act', PASSIVE)
def test_not_without_training(images, inits, tmp_path, act, opt):
    "What predicts, shows or measures does not initialize, neither before the first fit nor after it; the fit does"
    learn = image_learner(images, path=tmp_path, cbs=LSUVCallback())
    if opt=='optimizer': learn.create_opt()
    before = weights(learn)
    with learn.no_logging():
        PASSIVE[act](learn)
        assert same(before, weights(learn)) and not learn.lsuv.done and not inits
        learn.fit(1, 0.)
        assert learn.lsuv.done and not same(before, weights(learn))
        after = weights(learn)
        PASSIVE[act](learn)
    assert same(after, weights(learn)) and inits==['lsuv']

@pytest.mark.parametrize('error', [KeyboardInterrupt, CancelFitException, CancelTrainException, RuntimeError])
def test_interrupted_training(inits, error):
    "A fit that ends early, after the initialization, has initialized"
    class Stop(Callback):
        def before_batch(self):
            if self.training and self.iter==1: raise error('on purpose')
    learn = quiet(learner(cbs=LSUVCallback()))
    with learn.no_logging():
        try: learn.fit(1, 1e-3, cbs=Stop())
        except (KeyboardInterrupt, RuntimeError): pass
        trained = weights(learn)
        learn.fit(1, 0.)
    assert inits==['lsuv'] and same(trained, weights(learn))

@pytest.mark.parametrize('load', ['load', 'without_optimizer', 'load_state_dict'])
def test_added_then_loaded(tmp_path, load):
    "A callback that was not there from the start tells weights that were loaded after it was added"
    a,b = trained(tmp_path),quiet(learner(model_dir=tmp_path, path=tmp_path))
    b.add_cb(LSUVCallback())
    LOADS[load](b, tmp_path)
    with b.no_logging(), one_warning('3 loaded .0, 2, 4.'): b.fit(1, 0.)
    assert same(weights(a), weights(b))

@pytest.mark.parametrize('way', ['removed', 'added later', 'given to fit', 'class given to fit'])
def test_added_and_removed(inits, way):
    learn = quiet(learner(cbs=LSUVCallback() if way=='removed' else None))
    if way=='removed': learn.remove_cb(LSUVCallback)
    if way=='added later': learn.add_cb(LSUVCallback())
    with learn.no_logging(), warnings.catch_warnings():
        warnings.simplefilter('error') # nothing is left alone
        learn.fit(1, 1e-3, cbs={'given to fit':LSUVCallback(), 'class given to fit':LSUVCallback}.get(way))
    assert inits==([] if way=='removed' else ['lsuv'])

def test_says_nothing(capfd):
    "Neither with fastai's bars and log nor without"
    out = []
    for cbs in (None, LSUVCallback()):
        for ctx in (nullcontext, lambda: ContextManagers([learn.no_bar(), learn.no_logging()])):
            learn = learner(cbs=cbs)
            learn.recorder.add_time = False
            with ctx(): learn.fit(1, 0.)
            out.append(capfd.readouterr())
    assert [len(o.out.splitlines()) for o in out[:2]]==[len(o.out.splitlines()) for o in out[2:]] and out[3].out=='' and all(o.err=='' for o in out)

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

@pytest.mark.parametrize('pre', ['kaiming', None])
@pytest.mark.parametrize('step', ['split_layers', 'check_scheme', 'run_scheme', 'forward', 'with_status', 'call_notes', 'warn_left'])
def test_interrupted_between_steps(monkeypatch, step, pre):
    "An interrupt right after any step of LSUV leaves all as it was, and the next fit initializes"
    if step in ('check_scheme','run_scheme') and pre is None: pre = 'xavier'
    learn = quiet(learner(cbs=LSUVCallback(pre=pre)))
    import fastinit.lsuv
    import fastinit.passes
    where = fastinit.passes if step in ('forward','with_status') else fastinit.lsuv
    f,broken = getattr(where, step),[True]
    def _interrupted(*args, **kwargs):
        res = f(*args, **kwargs)
        if broken: raise KeyboardInterrupt
        return res
    monkeypatch.setattr(where, step, _interrupted)
    with learn.no_logging():
        with Unchanged(learn.model), pytest.raises(KeyboardInterrupt): learn.fit(1, 0.)
        assert not learn.lsuv.done
        broken.clear()
        learn.fit(1, 0.)
    assert learn.lsuv.done and (learn.lsuv.report.df['std']-1).abs().max()<1e-5

# What must not be lost

@contextmanager
def one_warning(match):
    "Exactly one, that names what was left alone, why, and how to force it"
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        yield
    ws = [str(w.message) for w in ws if 'left alone' in str(w.message)]
    assert len(ws)==1 and re.search(match, ws[0]) and 'force=True' in ws[0], ws

def trained(tmp_path, name='a', **kwargs):
    a = quiet(learner(model_dir=tmp_path, path=tmp_path, **kwargs))
    with a.no_logging(): a.fit(1, 1e-2)
    a.save(name)
    return a

LOADS = dict(load=lambda l,p: l.load('a'), without_optimizer=lambda l,p: l.load('a', with_opt=False), 
             load_model=lambda l,p: load_model(p/'a.pth', l.model, None, with_opt=False),
             load_state_dict=lambda l,p: l.model.load_state_dict(torch.load(p/'a.pth', weights_only=False)['model']))
def test_loaded_by_a_learner_that_was_defined_later(tmp_path):
    "With a `load` of its own that knows nothing of fastai's, as of a module that is imported after fastinit"
    class Mine(Learner):
        def load(self, file):
            self.model.load_state_dict(torch.load(self.path/f'{file}.pth', weights_only=False)['model'])
            return self
    class Further(Mine): pass
    a = trained(tmp_path)
    for kind in (Mine, Further):
        b = quiet(kind(data(), net(), loss_func=CrossEntropyLossFlat(), path=tmp_path)).load('a')
        b.add_cb(LSUVCallback())
        with b.no_logging(), one_warning('3 loaded .0, 2, 4.'): b.fit(1, 0.)
        assert same(weights(a), weights(b))

@pytest.mark.parametrize('first', ['fastinit', 'fastai', 'wrapped'])
def test_load_is_noted_whatever_was_imported_first(first):
    "Each `load`, once; also where another plugin has wrapped `lr_find` before"
    code = dict(fastinit='from fastinit.all import *; from fastai.text.all import *', fastai='from fastai.text.all import *; from fastinit.all import *',
        wrapped='import functools; from fastai.text.all import *; f = Learner.lr_find; Learner.lr_find = functools.wraps(f)(lambda *a,**k: f(*a,**k)); from fastinit.all import *')[first]
    code += """
from fastai.text.learner import TextLearner, LMLearner
import fastinit.trained
for c in (Learner, TextLearner):
    assert c.load.__wrapped__ and not hasattr(c.load.__wrapped__, '__wrapped__'), c
assert Learner.lr_find.__module__=='fastai.callback.schedule' and Learner.lr_find.__code__.co_name=='_lr_find_after'
"""
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True, timeout=300)

@pytest.mark.parametrize('load', LOADS)
@pytest.mark.parametrize('cb', [LSUVCallback, KaimingCallback])
def test_loaded(tmp_path, load, cb):
    a = trained(tmp_path)
    b = quiet(learner(model_dir=tmp_path, path=tmp_path, cbs=cb()))
    LOADS[load](b, tmp_path)
    with b.no_logging(), one_warning('3 loaded .0, 2, 4.'): b.fit(1, 0.)
    report = b.cbs[-1].report
    assert same(weights(a), weights(b)) and set(report.df.status)=={'loaded'}

@pytest.mark.parametrize('how,left', [(dict(force=True), []), (dict(layers='2', force=True), ['0','4']), (dict(layers='2'), ['0','2','4']), (dict(layers=nn.Linear), ['0','2','4'])])
def test_forced(tmp_path, how, left):
    "With `force` loaded layers are initialized, all or those chosen; choosing alone does not force"
    a = trained(tmp_path)
    b = quiet(learner(model_dir=tmp_path, path=tmp_path, cbs=LSUVCallback(**how)))
    b.load('a')
    with b.no_logging(): b.fit(1, 0.)
    for n in ('0','2','4'): assert torch.equal(a.model.get_submodule(n).weight, b.model.get_submodule(n).weight)==(n in left)

def test_partly_loaded():
    learn = quiet(learner(cbs=LSUVCallback()))
    other = net()
    learn.model.load_state_dict({k:v for k,v in other.state_dict().items() if k.startswith('2')}, strict=False)
    with learn.no_logging(), one_warning('1 loaded .2.'): learn.fit(1, 0.)
    assert same(learn.model[2].parameters(), other[2].parameters())
    assert list(learn.lsuv.report.df.converged.fillna(False))==[True,False,True]

def test_loaded_trains_as_without(tmp_path):
    "Where all is left alone a fit is bit-identical to one without the callback"
    trained(tmp_path)
    got = []
    for cbs in (None, LSUVCallback(), KaimingCallback()):
        b = quiet(learner(model_dir=tmp_path, path=tmp_path, cbs=cbs))
        b.load('a')
        set_seed(5)
        with b.no_logging(): b.fit(2, 1e-2)
        got.append((weights(b), torch.get_rng_state(), b.recorder.losses))
    for w,r,l in got[1:]: assert same(got[0][0], w) and torch.equal(got[0][1], r) and l==got[0][2]

@pytest.mark.parametrize('fit', [lambda l: l.fit(3, 0., start_epoch=1), lambda l: l.fit_one_cycle(3, 1e-30, start_epoch=2)])
def test_resumed(tmp_path, fit):
    a = trained(tmp_path)
    b = quiet(learner(model_dir=tmp_path, path=tmp_path, cbs=LSUVCallback()))
    b.load('a')
    with b.no_logging(), one_warning('3 loaded'): fit(b)
    assert all(torch.allclose(p, q, atol=1e-8) for p,q in zip(weights(a), weights(b))) and b.lsuv.done

def test_resumed_with_a_loaded_model_of_before():
    "A model whose weights were loaded before there was a Learner, which only `start_epoch` tells"
    model = net()
    learn = quiet(learner(model=model, cbs=LSUVCallback()))
    before = weights(learn)
    with learn.no_logging(), one_warning('3 loaded'): learn.fit(2, 0., start_epoch=1)
    assert same(before, weights(learn))

def test_second_learner(tmp_path):
    "What nobody can tell, as documented: a trained model in a new Learner is initialized; `layers=` chooses"
    a = trained(tmp_path)
    for how,kept in ((dict(), []), (dict(layers='4'), [0,2])):
        model = deepcopy(a.model)
        b = quiet(learner(model=model, cbs=LSUVCallback(**how)))
        with b.no_logging(): b.fit(1, 0.)
        for i in (0,2,4): assert torch.equal(model[i].weight, a.model[i].weight)==(i in kept)

def test_added_after_training():
    learn = quiet(learner())
    with learn.no_logging():
        learn.fit(1, 1e-2)
        before = weights(learn)
        with one_warning('3 loaded'): learn.fit(1, 0., cbs=LSUVCallback())
    assert same(before, weights(learn))

def test_frozen():
    learn = quiet(learner(cbs=LSUVCallback()))
    for p in learn.model[0].parameters(): p.requires_grad_(False)
    w = learn.model[0].weight.clone()
    with learn.no_logging(), pytest.warns(UserWarning, match='1 frozen .0.'): learn.fit(1, 0.)
    assert torch.equal(w, learn.model[0].weight) and learn.lsuv.report['0'].status=='frozen'

def test_frozen_then_unfrozen(inits):
    "What was frozen at the first fit stays as it is once unfrozen: the initialization was the first fit's"
    learn = quiet(learner(cbs=LSUVCallback(), splitter=lambda m: [params(m[0]), params(m[2:])]))
    w = learn.model[0].weight.clone()
    learn.freeze()
    with learn.no_logging(), one_warning('1 frozen .0.'): learn.fit(1, 0.)
    learn.unfreeze()
    with learn.no_logging(): learn.fit(1, 0.)
    assert torch.equal(w, learn.model[0].weight) and inits==['lsuv']

def test_frozen_forced():
    learn = quiet(learner(cbs=LSUVCallback(layers=['0','4'], force=True), splitter=lambda m: [params(m[0]), params(m[2:])]))
    before = deepcopy(learn.model)
    learn.freeze()
    with learn.no_logging(): learn.fit(1, 0.)
    assert [torch.equal(before[i].weight, learn.model[i].weight) for i in (0,2,4)]==[False,True,False]
    assert not learn.model[0].weight.requires_grad

# Pretrained models: fastai's own way, with what it would download made here

@pytest.fixture
def downloads(monkeypatch):
    "torchvision's and fastai's downloads give random weights"
    def _vision(url, *args, **kwargs):
        assert url.endswith('.pth')
        torch.manual_seed(11)
        return resnet18().state_dict()
    monkeypatch.setattr('torchvision.models._api.load_state_dict_from_url', _vision)

def check_pretrained(learn, start, body, head):
    "After the first fit: what `body` names is bit-identical, each layer of the head has std 1"
    now,df = learn.model.state_dict(),learn.lsuv.report.df.set_index('layer')
    kept = [k for k,_ in learn.model.named_parameters() if k.startswith(body)]
    assert kept and all(torch.equal(now[k], start[k]) for k in kept)
    assert not df.scale.notna()[[n for n in df.index if n.startswith(body)]].any()
    new = df[df.scale.notna()]
    assert set(new.index)==set(head) and (new['std']-1).abs().max()<1e-4

@pytest.mark.parametrize('frozen', [True, False])
def test_vision_learner_pretrained(images, downloads, frozen):
    learn = quiet(vision_learner(images, resnet18, metrics=accuracy, cbs=LSUVCallback()))
    torch.manual_seed(11)
    assert torch.equal(learn.model[0][0].weight, resnet18().conv1.weight) # they came through fastai
    if not frozen: learn.unfreeze()
    start = deepcopy(learn.model.state_dict())
    with learn.no_logging(), one_warning('20 pretrained .0.0, 0.4.0.conv1, '): learn.fit(1, 0.)
    check_pretrained(learn, start, '0.', ['1.4','1.8'])

def test_fine_tune_pretrained(images, downloads, inits):
    learn = quiet(vision_learner(images, resnet18, metrics=accuracy, cbs=LSUVCallback()))
    start = deepcopy(learn.model.state_dict())
    class Keep(Callback):
        order = LSUVCallback.order+1
        def before_fit(self): self.learn.states = [*getattr(self.learn, 'states', []), deepcopy(self.model.state_dict())]
    with learn.no_logging(), one_warning('20 pretrained'): learn.fine_tune(1, 1e-3, cbs=Keep())
    assert inits==['lsuv'] and len(learn.states)==2
    assert all(torch.equal(v, learn.states[0][k]) for k,v in start.items() if k.startswith('0.'))
    assert not torch.equal(start['1.8.weight'], learn.states[0]['1.8.weight'])

def test_pretrained_forced(images, downloads):
    for cb,changed in ((LSUVCallback(force=True), True), (LSUVCallback(layers='0.4', force=True), True), (LSUVCallback(layers='0.4'), False), (LSUVCallback(layers='1', force=True), False)):
        learn = quiet(vision_learner(images, resnet18, metrics=accuracy, cbs=cb))
        w = learn.model[0][4][0].conv1.weight.clone()
        with learn.no_logging(): learn.fit(1, 0.)
        assert torch.equal(w, learn.model[0][4][0].conv1.weight)!=changed

def test_pretrained_more_channels(images, downloads):
    "fastai makes a first layer of its own out of the pretrained one"
    dls = DataLoaders.from_dsets([(torch.randn(4,32,32), torch.tensor(i%2)) for i in range(16)], [(torch.randn(4,32,32), torch.tensor(0))]*4, bs=8, num_workers=0)
    learn = quiet(vision_learner(dls, resnet18, n_in=4, n_out=2, normalize=False, loss_func=CrossEntropyLossFlat(), cbs=LSUVCallback()))
    learn.unfreeze()
    start = deepcopy(learn.model.state_dict())
    with learn.no_logging(), one_warning('20 pretrained'): learn.fit(1, 0.)
    check_pretrained(learn, start, '0.', ['1.4','1.8'])

@pytest.mark.parametrize('frozen', [True, False])
def test_unet_learner(downloads, frozen):
    ds = [(torch.randn(3,32,32), torch.randint(0, 2, (32,32))) for _ in range(8)]
    learn = quiet(unet_learner(DataLoaders.from_dsets(ds, ds, bs=4, num_workers=0), resnet18, n_out=2, normalize=False, loss_func=CrossEntropyLossFlat(axis=1), cbs=LSUVCallback()))
    if not frozen: learn.unfreeze()
    start = deepcopy(learn.model.state_dict())
    with learn.no_logging(), one_warning('20 pretrained'): learn.fit(1, 0.)
    new = [n for n in init_layers(deepcopy(learn.model).requires_grad_(True)) if not n.startswith('layers.0.')]
    assert len(new)>10
    check_pretrained(learn, start, 'layers.0.', new)

def test_timm_pretrained(images, tmp_path):
    torch.manual_seed(12)
    weights = timm.create_model('resnet18').state_dict()
    torch.save(weights, tmp_path/'weights.pth')
    learn = quiet(vision_learner(images, 'resnet18', metrics=accuracy, cbs=LSUVCallback(), pretrained_cfg_overlay=dict(file=str(tmp_path/'weights.pth'))))
    assert torch.equal(learn.model[0].model.conv1.weight, weights['conv1.weight'])
    learn.unfreeze()
    start = deepcopy(learn.model.state_dict())
    with learn.no_logging(), one_warning('20 pretrained'): learn.fit(1, 0.)
    check_pretrained(learn, start, '0.', ['1.4','1.8'])

TINY = dict(emb_sz=12, n_hid=16, n_layers=2)
@pytest.fixture(scope='module')
def texts(tmp_path_factory):
    "(DataLoaders of a language model, those of a classifier with the same vocabulary), without spaCy"
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(text=[' '.join(rng.choice(list('abcdefgh'), 20)) for _ in range(64)], label=['x','y']*32))
    def _dls(lm, **kwargs):
        blocks = [TextBlock.from_df('text', is_lm=lm, tok=BaseTokenizer(), n_workers=1, min_freq=1, **kwargs)] + ([] if lm else [CategoryBlock])
        getters = dict(get_x=ColReader('text')) if lm else dict(get_x=ColReader('text'), get_y=ColReader('label'))
        return DataBlock(blocks=tuple(blocks), splitter=RandomSplitter(0.25, seed=0), **getters).dataloaders(df, bs=8, seq_len=10, num_workers=0, path=tmp_path_factory.getbasetemp())
    lm = _dls(True)
    return lm,_dls(False, vocab=lm.vocab)

def test_language_model_and_encoder(texts, tmp_path):
    "A trained encoder, loaded into a classifier: all of it stays, frozen and unfrozen, the head is new"
    lm = quiet(language_model_learner(texts[0], AWD_LSTM, config={**awd_lstm_lm_config, **TINY}, pretrained=False, path=tmp_path, cbs=LSUVCallback()))
    (tmp_path/'models').mkdir()
    with lm.no_logging(): lm.fit(1, 1e-2)
    assert lm.lsuv.done
    lm.save_encoder('enc')
    for frozen in (True, False):
        learn = quiet(text_classifier_learner(texts[1], AWD_LSTM, config={**awd_lstm_clas_config, **TINY}, pretrained=False, path=tmp_path, cbs=LSUVCallback()))
        learn.load_encoder('enc')
        if not frozen: learn.unfreeze()
        start = deepcopy(learn.model.state_dict())
        assert torch.equal(start['0.module.encoder.weight'], lm.model[0].encoder.weight)
        with learn.no_logging(): learn.fit(1, 0.)
        check_pretrained(learn, start, '0.', [n for n in init_layers(learn.model) if n.startswith('1.')])

def test_text_classifier_learner_pretrained(texts, tmp_path, monkeypatch):
    "The pretrained language model that fastai downloads"
    lm,old = get_language_model(AWD_LSTM, 30, {**awd_lstm_lm_config, **TINY}),[f'w{i}' for i in range(22)]+list('abcdefgh')
    torch.save(lm.state_dict(), tmp_path/'lm.pth')
    (tmp_path/'lm.pkl').write_bytes(pickle.dumps(old))
    monkeypatch.setattr('fastai.text.learner.untar_data', lambda url, **kwargs: tmp_path)
    for frozen in (True, False):
        learn = quiet(text_classifier_learner(texts[1], AWD_LSTM, config={**awd_lstm_clas_config, **TINY}, metrics=accuracy, cbs=LSUVCallback()))
        assert torch.equal(learn.model[0].module.rnns[0].weight_hh_l0_raw, lm[0].rnns[0].weight_hh_l0_raw)
        if not frozen: learn.unfreeze()
        start = deepcopy(learn.model.state_dict())
        with learn.no_logging(): learn.fit(1, 0.)
        check_pretrained(learn, start, '0.', [n for n in init_layers(learn.model) if n.startswith('1.')])

# Put away and taken out again

COPIES = dict(pickle=lambda l,p: pickle.loads(pickle.dumps(l)), cloudpickle=lambda l,p: pickle.loads(cloudpickle.dumps(l)), deepcopy=lambda l,p: deepcopy(l),
              export=lambda l,p: (l.export(p/'e.pkl'), load_learner(p/'e.pkl'))[1])
@pytest.mark.parametrize('done', [False, True])
@pytest.mark.parametrize('copy', COPIES)
def test_copies(images, inits, tmp_path, copy, done):
    "A copy of a Learner knows whether it was initialized, and its report"
    learn = quiet(learner(images, convnet(), cbs=LSUVCallback(), path=tmp_path))
    with learn.no_logging():
        if done: learn.fit(1, 1e-2)
        again = COPIES[copy](learn, tmp_path)
        assert again.lsuv.done==done and same(weights(again), weights(learn))
        if done: assert again.lsuv.report.df.equals(learn.lsuv.report.df) and again.init_report().summary==learn.init_report().summary
        inits.clear()
        before = weights(again)
        again.dls = images
        with warnings.catch_warnings():
            warnings.simplefilter('error', UserWarning)
            again.fit(1, 0.)
    assert same(before, weights(again))==done and inits==([] if done else ['lsuv'])

# Beside other callbacks, alone and in pairs

def _accumulate(l): l.add_cb(GradientAccumulation(8))
def _lr_find(l): l.lr_find(num_it=6, show_plot=False)
FEATURES = dict(fp16=lambda l: l.to_fp16(), bf16=lambda l: l.to_bf16(), accumulation=_accumulate, mixup=lambda l: l.add_cb(MixUp()), clip=lambda l: l.add_cb(GradientClip()),
    channels_last=lambda l: l.add_cb(ChannelsLast()), save=lambda l: l.add_cb(SaveModelCallback()), save_each=lambda l: l.add_cb(SaveModelCallback(every_epoch=True)),
    early=lambda l: l.add_cb(EarlyStoppingCallback()), nan=lambda l: l.add_cb(TerminateOnNaNCallback()), stats=lambda l: l.add_cb(ActivationStats(with_hist=True)),
    parallel=lambda l: l.to_parallel(), kaiming=lambda l: l.add_cb(KaimingCallback()), lr_find=_lr_find, freeze=lambda l: l.freeze(), optimizer=lambda l: l.create_opt(),
    loaded=lambda l: l.model[0][0].load_state_dict(convnet()[0][0].state_dict()))
TOUCH_WEIGHTS = ['bf16','accumulation','channels_last','save','parallel','kaiming','lr_find','freeze','loaded']

class AtStart(Callback):
    "Keep what the model is when training starts"
    order = 100
    def before_fit(self):
        self.learn.start = deepcopy(unwrap(self.model))
        self.learn.groups = [[id(p) for p in g] for g in self.opt.param_lists],[dict(h) for h in self.opt.hypers],[len(s) for s in self.opt.state.values()]

def run_with(images, path, names, cbs=()):
    learn = image_learner(images, path=path, cbs=[AtStart(), *cbs])
    learn.no_init = deepcopy(learn.model)
    for n in sorted(names, key='lr_find'.__eq__): FEATURES[n](learn) # it fits: last
    if 'loaded' in names: learn.no_init[0][0].load_state_dict(learn.model[0][0].state_dict())
    with learn.no_logging(): learn.fit(1, slice(1e-4,1e-2))
    return learn

@pytest.mark.parametrize('names', [(n,) for n in FEATURES]+list(itertools.combinations(TOUCH_WEIGHTS, 2)), ids='+'.join)
def test_beside(images, tmp_path, inits, names):
    "Once, exact, nothing lost, the optimizer as it would be without; and then it trains"
    learn = run_with(images, tmp_path, names, [LSUVCallback()])
    assert inits==(['kaiming'] if 'kaiming' in names else [])+['lsuv']
    kept = {n for n in ('freeze','loaded') if n in names}
    body,conv = learn.no_init[0][0],learn.start[0][0]
    assert same(body.parameters(), conv.parameters())==bool(kept)
    df = learn.lsuv.report.df.set_index('layer')
    assert df.status['0.0']==('loaded' if 'loaded' in kept else 'frozen' if kept else 'ok')
    from fastinit.callback import first_batch
    seen = outputs(learn.start, AFFINE, *first_batch(learn))
    assert len(seen)==3
    for n,o in seen.items(): assert abs(o.std()-1)<1e-3 or n=='0.0' and kept, n
    without = run_with(images, tmp_path/'b', names)
    assert without.groups[1:]==learn.groups[1:] and [len(g) for g in without.groups[0]]==[len(g) for g in learn.groups[0]]
    assert learn.groups[0]==[[id(p) for p in g] for g in learn.splitter(learn.model)] # the parameters are the same objects
    moved = [not torch.equal(p, q) for p,q in zip(learn.start[1].parameters(), learn.model[1].parameters())]
    assert all(moved) and same(learn.start[0][0].parameters(), learn.model[0][0].parameters())==('freeze' in names)
    assert not hasattr(learn, 'activation_stats') or len(learn.activation_stats.stats)==len(learn.dls.train)

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

@pytest.mark.parametrize('n,bs', [(0,16), (4,16)])
def test_too_little_data(n, bs):
    ds = [(torch.randn(12), torch.tensor(0)) for _ in range(n)]
    dls = DataLoaders(DataLoader(ds, bs=bs, drop_last=bs>1, shuffle=True), DataLoader(ds, bs=bs))
    for act in (lambda l: l.fit(1), lambda l: l.init_report(), lambda l: l.compare_inits()):
        learn = quiet(learner(dls, cbs=LSUVCallback()))
        before = weights(learn)
        with learn.no_logging(), pytest.raises(ValueError, match='gives no batch'): act(learn)
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
def test_vision_learner_from_scratch(images, workers):
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

# What was put into the model later, and what others leave behind

def test_fresh_adagrad():
    "Its state is there before the first step"
    learn = learner(opt_func=partial(OptimWrapper, opt=torch.optim.Adagrad), cbs=LSUVCallback())
    quiet(learn).fit(1, 0.)
    assert list(learn.lsuv.report.df.status)==['ok']*3
    learn = learner(opt_func=partial(OptimWrapper, opt=torch.optim.Adagrad))
    quiet(learn).fit(1, 1e-3)
    before = weights(learn)
    learn.fit(1, 0., cbs=LSUVCallback())
    assert same(before, weights(learn))

class Ends(Callback):
    order = 5
    def __init__(self, how): self.how = how
    def before_batch(self):
        if self.training: raise self.how

@pytest.mark.parametrize('how', [KeyboardInterrupt, CancelFitException, CancelBatchException])
def test_no_hooks_after_a_first_batch_that_was_not(how):
    "They are gone after the fit, or record nothing of what others pass and go with the next one"
    learn = quiet(learner(cbs=LSUVCallback()))
    with suppress(KeyboardInterrupt): learn.fit(1, 0., cbs=Ends(how))
    hooks = sum(len(m._forward_hooks) for m in learn.model.modules())
    assert hooks==0 or how is KeyboardInterrupt
    learn.model(torch.randn(40,12)*1000)
    learn.get_preds()
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        learn.fit(1, 0.)
    assert not any(m._forward_hooks for m in learn.model.modules())

def test_another_model_after_a_fit():
    "Nothing tells whether it was trained: its weights stay, a warning says so, and the report is about it"
    learn = quiet(learner(cbs=LSUVCallback()))
    learn.fit(1, 1e-3)
    old = weakref.ref(learn.model)
    learn.model = nn.Sequential(nn.Linear(12,9), nn.ReLU(), nn.Linear(9,2))
    learn.create_opt()
    before = weights(learn)
    with pytest.warns(UserWarning, match=r'left alone: 2 loaded \(0, 2\)'): learn.fit(1, 0.)
    assert same(before, weights(learn)) and list(learn.init_report().df['shape'])==[(16,9),(16,2)]
    gc.collect()
    assert old() is None # nothing here holds it
    plt.close('all')

def test_another_head_after_a_fit():
    "It is named, once"
    learn = quiet(learner(cbs=LSUVCallback()))
    learn.fit(1, 1e-3)
    learn.model[4] = nn.Linear(24,2)
    learn.create_opt()
    before = weights(learn)
    with pytest.warns(UserWarning, match=r"1 layer put into the model since it was initialized \(4\), and left as before"): learn.fit(1, 0.)
    assert same(before, weights(learn))
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        learn.fit(1, 0.)
    learn.fit(1, 0., cbs=LSUVCallback(layers='4', force=True))
    assert not torch.equal(before[-2], learn.model[4].weight)

def test_a_new_callback_for_each_fit():
    "The first one initializes, and its report stays: it speaks of what was before training, and says so"
    learn = quiet(learner())
    for i in range(3):
        with pytest.warns(UserWarning, match='3 loaded') if i else nullcontext(): learn.fit(1, 1e-2*(i>0), cbs=LSUVCallback())
        report = learn.init_report()
        assert report.df.converged.all()
        said = 'before training: '*(i>0) + '3 layers: 3 ok'
        assert report.summary==said and str(report).startswith(f'lsuv: {said}\n') and f'<b>lsuv</b>: {said}' in report._repr_html_()
    assert report[['0']].summary=='before training: 1 layer: 1 ok'
    learn.model[2] = nn.Linear(24,24)
    with pytest.warns(UserWarning, match='loaded'): learn.fit(1, 0., cbs=LSUVCallback())
    assert 'loaded' in learn.init_report().summary # of the model that is there
    plt.close('all')

def test_the_weights_of_before_again(tmp_path):
    "After `lr_find`, or once they are loaded, the report is of the model as it is"
    learn = quiet(learner(cbs=LSUVCallback(), path=tmp_path))
    learn.lr_find(num_it=4, show_plot=False)
    assert learn.init_report().summary=='3 layers: 3 ok'
    learn.save('start', with_opt=False)
    learn.fit(1, 1e-2)
    assert learn.init_report().summary=='before training: 3 layers: 3 ok'
    learn.load('start', with_opt=False)
    assert learn.init_report().summary=='3 layers: 3 ok'
    plt.close('all')

def test_two_on_different_layers():
    "Each draws weights for its own; for what the other has drawn it only scales"
    model = net()
    for p in model.parameters(): p.data.fill_(0.01)
    learn = quiet(learner(model=model, cbs=[LSUVCallback(layers=['0']), LSUVCallback(layers=['2','4'])]))
    learn.fit(1, 0.)
    assert all(learn.model[i].weight.unique().numel()>24 for i in (0,2,4))
    given = torch.randn(24,12)
    def _given(model): model[0].weight.data.copy_(given)
    learn = quiet(learner(model=net(), cbs=[InitCallback(_given, layers=['0']), LSUVCallback()]))
    before = weights(learn)
    learn.fit(1, 0.)
    scaled = learn.model[0].weight.detach().flatten()
    assert torch.cosine_similarity(scaled, given.flatten(), 0).item()==pytest.approx(1, abs=1e-5)
    drawn = learn.model[2].weight.detach().flatten()
    assert abs(torch.cosine_similarity(drawn, before[2].flatten(), 0).item())<0.5
    assert learn.init_report().df['std'].to_numpy()==pytest.approx(1, abs=1e-4)
    plt.close('all')

class Weighted(DataLoader):
    def __init__(self, *args, wgts=None, **kwargs):
        if wgts is None: raise ValueError('wgts are needed')
        super().__init__(*args, **kwargs)

def test_loader_that_cannot_be_made_anew():
    "The first training batch does, as with any other reason"
    dls = data()
    dls.loaders[0] = Weighted(dls.train.dataset, bs=16, wgts=1)
    learn = quiet(learner(dls, cbs=LSUVCallback()))
    learn.fit(1, 0.)
    assert any('wgts are needed' in o for o in learn.lsuv.report.notes) and learn.lsuv.report.df['std'].to_numpy()==pytest.approx(1, abs=1e-4)

def test_model_with_the_callbacks_names():
    "fastai warns of a callback's attribute that the model has too"
    model = net()
    for k in ('stats','done','report','seen','kept','late','was','unchecked','drawn'): setattr(model, k, 1)
    learn = quiet(learner(model=model))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        learn.fit(1, 0., cbs=LSUVCallback())
