import os, matplotlib, pytest, torch
from fastinit.tensors import first_tensor
matplotlib.use('agg')

@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 2)))

AFFINE = (torch.nn.Linear, torch.nn.Bilinear, torch.nn.modules.conv._ConvNd, torch.nn.MultiheadAttention)

def copied(model):
    "A copy of `model`, also where weights are computed in each pass (as fastai's `WeightDropout` does), which are no leaves"
    from copy import deepcopy
    computed = {id(v):v.detach() for m in model.modules() for v in vars(m).values() if isinstance(v, torch.Tensor) and v.grad_fn is not None}
    return deepcopy(model, computed)

def outputs(model, types, *xb):
    "The first output of every module of `types`, seen by plain hooks in a pass of their own, batchnorm in training mode; an attention's by the name of its last layer"
    from functools import partial
    model,res = copied(model).eval(),{}
    def _keep(n, m, i, o): res.setdefault(f'{n}.out_proj' if isinstance(m, torch.nn.MultiheadAttention) else n, first_tensor(o).detach().double().clone())
    for n,m in model.named_modules():
        if isinstance(m, torch.nn.modules.batchnorm._NormBase): m.train()
        if isinstance(m, types): m.register_forward_hook(partial(_keep, n))
    with torch.no_grad(): model(*xb)
    return res

class Net(torch.nn.Module):
    "Layers by name, and a forward given as a function of (self, *xb)"
    def __init__(self, forward, **layers):
        super().__init__()
        for k,v in layers.items(): setattr(self, k, v)
        self.f = forward
    def forward(self, *xb): return self.f(self, *xb)

class Unchanged:
    "A context that checks that nothing of `model` but the named parameters is changed, and those only if `done`"
    def __init__(self, model, may_change=()): self.model,self.may = model,set(may_change)
    def _state(self):
        m = self.model
        return dict(tensors={k:(id(v), v.detach().clone()) for k,v in [*m.named_parameters(), *m.named_buffers()]},
                    modes=[o.training for o in m.modules()], grads=[(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in m.parameters()],
                    hooks=[(len(o._forward_hooks), len(o._forward_pre_hooks)) for o in m.modules()], rng=torch.get_rng_state())
    def __enter__(self):
        self.was = self._state()
        return self
    def __exit__(self, *args):
        now = self._state()
        assert now['modes']==self.was['modes'] and now['hooks']==self.was['hooks']
        assert torch.equal(now['rng'], self.was['rng'])
        for (r,g),(r0,g0) in zip(now['grads'], self.was['grads']): assert r==r0 and (g is g0 or torch.equal(g, g0))
        assert now['tensors'].keys()==self.was['tensors'].keys()
        for k,(i,v) in now['tensors'].items():
            i0,v0 = self.was['tensors'][k]
            assert i==i0, f'{k} was replaced'
            assert k in self.may or torch.equal(v, v0), f'{k} was changed'

def idx(path, a, name, zipped):
    "A file in MNIST's format"
    import gzip
    import numpy as np
    path.mkdir(parents=True, exist_ok=True)
    b = bytes([0,0,8,a.ndim]) + np.array(a.shape, '>i4').tobytes() + a.astype(np.uint8).tobytes()
    with (gzip.open if zipped else open)(path/(name+('.gz' if zipped else '')), 'wb') as f: f.write(b)
