"What one of two processes makes of the messages of both, which are made here; the real ones are in test_distributed.py."
from types import SimpleNamespace
import pytest, torch
from torch import nn
from fastinit.all import InitError
from fastinit.pool import Pool, pooled

class Two(Pool):
    "Process 0 of two, which hears `others`, functions of its own messages, in turn"
    def __init__(self, *others):
        super().__init__()
        self.size,self.device,self.others,self.sent = 2,torch.device('cpu'),list(others),[]
    def gather(self, t):
        self.sent.append(t)
        return torch.stack([t, self.others.pop(0)(t)]).tolist()

def same(t): return t
def with_(**values):
    "The message with other values: ok, what, n, std, mean"
    def _f(t):
        t = t.clone()
        for k,v in values.items(): t[['ok','what','n','std','mean'].index(k)] = v
        return t
    return _f
def moments(o): return o.numel(),o.std().item(),o.mean().item()

A,B = torch.randn(50, generator=torch.Generator().manual_seed(0)).double(),torch.randn(70, generator=torch.Generator().manual_seed(1)).double()*3+2
ALL = torch.cat([A,B])

def test_moments_of_both():
    n,std,mean = moments(B)
    got = Two(with_(n=n, std=std, mean=mean))('a layer', *moments(A))
    assert got==pytest.approx((ALL.std().item(), ALL.mean().item()), rel=1e-12)
    assert pooled([moments(A)])==pytest.approx(moments(A)[1:]) and Pool()('a layer', *moments(A))==moments(A)[1:]

@pytest.mark.parametrize('other,error', [(same, None), (with_(n=3., std=9., mean=-1.), None), (with_(ok=0.), 'process 1 failed: see its error. The model is as it was, on all of them'),
    (with_(what=7.), r'the processes have different layers \(seen at conv1\): give all of them the same model. The model is as it was')])
def test_messages(other, error):
    p = Two(other)
    if error is None: assert len(p.exchange('conv1', 2., 1., 0.5))==2 and p.open
    else:
        with pytest.raises(InitError, match=error): p.exchange('conv1')
        assert not p.open
    assert p.sent[0].dtype==torch.double and p.sent[0][0]==1
    if error is None: assert p.sent[0][2:].tolist()==[2.,1.,0.5]

def test_messages_tell_what_and_details():
    p = Two(same, same, same, same)
    for what,details in (('a',''), ('b',''), ('a',[1]), ('a','')): p.exchange(what, details=details)
    a,b,c,d = (t[1].item() for t in p.sent)
    assert a==d and len({a,b,c})==3

def test_channels_of_both():
    x,y = torch.randn(6,4,5).double(),torch.randn(9,4,5).double()*2+torch.arange(4.).view(4,1)
    def own(o):
        means = o.mean((0,2), keepdim=True)
        return o.numel(),(o-means).std().item(),means
    n,std,means = own(y)
    got_std,got = Two(with_(n=n, std=std), lambda t: means.flatten()).channels('0', *own(x))
    both = torch.cat([x,y])
    m = both.mean((0,2), keepdim=True)
    assert torch.allclose(got, m, rtol=1e-12) and got.shape==(1,4,1) and got_std==pytest.approx((both-m).std().item(), rel=1e-12)
    assert Pool().channels('0', 1, 2., m)==(2., m)

def test_table_of_both():
    def moments(o): return o.std().item(),o.mean().item()
    def row(k, o, after=None):
        "The second has an activation"
        res = SimpleNamespace(layer=k, shape=(5,10), std_after=None, mean_after=None)
        res.std,res.mean = moments(o)
        if after is not None: res.std_after,res.mean_after = moments(after)
        return res
    nan = float('nan')
    theirs = torch.tensor([[70, *moments(B), nan, nan], [70, *moments(B*2), *moments(B.relu())]], dtype=torch.double)
    got = Two(same, lambda t: theirs).together([row('0', A), row('1', A*2, A.relu())])
    assert [r.layer for r in got]==['0','1'] and [(r.std,r.mean) for r in got]==[pytest.approx(moments(ALL)), pytest.approx(moments(ALL*2))]
    assert got[0].std_after is None and (got[1].std_after,got[1].mean_after)==pytest.approx(moments(ALL.relu()))
    one = [SimpleNamespace(std=1.)]
    assert Pool().together(one) is one

def test_weights_of_the_first(monkeypatch):
    sent,params = [],[nn.Parameter(torch.ones(2,3)), nn.Parameter(torch.ones(4))]
    monkeypatch.setattr('torch.distributed.broadcast', lambda t, rank: (sent.append((t.shape, rank)), t.zero_()))
    p = Two(same)
    p.share(params)
    assert sent==[((2,3), 0), ((4,), 0)] and not any(o.any() for o in params) and len(p.sent)==1 # in place
    with pytest.raises(InitError, match='different layers'): Two(with_(what=1.)).share(params)
    Pool().share(params)
    assert len(sent)==2

def test_who_fails_tells():
    "Once; not where another has failed before it, nor after the end; an error of one process alone is nobody else's"
    p = Two(same)
    with pytest.raises(ZeroDivisionError), p: raise ZeroDivisionError
    assert len(p.sent)==1 and p.sent[0][0]==0
    p = Two(with_(ok=0.))
    with pytest.raises(InitError, match='process 1 failed'), p: p.exchange('a layer')
    assert len(p.sent)==1
    p = Two(same)
    with pytest.raises(ZeroDivisionError), p:
        p.close()
        raise ZeroDivisionError
    assert len(p.sent)==1 and p.sent[0][0]==1 and not p.open
    p = Two()
    with p: pass
    assert p.sent==[]
    p = Pool()
    with pytest.raises(ZeroDivisionError), p: raise ZeroDivisionError
    p.close()
    assert not p.open and p.size==1 and p.device is None

@pytest.mark.parametrize('mean', [1+2j, torch.tensor(1+2j)])
def test_complex_numbers_are_refused(mean):
    "A message has no place for them; the others hear that this process failed, and one alone has no need of messages"
    p = Two(same)
    with pytest.raises(InitError, match=r'^conv1 gives complex numbers, which several processes do not put together: initialize before'), p: p('conv1', 8, 1., mean)
    assert len(p.sent)==1 and p.sent[0][0]==0
    with pytest.raises(InitError, match='^conv1 gives complex'): Two().channels('conv1', 8, 1., torch.full((1,4), 1+2j))
    assert Pool()('conv1', 8, 1., mean)==(1., mean)
