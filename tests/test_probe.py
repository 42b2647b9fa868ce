"A pass that leaves no trace: each kind of state, each mode, each random generator; and what an error says"
import builtins, math, random, warnings
from collections import OrderedDict, UserDict, deque
from copy import deepcopy
from types import SimpleNamespace
import numpy as np, pytest, torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from fastinit.acts import GeneralReLU
from fastinit.all import init_stats, lsuv_
from conftest import Unchanged
from fastinit.probe import InitError, all_modules, forward, probing, rerun, same_bits, unmoved_rng
from fastinit.misfit import check_number, first_line, remedy_for_batch
from fastinit.rng import own_draws
from fastinit.state import Saved, all_or_nothing, backs_of

nan = float('nan')

def test_same_bits():
    "NaN is equal to NaN here, and a number not to its negative, 0 neither; shapes are those of one tensor"
    t = torch.tensor
    assert same_bits(t([1.,nan]), t([1.,nan])) and same_bits(t([1,2]), t([1,2])) and same_bits(torch.ones(0), torch.ones(0))
    assert not same_bits(t([1.,nan]), t([nan,1.])) and not same_bits(t([1.,2.]), t([1.,3.])) and not same_bits(t([nan]), t([1.])) and not same_bits(t([1.]), t([nan]))
    assert not same_bits(t([0.]), t([-0.])) and same_bits(t([1j,nan]), t([1j,nan])) and not same_bits(t([1j]), t([2j]))

@pytest.mark.parametrize('dtype', [torch.double, torch.float, torch.half, torch.bfloat16, torch.int64, torch.bool, torch.complex64], ids=lambda o: str(o)[6:])
@pytest.mark.parametrize('of', [lambda v,n: v[:n], lambda v,n: v[1:n+1], lambda v,n: v[:2*n:2], lambda v,n: v[:18*n].view(2,n,3,3).to(memory_format=torch.channels_last),
                                lambda v,n: v[:n,None].expand(n,2)], ids='all part gaps channels_last expanded'.split())
def test_same_bits_sees_every_value(of, dtype):
    "However many there are, wherever in memory they begin and in what order they lie"
    for n in (1,2,3,4,5,8,13):
        a = of(torch.rand(18*13).mul(9).to(dtype), n)
        assert same_bits(a, a.clone()) and same_bits(a.clone(), a) and same_bits(a, a.contiguous().clone())
        for i in range(a.numel()):
            b = a.clone(memory_format=torch.contiguous_format)
            b.view(-1)[i] = not b.view(-1)[i] if dtype==torch.bool else b.view(-1)[i]+1
            assert not same_bits(a, b) and not same_bits(b, a) and not same_bits(a, torch.empty_like(a).copy_(b))

def test_saved_values_come_back():
    "All of them, all but some, or some only; by the memory they lie in, which stays the same"
    def ws(): return [torch.ones(4), torch.full((4,), 2.), torch.full((4,), 3.)]
    for kwargs,back in (({}, [0,1,2]), (dict(but=[1]), [0,2]), (dict(only=[1]), [1]), (dict(but=[0], only=[0,1]), [1]), (dict(but=[0,1,2]), []), (dict(only=[]), [])):
        a = ws()
        saved,places = Saved(a),[w.data_ptr() for w in a]
        for w in a: w.mul_(10)
        saved.restore(**{k:[a[i] for i in v] for k,v in kwargs.items()})
        assert [i for i,w in enumerate(a) if w.equal(ws()[i])]==back and [w.data_ptr() for w in a]==places
    whole = torch.arange(8.)
    first,last = whole[:5],whole[4:] # share one value
    saved = Saved([first])
    whole.zero_()
    saved.restore(but=[last])
    assert not whole.any()
    saved.restore(but=[whole[5:]])
    assert whole.tolist()==[0,1,2,3,4,0,0,0]

def test_saved_parameters_whose_data_was_replaced():
    p = nn.Parameter(torch.arange(4.))
    saved,place = Saved([p]),p.data_ptr()
    p.data = torch.zeros(6)
    saved.restore()
    assert p.tolist()==[0,1,2,3] and p.data_ptr()==place

class Writes(TorchDispatchMode):
    "How often torch copies into a tensor"
    n = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += func is torch.ops.aten.copy_.default
        return func(*args, **(kwargs or {}))

def test_values_that_did_not_change_are_not_written():
    "They may lie in a file that cannot be written"
    a,b = torch.arange(3.),torch.ones(2)
    saved,backs = Saved([a, b]),backs_of([a, b])
    with Writes() as writes: saved.restore()
    assert writes.n==0
    a += 1
    with Writes() as writes: saved.restore()
    assert writes.n==1 and a.tolist()==[0,1,2]
    a += 1
    with Writes() as writes:
        for f in backs: f()
    assert writes.n==1 and a.tolist()==[0,1,2]

def test_which_values_changed():
    "Of those asked about; what was not saved counts as unchanged, NaN as what it was"
    a,b,c = torch.ones(2),torch.tensor([nan,1.]),torch.zeros(3)
    saved = Saved([a, b])
    assert saved.changed([a, b, c])==set()
    a[1],c[0] = 2,2
    assert saved.changed([a, b, c])=={id(a)} and saved.changed([b])==set()
    b[1] = nan
    assert saved.changed(iter([a, b]))=={id(a),id(b)}

@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit, None])
@pytest.mark.parametrize('keep', [True, False])
def test_all_or_nothing(error, keep):
    w = torch.ones(3)
    try:
        with all_or_nothing([w], keep=keep) as saved:
            w.mul_(5)
            if error: raise error
    except BaseException as e: assert type(e) is error
    assert w.tolist()==[5. if keep and not error else 1.]*3 and isinstance(saved, Saved)

def test_random_states_stay():
    "Of Python, NumPy and torch; also after an error"
    def draws(): return random.random(),np.random.rand(),torch.rand(1).item()
    for error in (False, True):
        random.seed(0); np.random.seed(0); torch.manual_seed(0)
        want = draws()
        random.seed(0); np.random.seed(0); torch.manual_seed(0)
        with pytest.raises(ValueError) if error else unmoved_rng():
            if not error: draws()
            else:
                with unmoved_rng():
                    draws()
                    raise ValueError
        assert draws()==want

@pytest.mark.parametrize('many', [True, False])
@pytest.mark.parametrize('started', [True, False, None])
def test_random_states_of_devices(monkeypatch, many, started):
    "Those of a device in use come back, of all devices of its kind where there can be several; one that was not started is left in peace"
    states = (1,2) if many else 1
    each = '_all' if many else ''
    device = SimpleNamespace(**{f'get_rng_state{each}': lambda: device.now, f'set_rng_state{each}': lambda s: setattr(device, 'now', s)}, now=states)
    if started is not None: device.is_initialized = lambda: started
    monkeypatch.setattr(torch, 'cuda', device)
    with unmoved_rng() as back:
        device.now = 'moved'
        back()
        assert device.now==('moved' if started is False else states)
        device.now = 'moved'
    assert device.now==('moved' if started is False else states)

def test_own_draws():
    "They follow from torch's state and the first values of the parameters alone, and move nothing"
    def draws(): return [random.random(), np.random.rand(), torch.rand((), device='cpu').item()]
    def own(*ps):
        with own_draws(ps): return draws()
    p,q = nn.Parameter(torch.tensor([3.,4.])),nn.Parameter(torch.tensor([5.,4.]))
    a = own(p)
    assert own(p)==a==own(p, nn.Parameter(torch.ones(3,0)), torch.eye(2).to_sparse()) # without a first value
    random.seed(1); np.random.seed(1)
    assert own(p)==a and not any(u==v for u,v in zip(own(q), a))
    with torch.device('meta'): assert own(p)==a
    state = torch.get_rng_state()
    with unmoved_rng() as back: # the caller decides
        free = draws()
        back()
        assert own(p)==free
    assert own(p)==a and torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert not any(u==v for u,v in zip(own(p), a))

# State

class Stateful(nn.Module):
    "Changes what it is told to in its forward"
    def __init__(self, change, **attrs):
        super().__init__()
        self.lin,self.change = nn.Linear(3,3),change
        for k,v in attrs.items(): setattr(self, k, v)
    def forward(self, x):
        self.change(self)
        return self.lin(x)

def plain(o):
    "A value that can be compared"
    if isinstance(o, torch.Tensor): return o.tolist()
    if isinstance(o, np.ndarray): return o.tolist()
    if isinstance(o, dict): return {k:plain(v) for k,v in o.items()}
    if isinstance(o, (list,tuple,deque)): return [plain(v) for v in o]
    if isinstance(o, set): return sorted(o)
    if isinstance(o, torch.Generator): return o.get_state().tolist()
    if isinstance(o, random.Random): return o.getstate()
    if isinstance(o, np.random.RandomState): return plain(o.get_state()[1:])
    if isinstance(o, np.random.Generator): return o.bit_generator.state
    if hasattr(o, '__dict__') and not callable(o): return plain(vars(o))
    return o

def deep(): return SimpleNamespace(a=1, inner=SimpleNamespace(t=torch.ones(2), items=[1]))
CHANGES = {
    'number': (lambda m: setattr(m, 'v', m.v+1), lambda: 3), 'string': (lambda m: setattr(m, 'v', m.v+'x'), lambda: 'a'), 'none': (lambda m: setattr(m, 'v', 1), lambda: None),
    'tensor': (lambda m: m.v.add_(1), lambda: torch.ones(2,3)), 'tensor replaced': (lambda m: setattr(m, 'v', m.v+1), lambda: torch.ones(2)),
    'tensor resized': (lambda m: m.v.resize_(7).fill_(2), lambda: torch.ones(3)), 'expanded': (lambda m: m.v.set_(torch.zeros(4)), lambda: torch.ones(1).expand(4)),
    'strided': (lambda m: m.v.zero_(), lambda: torch.arange(12.).view(3,4).t()[::2]), 'empty': (lambda m: m.v.resize_(3).fill_(1), lambda: torch.ones(0)),
    'array': (lambda m: m.v.__iadd__(1), lambda: np.ones(3)), 'list': (lambda m: m.v.append(2), lambda: [1]), 'dict': (lambda m: m.v.update(b=2), lambda: {'a':1}),
    'dict emptied': (lambda m: m.v.clear(), lambda: {'a':1}), 'set': (lambda m: m.v.add(5), lambda: {1,2}), 'deque': (lambda m: m.v.append(2), lambda: deque([1], maxlen=2)),
    'empty matrix': (lambda m: m.v.resize_(3).fill_(1), lambda: torch.ones(3,0)), 'item of a list': (lambda m: m.v.__setitem__(0, 2), lambda: [1,1]), 'key of a dict': (lambda m: m.v.update(b=m.v.pop('a')), lambda: {'a':1}),
    'list of tensors': (lambda m: m.v[0].zero_(), lambda: [torch.ones(2)]), 'dict of lists': (lambda m: m.v['a'].append(1), lambda: {'a':[0]}),
    'tuple of tensors': (lambda m: m.v[1].zero_(), lambda: (1,torch.ones(2))), 'object': (lambda m: setattr(m.v, 'a', 2), deep), 'new attribute': (lambda m: setattr(m.v, 'z', 2), deep),
    'object in an object': (lambda m: m.v.inner.t.zero_(), deep), 'list in an object': (lambda m: m.v.inner.items.append(2), deep),
    'torch generator': (lambda m: torch.rand(2, generator=m.v), lambda: torch.Generator().manual_seed(1)), 'python generator': (lambda m: m.v.random(), lambda: random.Random(1)),
    'numpy generator': (lambda m: m.v.normal(), lambda: np.random.default_rng(1)), 'old numpy generator': (lambda m: m.v.rand(), lambda: np.random.RandomState(1))}

@pytest.mark.parametrize('kind', CHANGES)
def test_attributes_come_back(kind):
    "The same objects, as they were"
    change,make = CHANGES[kind]
    m = Stateful(change, v=make())
    before,obj = plain(m.v),m.v
    with probing(m, x := torch.randn(4,3)): m(x)
    assert m.v is obj and plain(m.v)==before==plain(make())
    m(x)
    assert plain(m.v)!=before # the change is one that shows

def test_tensors_of_other_layouts():
    "They come back, and what is in them is left"
    for make in (lambda: torch.eye(2).to_sparse(), lambda: torch.ones(2, device='meta'), lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])):
        m = Stateful(lambda m: setattr(m, 'v', 3), v=make())
        v = m.v
        with probing(m, x := torch.randn(4,3)): m(x)
        assert m.v is v

def test_an_object_that_holds_itself():
    o = SimpleNamespace(a=1)
    o.me = o
    m = Stateful(lambda m: setattr(m.v, 'a', 2), v=o)
    with probing(m, x := torch.randn(4,3)): m(x)
    assert m.v is o is o.me and o.a==1

def test_expanded_memory_is_put_back():
    t = torch.ones(1)
    m = Stateful(lambda m: t.zero_(), v=t.expand(4))
    with probing(m, torch.randn(4,3)): m(torch.randn(4,3))
    assert m.v.tolist()==[1.]*4 and m.v.stride()==(0,)

def test_buffers_come_back():
    "Written, replaced, added, removed; of several modules"
    def change(m):
        m.a.add_(1)
        m.b = m.b+1
        m.register_buffer('c', torch.ones(1))
        del m._buffers['d']
    m = Stateful(change)
    for k in 'abd': m.register_buffer(k, torch.zeros(2))
    a,b,d = m.a,m.b,m.d
    with probing(m, x := torch.randn(4,3)): m(x)
    assert list(m._buffers)==['a','b','d'] and m.a is a and m.b is b and m.d is d and not a.any() and not b.any()

def test_parameters_come_back():
    "Those written in the forward, replaced or renormed; but those that are changed on purpose"
    m = Stateful(lambda m: m.lin.weight.data.mul_(2))
    was = m.lin.weight.clone()
    with probing(m, x := torch.randn(4,3)): m(x)
    assert m.lin.weight.equal(was)
    with probing(m, x, but=[m.lin.weight]): m(x)
    assert m.lin.weight.equal(2*was)

def test_a_parameter_that_no_module_knows_comes_back():
    m = Stateful(lambda m: m.v[0].data.mul_(2), v=[nn.Parameter(torch.ones(2))])
    with probing(m, x := torch.randn(4,3)): m(x)
    assert m.v[0].tolist()==[1,1] and m.v[0].requires_grad

def test_what_is_made_in_the_forward_is_taken_away():
    def change(m):
        m.late = nn.Linear(2,2)
        m.p = nn.Parameter(torch.ones(1))
        m.new = 3
    m = Stateful(change)
    with probing(m, x := torch.randn(4,3)) as probe: m(x)
    assert list(m._modules)==['lin'] and not m._parameters and not hasattr(m, 'new')
    assert probe.notes==['Stateful makes late, p in its forward: pass one batch through the model, then initialize it']

@pytest.mark.parametrize('change', [
    lambda m: (m.register_buffer('c', torch.ones(1)), setattr(m, '_buffers', {'b':torch.ones(2)})), # the old one was written in before
    lambda m: (setattr(m, 'w', 1), delattr(m, 'v'))])
def test_a_container_is_replaced_or_an_attribute_renamed(change):
    m = Stateful(change, v=3)
    m.register_buffer('b', torch.zeros(2))
    was,b,names = m._buffers,m.b,list(vars(m))
    with probing(m, x := torch.randn(4,3)): m(x)
    assert m._buffers is was and list(was)==['b'] and m.b is b and m.v==3 and sorted(vars(m))==sorted(names)

def test_what_is_replaced_in_the_forward_comes_back():
    "Parameters, modules and buffers under the names they had, themselves; a buffer where there was none goes"
    def change(m):
        m.p = nn.Parameter(m.p*2)
        m.inner = nn.Linear(2,2)
        m.register_buffer('b', m.b+1)
        m.lin.register_buffer('new', torch.ones(2))
        del m.gone
    m = Stateful(change)
    m.p,m.gone,m.inner = nn.Parameter(torch.ones(2)),nn.Parameter(torch.ones(1)),nn.ReLU()
    m.register_buffer('b', torch.zeros(2))
    was,x = {**m._parameters, **m._modules, **m._buffers},torch.randn(40,3)
    for f in (init_stats, lsuv_):
        with Unchanged(m, ('lin.weight','lin.bias')): report = f(m, x)
        now = {**m._parameters, **m._modules, **m._buffers}
        assert list(now)==list(was) and all(now[k] is was[k] for k in was) and not m.lin._buffers and m.p.tolist()==[1,1] and m.b.tolist()==[0,0]
        assert report.notes==[] and list(report.df.layer)==['lin']

def test_an_error_puts_all_back():
    def change(m):
        m.v.append(1)
        m.lin.weight.data.zero_()
        raise KeyboardInterrupt
    m,rng = Stateful(change, v=[]),torch.get_rng_state()
    was,x = m.lin.weight.clone(),torch.ones(4,3)
    with pytest.raises(KeyboardInterrupt):
        with probing(m, x): torch.rand(1); m(x)
    assert m.v==[] and m.lin.weight.equal(was) and m.training and torch.equal(torch.get_rng_state(), rng)

def test_the_constant_of_a_general_relu_is_a_weight():
    m = nn.Sequential(GeneralReLU(sub=1.), nn.Linear(3,3))
    with probing(m, torch.randn(4,3)): m[0].sub.fill_(2.)
    assert m[0].sub==2

# Modes

def modes(*mods, train=True, x=None):
    "The training flags in a pass, and the notes"
    m,seen = nn.Sequential(*mods).train(train),[]
    flags = [o.training for o in m.modules()]
    with probing(m, x := torch.randn(8,4,6) if x is None else x) as probe:
        seen = [o.training for o in m]
        m(x)
        after = [o.training for o in m]
    assert [o.training for o in m.modules()]==flags
    return seen,after,probe.notes

def test_modes():
    "Normalizations by the batch, the rest as in evaluation; what the user froze stays frozen, and is named"
    assert modes(nn.BatchNorm1d(4), nn.Dropout(), nn.InstanceNorm1d(4), nn.LayerNorm(6))==([True,False,True,False],)*2+([],)
    assert modes(nn.BatchNorm1d(4), nn.Dropout(), train=False)[0]==[True,False] # a model in evaluation mode froze nothing
    frozen = nn.BatchNorm1d(4)
    m = nn.Sequential(frozen, nn.BatchNorm1d(4))
    frozen.eval()
    with probing(m, x := torch.randn(8,4,6)) as probe:
        assert [o.training for o in m]==[False,True]
        m(x)
    assert probe.notes==['1 normalization layers are in evaluation mode and used their running statistics'] and not frozen.training

@pytest.mark.parametrize('norm,x,small', [
    (nn.BatchNorm1d(4), torch.randn(1,4), True), (nn.BatchNorm1d(4), torch.randn(2,4), False), (nn.BatchNorm1d(4), torch.randn(1,4,3), False), (nn.BatchNorm2d(4), torch.randn(1,4,1,1), True),
    (nn.InstanceNorm1d(4), torch.randn(8,4,1), True), (nn.InstanceNorm1d(4), torch.randn(8,4,2), False), (nn.InstanceNorm2d(4, track_running_stats=True), torch.randn(1,4,1,1), True)])
def test_one_value_a_channel(norm, x, small):
    "The running statistics are used then, and it is said"
    if small and isinstance(norm, nn.InstanceNorm1d): norm = nn.InstanceNorm1d(4, track_running_stats=True)
    seen,after,notes = modes(norm, x=x)
    assert seen==[True] and after==[not small] and notes==(['0 used its running statistics: the batch gives it one value a channel'] if small else [])
    assert not norm._forward_pre_hooks

def test_running_statistics_do_not_move():
    for norm in (nn.BatchNorm1d(4), nn.BatchNorm1d(4, momentum=None), nn.InstanceNorm1d(4, track_running_stats=True)):
        was = {k:v.clone() for k,v in norm.state_dict().items()}
        with probing(norm, x := torch.randn(8,4,6)): norm(x)
        assert all(torch.equal(v, was[k]) for k,v in norm.state_dict().items()) and norm.track_running_stats

def test_a_module_that_looks_at_its_mode():
    "`training` is set without its own `__setattr__`"
    class Watchful(nn.Module):
        def __init__(self): super().__init__(); self.lin = nn.Linear(3,3)
        def __setattr__(self, k, v):
            assert k!='training' or 'lin' not in self.__dict__.get('_modules', ())
            super().__setattr__(k, v)
        def forward(self, x): return self.lin(x)
    m = Watchful()
    with probing(m, x := torch.randn(4,3)):
        assert not m.training
        m(x)
    assert vars(m)['training']

def test_fast_paths_are_off_within():
    was = torch.backends.mha.get_fastpath_enabled()
    with probing(nn.Linear(2,2), torch.ones(2,2)): assert not torch.backends.mha.get_fastpath_enabled() and not torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled()==was and torch.is_grad_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with probing(nn.Linear(2,2), torch.ones(2,2)): pass
    assert not torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(was)

@pytest.mark.parametrize('how', ['torch.compile', 'compile', 'plain'])
def test_compiled_modules_call_hooks(how, monkeypatch):
    "And only for their sake nothing is compiled"
    calls,stances,inner = [],[],nn.Linear(3,3)
    set_stance = torch.compiler.set_stance
    monkeypatch.setattr(torch.compiler, 'set_stance', lambda s: stances.append(s) or set_stance(s))
    if how=='compile': inner.compile()
    m = nn.Sequential(torch.compile(inner) if how=='torch.compile' else inner)
    inner.register_forward_hook(lambda *a: calls.append(torch.compiler.is_compiling()))
    with probing(m, x := torch.randn(4,3)): m(x)
    assert calls==[False] and stances==([] if how=='plain' else ['force_eager'])

# Errors

class Fails(nn.Module):
    def __init__(self, error): super().__init__(); self.error = error
    def forward(self, *xb): raise self.error

def said(model, *xb):
    with pytest.raises(InitError) as e: forward(model, *xb)
    return str(e.value)

@pytest.mark.parametrize('error', [RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, NotImplementedError])
def test_the_layer_that_failed(error):
    "The innermost one, with the shapes of what was passed"
    text = said(nn.Sequential(nn.Linear(3,3), nn.Sequential(Fails(error('mine')))), torch.ones(2,3))
    assert text.startswith('1.0 (Fails) failed on a batch of shape (2, 3): ') and 'mine' in text and text.endswith('. The model is as it was; pass a batch that fits it')
    assert said(Fails(error('mine')), torch.ones(2,3), 4, None).startswith('Fails (Fails) failed on a batch of shape (2, 3), int, NoneType: ')

@pytest.mark.parametrize('f', [init_stats, lsuv_])
def test_an_error_of_our_own_is_not_that_of_the_batch(f, monkeypatch):
    "But one of the model within our hooks is"
    def _fails(o): raise RuntimeError('a bug')
    m,x = nn.Sequential(nn.Linear(3,3), nn.ReLU(), nn.Linear(3,2)),torch.ones(2,3)
    with monkeypatch.context() as c:
        for where in ('stats','correction'): c.setattr(f'fastinit.{where}.first_values', _fails)
        with pytest.raises(InitError, match=r'^fastinit itself failed at 0 \(Linear\): a bug. The model is as it was; please report this$'): f(m, x)
        assert 'failed on a batch' not in str(pytest.raises(InitError, f, m, x).value)
    with pytest.raises(InitError, match=r'^0 \(Linear\) failed on a batch of shape \(2, 2\)'): f(m, x[:,:2])
    with pytest.raises(InitError, match=r'^0 \(InstanceNorm1d\) failed on a batch of shape \(8,\): expected 2D .* pass a batch that fits it$'): init_stats(nn.Sequential(nn.InstanceNorm1d(4)), torch.randn(8))

def test_what_passes_a_call_on_has_not_failed():
    "As our modes do, which see every function that a layer calls"
    code = """class Mode(Base):
    def __torch_function__(self, f, types, args=(), kwargs=None): return f(*args, **(kwargs or {}))"""
    names = {'__name__':'fastinit.made_up', 'Base':torch.overrides.TorchFunctionMode}
    exec(code, names)
    with names['Mode'](): assert said(nn.Linear(3,3), torch.ones(2,2)).startswith('Linear (Linear) failed on a batch of shape (2, 2)')

def test_other_errors_pass():
    for error in (KeyboardInterrupt, MemoryError, InitError('known')):
        with pytest.raises(error if isinstance(error, type) else InitError) as e: forward(Fails(error), torch.ones(2))
        assert not isinstance(error, InitError) or e.value is error

def test_an_error_in_a_forward_that_is_no_method():
    class Wrong: # no module
        def __call__(self, *xb): raise ValueError('mine')
    m = nn.Linear(2,2)
    m.__dict__['forward'] = Wrong()
    assert said(m, torch.ones(2,2)).startswith('Linear (Linear) failed on a batch of shape (2, 2): mine')

lin = nn.Sequential(nn.Linear(3,3))
@pytest.mark.parametrize('xb,remedy', [
    (('kaiming',), "the batch comes here: pass it, and the scheme by name, as in `init_(model, 'kaiming', x)` or `lsuv_(model, x, pre='kaiming')`"),
    (([torch.ones(2,3)],), 'pass the parts of it that are inputs of the model, such as `*batch[:1]`, without the targets'),
    (((torch.ones(2,3),1),), 'pass the parts of it that are inputs of the model, such as `*batch[:1]`, without the targets'),
    (({'image':1, 'y':2},), "pass the values that are inputs of the model, such as batch['image']; or a wrapper whose forward takes the dict"),
    (({},), "pass the values that are inputs of the model, such as batch['x']; or a wrapper whose forward takes the dict"),
    ((np.ones((2,3)),), 'pass a tensor: `torch.from_numpy(batch)`'),
    ((torch.utils.data.DataLoader([1]),), 'pass one batch of it, without the targets: `x,y = next(iter(loader))`, then x'),
    ((torch.ones(2,3), torch.ones(2)), 'pass the inputs of the model alone: leave out the targets'),
    *((xb, "move the model and the batch to the device yourself, `model.to('cuda:1')` and `x.to('cuda:1')`") for xb in (('cuda:1',), (torch.ones(2,3),'cuda:1'), (torch.device('cuda:1'),))),
    ((torch.ones(2,3),'kaiming'), "the batch comes here: pass it, and the scheme by name, as in `init_(model, 'kaiming', x)` or `lsuv_(model, x, pre='kaiming')`"),
    *(((torch.ones(2,3),o), f'{o} is no input: pass options by name, as in `lsuv_(model, x, std=1.)`') for o in (True, 0.5, 20)),
    (((4,3),), 'this is a shape: pass a batch of that shape, a tensor'), ((torch.Size([4,3]),), 'this is a shape: pass a batch of that shape, a tensor'),
    *((xb, 'the weights are torch.float32: pass `x.float()`') for xb in ((torch.ones(2,3).double(),), (torch.ones(2,3).long(),), (torch.ones(2,3).half(),))),
    ((torch.ones(2,3).byte(),), "the weights are torch.float32: pass `x.float()`, or `x.float()/255` of an image's bytes"),
    ((torch.ones(2,4),), 'pass a batch that fits it'), ((3,), 'pass a batch that fits it'),
    ((torch.ones(2,3,device='meta'),), "the model is on cpu: pass the batch there, `x.to('cpu')`")])
def test_what_to_do(xb, remedy):
    text = said(lin, *xb)
    assert text.endswith('The model is as it was; '+remedy), text

def test_what_to_do_about_dtypes():
    "What the layer that failed says, and the weights; integers are right before an embedding"
    def to_do(m, *xb): return said(m, *xb).partition('The model is as it was; ')[2]
    for m,shape in ((nn.Conv2d(3,2,1),(2,3,4,4)), (nn.ConvTranspose2d(3,2,1),(2,3,4,4)), (nn.Linear(3,2),(2,3)), (nn.LSTM(3,2),(5,3)), (nn.Bilinear(3,3,2),(2,3))):
        x = torch.ones(shape)
        for wrong in (x.double(), x.int()): assert to_do(m, *[wrong]*(1+isinstance(m, nn.Bilinear)))=='the weights are torch.float32: pass `x.float()`', m
        if not isinstance(m, nn.LSTM): assert to_do(m.to(torch.bfloat16), *[x]*(1+isinstance(m, nn.Bilinear)))=='the weights are torch.bfloat16: pass `x.to(torch.bfloat16)`', m
    embeds = nn.Sequential(nn.Embedding(5,3), nn.Linear(3,2).double())
    assert to_do(embeds, torch.ones(2,3))=='pass integers to an embedding: `x.long()`' and to_do(embeds, torch.tensor([1]))=='pass a batch that fits it'

def test_numbers_that_fit():
    "Finite, and within the bound, which is named where there is one"
    def wrong(v, **kwargs):
        try: check_number('n', v, **kwargs)
        except ValueError as e: return str(e).partition(': must be a ')[2]
    assert wrong(0)==wrong(-1.)==wrong(nan)==wrong(math.inf)==wrong('1')==wrong(None)=='number over 0' and wrong(1e-9) is None
    assert wrong(0, least=0) is wrong(-5, least=-math.inf) is wrong(3, whole=True) is None and wrong(-1, least=0)=='number, 0 or more'
    assert wrong(nan, least=-math.inf)=='number' and wrong(3., whole=True)=='whole number over 0'

def test_which_remedy_comes_first():
    "What is no batch; what is too many; the device before the dtype; and a dtype only where the error is about one"
    lin,x,about = nn.Linear(3,2),torch.ones(4,3),RuntimeError('expected dtype')
    fits = 'pass a batch that fits it'
    for o,word in (([],'pass the parts'), ([True],'pass the parts'), ([4,3],'this is a shape'), (UserDict(ids=x),"batch['ids']"), ({},"batch['x']")):
        assert word in remedy_for_batch(lin, (o,), about), o
    many = TypeError('forward() takes 2 positional arguments but 4 were given')
    assert remedy_for_batch(lin, (3, x, x), many)=='pass the inputs of the model alone: leave out the targets' and remedy_for_batch(lin, (x, 3), many).startswith('3 is no input')
    assert remedy_for_batch(lin, (x,), RuntimeError('positional argument'))==fits
    assert remedy_for_batch(lin, (x.double().to('meta'),), about).startswith('the model is on cpu') and remedy_for_batch(lin, (x.double(),), about)=='the weights are torch.float32: pass `x.float()`'
    assert remedy_for_batch(lin, (x.double(),), RuntimeError('of another shape'))==fits==remedy_for_batch(lin, (x.cfloat(),), about)==remedy_for_batch(nn.EmbeddingBag(5,3), (x.long(),), about)
    lin.register_parameter('ids', nn.Parameter(torch.arange(3), requires_grad=False))
    for k in ('weight','bias'): lin._parameters[k] = lin._parameters.pop(k) # behind it
    assert next(lin.parameters()).dtype==torch.long and 'torch.float32' in remedy_for_batch(lin, (x.double(),), about)
    assert first_line(TypeError('f() got a str, but expected one of:\n * (Tensor input)'))=='f() got a str'

def test_one_line_of_the_error():
    "Not all signatures that a function of torch has; of TorchScript what went wrong; all of it is in the cause"
    with pytest.raises(InitError) as e: forward(nn.Sequential(nn.Conv2d(3,2,1)), 'x')
    assert len(str(e.value))<340 and 'invalid combination of arguments' in str(e.value) and 'expected one of' in str(e.value.__cause__)
    assert 'mat1 and mat2 shapes cannot be multiplied' in said(torch.jit.script(nn.Linear(3,2)), torch.ones(2,4))
    assert ': AssertionError. The' in said(Fails(AssertionError()), torch.ones(2,3)) and ': one. The' in said(Fails(ValueError('\n one.\ntwo')), torch.ones(2,3))

def test_what_to_do_about_inputs():
    assert said(nn.Bilinear(2,2,2), torch.ones(2,2)).endswith('pass all inputs of the model')
    assert said(lin)=='no batch given: pass the inputs of the model, such as `lsuv_(model, x)`'

# Hooks and gradients

def _backward(m):
    with torch.enable_grad(): (m.lin(torch.ones(2,3))*m.p).sum().backward()
FORWARDS = {'registers hooks': lambda m: (m.lin.register_forward_hook(lambda *_: None), m.register_forward_pre_hook(lambda *_: None), m.lin.register_full_backward_hook(lambda *_: None)),
            'removes a hook': lambda m: m.lin._forward_hooks.clear(), 'freezes': lambda m: m.p.requires_grad_(False), 'unfreezes': lambda m: m.frozen.requires_grad_(True),
            'a buffer with gradients': lambda m: m.b.requires_grad_(True), 'goes back': _backward, 'no gradients': lambda m: m.zero_grad(), 'a buffer that is not saved': lambda m: m.register_buffer('new', torch.ones(1), persistent=False)}
@pytest.mark.parametrize('kind', FORWARDS)
@pytest.mark.parametrize('f', [init_stats, lsuv_])
@pytest.mark.parametrize('has_grads', [True, False])
def test_hooks_and_gradients_are_as_before(kind, f, has_grads):
    "Whatever a forward does to them; gradients are the same tensors with the same values"
    m = Stateful(FORWARDS[kind])
    m.p,m.frozen = nn.Parameter(torch.ones(3)),nn.Parameter(torch.ones(3), requires_grad=False)
    m.register_buffer('b', torch.ones(3))
    m.lin.register_forward_hook(lambda *_: None)
    for i,p in enumerate([m.p, m.lin.weight]): p.grad = torch.full_like(p, i+2.) if has_grads else None
    def now():
        mods = [{k:dict(v) for k,v in vars(o).items() if 'hooks' in k and isinstance(v, dict)} for o in m.modules()]
        return mods,[t.requires_grad for t in (*m.parameters(), *m.buffers())],[p.grad for p in m.parameters()],set(m._non_persistent_buffers_set),list(m.state_dict())
    was = now()
    f(m, torch.randn(40,3))
    assert now()[:2]==was[:2] and now()[3:]==was[3:] and all(a is b for a,b in zip(now()[2], was[2]))
    if has_grads: assert m.p.grad.tolist()==[2.]*3 and (m.lin.weight.grad==3).all()

# Several passes in one context

def test_rewinding_puts_back_and_sets_the_modes_again():
    "Buffers, attributes, parameters of others, modes and the random state of a further pass are those of the first; a note stands once"
    def change(m):
        m.n += 1
        m.count.add_(1)
        m.lin.weight.data.mul_(2)
        m.late = nn.Linear(2,2)
        m.eval()
        seen.append((m.n, m.count.item(), m.lin.weight[0,0].item(), m.norm.training, m.norm.track_running_stats, torch.rand(1).item()))
    m,seen = Stateful(change, n=0),[]
    m.norm = nn.BatchNorm1d(3)
    m.register_buffer('count', torch.zeros(1))
    was = m.lin.weight.clone()
    with probing(m, x := torch.randn(4,3)) as probe:
        for _ in range(3):
            m(x)
            probe.rewind()
            assert m.norm.training and not m.norm.track_running_stats and not m.lin.training and not hasattr(m, 'late')
    assert seen[0]==seen[1]==seen[2] and seen[0][:2]==(1,1) and seen[0][2]==2*was[0,0]
    assert len(probe.notes)==1 and m.training and m.norm.track_running_stats and m.n==m.count==0 and m.lin.weight.equal(was)

def test_rerun():
    "Hooks before the layer run again, those after it do not; the random state stays"
    calls = []
    m = nn.Sequential(nn.Linear(3,3), nn.Dropout())
    m.register_forward_pre_hook(lambda m,a: calls.append('before'))
    m.register_forward_pre_hook(lambda m,a,k: calls.append('before, with keywords'), with_kwargs=True)
    m.register_forward_hook(lambda m,a,o: calls.append('after'))
    rng = torch.get_rng_state()
    rerun(m, (torch.ones(2,3),), {})
    assert calls==['before','before, with keywords'] and torch.equal(torch.get_rng_state(), rng)
    assert rerun(nn.Linear(3,3), (), dict(input=torch.ones(2,3))).shape==(2,3)

# What others use too, and what refuses to be written

class Frozen(OrderedDict):
    def update(self, *args, **kwargs): raise TypeError('frozen')

class Own(list):
    def clear(self): raise TypeError('immutable')
    extend = append = clear

def test_values_of_others_are_not_written():
    "A Python module, a dict and a list with methods of their own, a read-only array, a quantized tensor, one with the bit for minus"
    array = np.broadcast_to(np.arange(3.), (2,3))
    quantized,minus = torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8),torch.randn(3, dtype=torch.cfloat).conj().imag
    values = dict(module=math, config=Frozen(width=8), shapes=Own([1,2]), array=array, quantized=quantized, minus=minus)
    names,was = (len(vars(math)), len(vars(builtins))),(quantized.clone(), minus.clone())
    m,x = nn.Sequential(nn.Linear(10,3)),torch.randn(8,10)
    for k,v in values.items(): setattr(m, k, v)
    m.inside = SimpleNamespace(functional=nn.functional)
    for f in (init_stats, lsuv_): f(m, x)
    assert (len(vars(math)), len(vars(builtins)))==names and callable(nn.functional.relu)
    assert m.config=={'width':8} and m.shapes==[1,2] and m.array is array and torch.equal(m.quantized, was[0]) and torch.equal(m.minus, was[1])

def test_what_refuses_is_put_back_if_it_was_written():
    d,l = Frozen(width=8, depth=2),Own([1,2])
    back, = backs_of([[d, l]])
    OrderedDict.__setitem__(d, 'width', 9)
    OrderedDict.move_to_end(d, 'width')
    list.append(l, 3)
    back()
    assert list(d.items())==[('width',8),('depth',2)] and list(l)==[1,2]

def test_what_nobody_changed_is_not_written():
    class Counts(dict):
        writes = 0
        def __setitem__(self, k, v): Counts.writes += 1; super().__setitem__(k, v)
    d,s,q = Counts(a=1),{1,2},deque([1,2], maxlen=2)
    for f in backs_of([d, s, q, (d, s)]): f()
    assert Counts.writes==0 and s=={1,2} and list(q)==[1,2] and q.maxlen==2

class Student(nn.Module):
    "Its teachers are kept where `modules()` does not look, one of them with a frozen normalization"
    def __init__(self):
        super().__init__()
        def teacher(): return nn.Sequential(nn.Linear(10,3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.a,self.teachers,self.by_name = nn.Linear(10,3),[teacher(), teacher().eval()],{'late':teacher()}
        self.__dict__['hidden'] = teacher()
    def all(self): return [*self.teachers, self.by_name['late'], self.hidden]
    def forward(self, x): return self.a(x) + sum(t(x) for t in self.all())

@pytest.mark.parametrize('training', [True, False])
def test_hidden_modules_are_left_alone_too(training):
    m,x = Student().train(training),torch.randn(32,10)+3
    assert [all_modules(m)[o] for o in (m, m.a, m.teachers[1][0], m.by_name['late'][1], m.hidden)]==['Student','a','teachers.0','by_name.1','hidden']
    states = [deepcopy(t.state_dict()) for t in m.all()]
    with probing(m, x):
        once = m(x)
        assert torch.equal(once, m(x)) # no dropout
        assert [t[1].training for t in m.all()]==[True,False,True,True] and not any(t[2].training for t in m.all())
    for f in (init_stats, lsuv_): f(m, x)
    assert [t.training for t in m.all()]==[True,False,True,True]
    for t,was in zip(m.all(), states): assert all(torch.equal(v, was[k]) for k,v in t.state_dict().items())

def test_modules_hidden_in_hidden_ones():
    "In a tuple, a list, a dict, an attribute; each within the last, and named by the way to it"
    m,inner = nn.Linear(3,3),[nn.Linear(3,3) for _ in range(4)]
    m.t = (inner[0],)
    inner[0].l,inner[1].d = [inner[1]],{'k':inner[2]}
    inner[2].__dict__['o'] = inner[3]
    names = all_modules(m)
    assert [names[o] for o in inner]==['t','t.l','t.l.d','t.l.d.o'] and len(names)==5

def test_inputs_without_a_first_dimension():
    "The size of the batch is that of another"
    m,x = nn.BatchNorm1d(3),torch.randn(4,3)
    with probing(m, torch.tensor(2.), x) as probe: m(x)
    assert probe.notes==[]
    assert 'failed on a batch of shape Tensor, (4, 3): nested' in said(Fails(RuntimeError('nested')), torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), x)

def test_a_compiled_module_inside_gets_no_attribute():
    m = nn.Sequential(torch.compile(nn.Linear(4,3), backend='eager'))
    had = set(vars(m[0]))
    init_stats(m, torch.randn(8,4))
    assert set(vars(m[0]))==had and m[0].training

def test_a_normalization_called_with_a_keyword():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.n = nn.BatchNorm1d(3)
        def forward(self, x): return self.n(input=x)
    with probing(m := Net(), x := torch.randn(1,3)) as probe: m(x)
    assert probe.notes==['n used its running statistics: the batch gives it one value a channel']
