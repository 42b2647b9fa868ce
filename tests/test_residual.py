"The starts that the sweeps over residual networks compare."
import sys
from pathlib import Path
import pandas as pd, pytest, torch
from torch import nn
from fastinit.all import *
from fastinit.article import build_model, inits
folder = Path(__file__).parent.parent/'benchmarks'
sys.path.insert(0, str(folder))
import residual # noqa: E402

ours = ['branch_1','branch_0.5','branch_0.1','branch_0.03','branch_auto','branch_stage','branch_zero',
        'per_layer','uncentered','head_0.1','head_zero']
theirs = ['fixup','skipinit','nf_beta','weight_norm']
x = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))

def start(k, model='xresnet18_narrow'):
    torch.manual_seed(0)
    m = build_model(model, k, 10)
    return m,init_(m, inits[k][0], x, **inits[k][1])

def branch_stds(k):
    "Std of what each of the eight branches adds"
    m,stds = start(k)[0],[]
    for b in residual.blocks(m): b.convpath.register_forward_hook(lambda m,i,o: stds.append(o.std().item()))
    with torch.no_grad(): m(x)
    assert len(stds)==8
    return torch.tensor(stds)

@pytest.mark.parametrize('k,std,tol', [('branch_auto',8**-0.5,1e-3), ('branch_1',1.,1e-3), ('branch_0.5',0.5,1e-3), ('branch_0.1',0.1,1e-3),
                                       ('branch_stage',2**-0.5,0.06), ('weight_norm',1.,0.04),
                                       *[(k,0.,1e-9) for k in ('lsuv_residual','branch_zero','uncentered','fixup','skipinit')]])
def test_branches(k, std, tol): assert (branch_stds(k)-std).abs().max()<=tol

def test_nf_beta():
    "α of what Kaiming gives at the first block of each stage, less after it"
    m,_ = start('nf_beta')
    divisors = [[o.by for o in b.convpath if isinstance(o, residual.Divide)] for b in residual.blocks(m)]
    assert divisors==[[1.,5.], [1.04**0.5,5.]]*4

def test_heads():
    def _head(k): return list(init_layers(start(k)[0]).values())[-1].weight if k!='head_zero' else start(k)[0][-1].weight
    assert (_head('head_zero')==0).all()
    torch.testing.assert_close(_head('head_0.1'), _head('lsuv_residual')*0.1)

def test_weight_norm():
    "Mean 0 and std 1 of every channel, to 1e-4"
    m,outs = start('weight_norm')[0],[]
    for o in m.modules():
        if isinstance(o, (nn.Conv2d, nn.Linear)): o.register_forward_hook(lambda m,i,o: outs.append(o.transpose(0, 1).flatten(1)))
    with torch.no_grad(): m(x)
    assert len(outs)==24
    for o in outs: assert o.mean(1).abs().max()<1e-4 and (o.std(1)-1).abs().max()<1e-4

@pytest.mark.parametrize('k', ours+theirs)
def test_learns_from_gradients(k):
    "Every start but those that are silent by design has a gradient in every layer; those get it after a step"
    m,_ = start(k)
    opt = torch.optim.SGD(m.parameters(), lr=1e-3)
    for _ in range(3):
        opt.zero_grad()
        nn.functional.cross_entropy(m(x), torch.arange(16)%10).backward()
        opt.step()
    assert all(p.grad is not None and p.grad.abs().max()>0 for p in m.parameters() if p.ndim>1)

def test_vit():
    notes = start('lsuv_residual', 'vit')[1].notes
    assert len(notes)==2 and '24 residual branches' in notes[0] and notes[1].startswith('the query, key and value weights of 12 attention modules')

def test_sweep_and_losses(tmp_path, monkeypatch):
    "The two commands, on one cell each"
    monkeypatch.setattr(sys, 'argv', ['residual.py'])
    from fastinit.article import main
    main('compare', out=str(tmp_path), settings=str(folder/'residual.ini'), model='xresnet18_narrow', schemes='lsuv lsuv_residual',
         lrs='1e-3', seeds='0', epochs=1, n_train=320, n_valid=50)
    assert len(pd.read_csv(tmp_path/'results.csv'))==2
    residual.losses(tmp_path, n=5)
    df = pd.read_csv(tmp_path/'losses.csv')
    assert df.groupby('scheme').step.max().to_dict()=={'lsuv':5,'lsuv_residual':5} and df.loss.between(0.1,20).all()

def test_layers_in_a_forward_without_a_graph():
    "As in reversible networks: nothing is known of branches there, and that is no error"
    class Reversible(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b,self.out = nn.Linear(30,30),nn.Linear(30,30),nn.Linear(30,5)
        def forward(self, x):
            with torch.no_grad(): h = x + self.b(self.a(x).relu())
            return self.out(h)
    torch.manual_seed(0)
    r = lsuv_residual_(Reversible(), torch.randn(64,30))
    assert r.notes==['no residual branches were found'] and r.df['std'].to_numpy()==pytest.approx(1., rel=1e-3)
