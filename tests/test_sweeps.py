"The sweeps on real images, at a tiny size; their images are made here."
import json, sys
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from torch import nn
from fastinit.article import architectures, best_table, build_model, main, read_experiment, read_results
folder = Path(__file__).parent.parent/'benchmarks'
sys.path.insert(0, str(folder))
import cifar, imagenette, sweep # noqa: E402

tiny = dict(size=32, n_train=24, n_valid=12, bs=8, epochs=1)

@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for part in ('train','val'):
        for k in 'abc':
            (tmp_path/'photos'/part/k).mkdir(parents=True)
            for i in range(12): Image.fromarray(rng.integers(0, 255, (40,40,3), dtype=np.uint8)).save(tmp_path/'photos'/part/k/f'{i}.png')
    return str(tmp_path/'photos')

@pytest.mark.parametrize('name,act', [*cifar.activations.items()])
def test_fitnet4(name, act):
    "17 convolutions and two linear layers, as in the authors' files"
    m = build_model(f'fitnet4_{name}', 'lsuv_orthogonal', 10)
    convs = [o for o in m.modules() if isinstance(o, nn.Conv2d)]
    pieces = 2 if name=='maxout' else 1
    assert [o.out_channels//pieces for o in convs]==[32]*3+[48]*2+[80]*6+[128]*6
    assert [o.out_features//pieces for o in m if isinstance(o, nn.Linear)][0]==500
    assert m(torch.randn(2,3,32,32)).shape==(2,10) and not any(isinstance(o, nn.Dropout) for o in m)

def test_maxout():
    x = torch.tensor([[1.,5.,3.,2.]])
    assert torch.equal(cifar.Maxout()(x), torch.tensor([[3.,5.]]))

def sections(script): return [s for s,_ in script.steps] if script is cifar else [s for s,_ in imagenette.steps(folder)]

@pytest.mark.parametrize('script', [cifar, imagenette])
def test_sections(script):
    "Every step's section is there and complete, and every section is a step"
    ini = Path(script.__file__).with_suffix('.ini')
    cfgs = {s:read_experiment(s, ini) for s in sections(script)}
    assert set(cfgs)=={l[1:-1] for l in ini.read_text().splitlines() if l.startswith('[')}-{'DEFAULT'}
    assert all(not Path(o['data']).is_absolute() for o in cfgs.values()) and {k for k,o in cfgs.items() if not o['amp']}<={'residual','batchnorm'}

def test_headline_at_the_articles_size():
    "At the rates that are chosen at 64 px"
    step,cfg = dict(imagenette.steps(folder/'imagenette'))['xresnet50_128'],read_experiment('xresnet50_128', folder/'imagenette.ini')
    assert step=={k:str(folder/'imagenette'/v) for k,v in dict(out='xresnet50_128', best_of='xresnet50_rates').items()}
    assert cfg['size']==128 and cfg['schemes']==['default','kaiming','lsuv'] and cfg['seeds']==[0] and cfg['epochs']==10 and cfg['n_train']==0

def test_whole_sweep(images, tmp_path, monkeypatch):
    "Seed by seed, each network's rates before its runs, which take each start's best; a second call trains nothing"
    order,sizes = [],{**tiny, 'data':images, 'lrs':'1e-3 3e-3', 'schemes':'default lsuv'}
    def _main(section, **kwargs):
        order.append((section, kwargs['seeds']))
        main(section, **{**kwargs, **sizes, 'model':'simple_convnet'})
    monkeypatch.setattr(sweep, 'main', _main)
    script = tmp_path/'imagenette.py'
    script.with_suffix('.ini').write_text((folder/'imagenette.ini').read_text().replace('seeds = 0 1 2', 'seeds = 0 1'))
    steps = [s for s in imagenette.steps(tmp_path/'imagenette') if s[0] in ('simple','xresnet50_rates','xresnet50')]
    sweep.run_steps(script, steps)
    assert order[:3]==[('simple','0'), ('xresnet50_rates','0'), ('xresnet50','0')]
    assert order[3:]==[('simple','0 1'), ('xresnet50','0 1')] # the rates' section has one seed
    rates,final = (pd.read_csv(tmp_path/f'imagenette/{k}/results.csv') for k in ('xresnet50_rates','xresnet50'))
    best = best_table(read_results(tmp_path/'imagenette/xresnet50_rates')[0]).best_lr
    assert len(rates)==4 and final.groupby(['scheme','seed']).lr.first().to_dict()=={(k,s):best[k] for k in best.index for s in (0,1)}
    before = (tmp_path/'imagenette/simple/results.csv').read_text()
    sweep.run_steps(script, steps)
    assert (tmp_path/'imagenette/simple/results.csv').read_text()==before

def test_gpu_steps(tmp_path):
    "The article's size, all images, all starts"
    steps = dict(imagenette.steps(tmp_path, **imagenette.on_gpu))
    assert len(steps)==9 and all(o['size']==128 for o in steps.values()) and all(o['n_train']==0 for o in steps.values())
    assert set(read_experiment('simple')['schemes'])<=set(steps['xresnet50']['schemes'].split())
    assert steps['xresnet50']['best_of']==str(tmp_path/'xresnet50_rates') and steps['xresnet50']['out']==str(tmp_path/'xresnet50')

@pytest.fixture
def one_pass(monkeypatch):
    "The benchmark's functions, on the CPU"
    pytest.importorskip('lsuv')
    pytest.importorskip('torchbearer')
    monkeypatch.setattr(sys, 'argv', ['bench_one_pass.py', '--device', 'cpu'])
    import bench_one_pass
    return bench_one_pass

def test_one_pass(one_pass):
    "Time beside one forward pass, and the peers: fastinit in two passes and right, a peer in more"
    r = one_pass.ratio('simple_convnet', 4, 32)
    assert r['layers']==5 and r['batch']=='4×3×32×32' and abs(r['ratio']-r['lsuv_s']/r['forward_s'])<1e-9 and r['unverified_ratio']>0
    rows = {o['method']:o for o in one_pass.beside('simple_convnet', 4, 32)}
    assert rows['fastinit']['passes']==2 and rows['fastinit']['worst']<1e-4 and rows['lsuv']['passes']>5
