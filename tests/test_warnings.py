"Every warning points to the line of the user that led to it, however deep it came up."
import warnings
from functools import partial
import pytest, torch
from torch import nn
from fastai.basics import Callback, DataLoaders, Learner
from fastai.callback.progress import ProgressCallback
from fastai.data.load import DataLoader
from torch.utils.data import TensorDataset
from fastai.callback.schedule import * # fit_one_cycle and others
from fastai.collab import EmbeddingDotBias
from fastinit.all import *
from fastinit.misfit import warn_user
from test_branches import Adapts

X,Y = torch.randn(64,6),torch.randn(64,1)

def mlp(out=1): return nn.Sequential(nn.Linear(6,8), nn.ReLU(), nn.Linear(8,out))

def frozen():
    m = mlp()
    m[0].requires_grad_(False)
    return m

def compiled():
    m = mlp()
    m.compile(backend='eager')
    return m

def learner(model, *cbs, x=X):
    dls = DataLoaders(*(DataLoader(TensorDataset(x, Y), bs=16) for _ in range(2)))
    learn = Learner(dls, model, loss_func=nn.MSELoss(), cbs=cbs).remove_cb(ProgressCallback)
    learn.logger = lambda *_: None
    return learn

class Waits(Callback):
    "Uses the model, so that there is no batch before training begins"
    def before_batch(self): self.learn.xb = (self.x + 0*self.model[0].in_features,)

def elsewhere(cb): cb.learn.xb = (cb.learn.xb[0]*9,)
class Hidden(Callback):
    "No look at it tells that it changes the batch"
    def before_batch(self): elsewhere(self)

def grown():
    "A Learner whose model got a layer after its initialization"
    learn = learner(mlp(8), LSUVCallback())
    learn.loss_func = lambda pred, y: pred.mean()
    learn.fit(1, 0.)
    learn.model.append(nn.Linear(8,1))
    return learn

def collab(): return learner(EmbeddingDotBias(8, 20, 30), LSUVCallback(), x=torch.randint(0, 20, (64,2)))

def of_mine(model): kaiming_(model)
LEFT,TAKEN,BRANCHES = 'left alone: 1 frozen','A batch was taken','branches cannot be looked for'
def initialized_by(scheme): return LEFT,frozen,lambda m: init_(m, scheme, X)
def fitted_with(cb, *others): return LEFT,lambda: learner(frozen(), cb(), *(o() for o in others)),lambda learn: learn.fit(1, 0.)

#: What is called → (what the warning says, what makes the object, the user's line)
WAYS = {'kaiming_': (LEFT, frozen, lambda m: kaiming_(m)), 'xavier_': (LEFT, frozen, lambda m: xavier_(m)),
    'orthogonal_': (LEFT, frozen, lambda m: orthogonal_(m)), 'normal_': (LEFT, frozen, lambda m: normal_(m)), 'default_': (LEFT, frozen, lambda m: default_(m)),
    **{f'init_ with {o}': initialized_by(o) for o in ('kaiming','lsuv','lsuv_residual')},
    'init_ with a function': initialized_by(of_mine), 'init_ with a partial': initialized_by(partial(lsuv_, std=2.)),
    'lsuv_': (LEFT, frozen, lambda m: lsuv_(m, X)), 'lsuv_residual_': (LEFT, frozen, lambda m: lsuv_residual_(m, X)),
    'lsuv_ that does not get there': ('did not reach std', lambda: nn.Sequential(nn.Linear(6,8), nn.Sigmoid()), lambda m: lsuv_(m, X, at='activation')),
    'lsuv_residual_ without branches': (BRANCHES, Adapts, lambda m: lsuv_residual_(m, X)),
    'residual_branches': (BRANCHES, Adapts, lambda m: residual_branches(m, X)),
    'init_report': (TAKEN, lambda: learner(mlp(), Waits()), lambda learn: learn.init_report()),
    'compare_inits': (TAKEN, lambda: learner(mlp(), Waits()), lambda learn: learn.compare_inits(['default'])),
    'compare_inits with steps': (TAKEN, lambda: learner(mlp(), Waits()), lambda learn: learn.compare_inits(['default'], steps=1)),
    'fit with Kaiming': fitted_with(KaimingCallback), 'fit with LSUV': fitted_with(LSUVCallback),
    'fit with a function': fitted_with(partial(InitCallback, of_mine)), 'fit that waits': fitted_with(LSUVCallback, Waits),
    'fit_one_cycle': (LEFT, lambda: learner(frozen(), LSUVCallback()), lambda learn: learn.fit_one_cycle(1, 1e-3)),
    'fine_tune': (LEFT, lambda: learner(frozen(), LSUVCallback()), lambda learn: learn.fine_tune(1)),
    'fit whose batch is another': ('gave another std', lambda: learner(mlp(), LSUVCallback(), Hidden()), lambda learn: learn.fit(1, 0.)),
    'fit after a layer was added': ('put into the model', grown, lambda learn: learn.fit(1, 0.)),
    'fit with nothing to initialize': ('has no layer that', collab, lambda learn: learn.fit(1, 0.)),
    'watch_init': ('are not watched', lambda: learner(compiled()).watch_init(2), lambda learn: learn.fit(1, 0.))}

@pytest.mark.parametrize('name', WAYS)
def test_points_to_the_line_that_asked(name):
    text,make,ask = WAYS[name]
    made = make()
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        ask(made)
    ws = [w for w in ws if text in str(w.message)]
    assert len(ws)==1 and ws[0].filename==__file__
    assert ask.__code__.co_name=='<lambda>' and ws[0].lineno==ask.__code__.co_firstlineno

def test_a_callback_of_the_user_is_the_users_line():
    class Mine(Callback):
        def before_fit(self): lsuv_(self.model, X)
    with pytest.warns(UserWarning, match=LEFT) as ws: learner(frozen(), Mine()).fit(1, 0.)
    assert [(w.filename,w.lineno) for w in ws if LEFT in str(w.message)]==[(__file__,Mine.before_fit.__code__.co_firstlineno)]

@pytest.mark.parametrize('name,own', [('fastai_of_mine', True), ('fastai.mine', False), ('torch', False)])
def test_packages_by_their_whole_name(name, own):
    "A module of the user's may begin like one of the libraries"
    space = dict(warn_user=warn_user, __name__=name)
    exec(compile('def f(): warn_user("here")', 'mine.py', 'exec'), space)
    with pytest.warns(UserWarning, match='here') as ws: space['f']()
    assert ws[0].filename==('mine.py' if own else __file__)
