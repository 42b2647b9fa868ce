"The parts of the experiments, each alone: data, models, settings, runs, and what the command writes"
import io, json, math, sys
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import Callback, ConvLayer, OptimWrapper, SGD, nn, xresnet18, xresnet50
from PIL import Image
from sklearn.datasets import load_digits
from fastinit import article
from fastinit.article import (Affine, affine_norm, architectures, build_model, data_sets, digits, experiment_title, fashion_mnist, get_data,
    image_folder, init_reports, inits, new_learner, opts, plain_convnet, read_experiment, read_run, remove_norm, report_part, run_cell, run_experiment,
    settings_file, simple_convnet)
from fastinit.acts import GeneralReLU
from conftest import idx
from fastinit.article.data import fashion_paths

def labels(ds): return [int(o[1]) for o in ds]
def workers(dls): return dls.train.fake_l.num_workers # fastai's own number is never 0

# Data

def test_the_order_of_the_images():
    "That of all results on record"
    assert article.data._pick(range(10), 4)==[4,1,7,5] and article.data._pick(range(10), 0)[:4]==[4,1,7,5] and len(article.data._pick(range(10), 0))==10

def test_digits():
    "Every digit once, each with its label, normalized over all of them; 360 to validate on, the same ones each time"
    dls = digits(size=8, bs=32)
    known = load_digits()
    every = [*dls.train_ds, *dls.valid_ds]
    assert (len(dls.train_ds),len(dls.valid_ds),dls.c,dls.bs)==(1437,360,10,32) and workers(dls)==0
    x = torch.stack([o[0] for o in every])
    assert x.shape==(1797,3,8,8) and abs(x.mean())<1e-5 and x.std()==pytest.approx(1, abs=1e-3) and x[:,0].equal(x[:,2])
    grey = torch.tensor(known.images).float()
    order = {tuple(o.flatten().tolist()):int(t) for o,t in zip(((grey-grey.mean())/grey.std()).mul(1e3).round(), known.target)}
    assert [order[tuple(o[0].flatten().mul(1e3).round().tolist())] for o in x]==labels(every)
    assert (digits().one_batch()[0].shape, len(digits(n_train=5, n_valid=3).train_ds), len(digits(n_train=5, n_valid=3).valid_ds))==((64,3,32,32), 5, 3)
    assert labels(digits(size=8, n_valid=50).valid_ds)==labels(dls.valid_ds)[:50] and labels(digits(size=8, n_train=50).train_ds)==labels(dls.train_ds)[:50]
    assert labels(dls.valid_ds)[:12]==labels(digits(size=8).valid_ds)[:12] and len({*labels(dls.valid_ds)})==10
    assert type(dls.loss_func).__name__=='CrossEntropyLossFlat'

def mnist(path, n_train=12, n_valid=6, zipped=False):
    "Files in MNIST's format: the image of item i is full of 10·i, its label i mod 10"
    for part,n in (('train',n_train), ('t10k',n_valid)):
        idx(path, np.full((n,28,28), 10*np.arange(n)[:,None,None]), f'{part}-images-idx3-ubyte', zipped)
        idx(path, np.arange(n)%10, f'{part}-labels-idx1-ubyte', zipped)
    return path

@pytest.mark.parametrize('zipped', [False, True])
def test_mnist_format(tmp_path, zipped):
    "Found at any depth; mean 0 and std 1 over both parts together; images keep their labels"
    dls = fashion_mnist(size=14, bs=4, path=mnist(tmp_path/'deep/er', zipped=zipped).parent)
    every = [*dls.train_ds, *dls.valid_ds]
    assert (len(dls.train_ds), len(dls.valid_ds), dls.c, dls.bs)==(12,6,10,4)
    grey = torch.tensor([10.*i for i in range(12)] + [10.*i for i in range(6)])
    std = grey.repeat_interleave(14*14).std()
    for x,y in every:
        v = x[0,0,0]*std + grey.mean()
        assert x.shape==(3,14,14) and int(round(v.item()/10))%10==int(y)
    assert sorted(labels(dls.train_ds))==sorted(i%10 for i in range(12)) and sorted(labels(dls.valid_ds))==list(range(6))
    some = fashion_mnist(bs=4, n_train=7, n_valid=2, path=tmp_path)
    assert (len(some.train_ds), len(some.valid_ds))==(7,2) and some.one_batch()[0].shape==(4,3,28,28)
    assert labels(some.train_ds)==labels(dls.train_ds)[:7] # the first of the same order

def test_where_fashion_mnist_is_looked_for(tmp_path, monkeypatch):
    assert fashion_paths==['/usr/share/datasets/fashion-mnist', 'data/FashionMNIST', Path.home()/'.fastai/data/FashionMNIST']
    mnist(tmp_path/'second')
    monkeypatch.setattr(article.data, 'fashion_paths', [tmp_path/'first', tmp_path/'second'])
    assert len(get_data('fashion_mnist', size=28, bs=4).train_ds)==12
    with pytest.raises(FileNotFoundError, match="no Fashion-MNIST found. On Debian and Ubuntu: `apt-get install dataset-fashion-mnist`; elsewhere: "
        r"`python -c \"import torchvision; torchvision.datasets.FashionMNIST\('data', download=True\)\"`; or pass the folder that holds it: --data FOLDER"):
        fashion_mnist(path=tmp_path/'third')

def pictures(path, parts, n=5, classes=('cat','dog')):
    for part in parts:
        for k,c in enumerate(classes):
            (path/part/c).mkdir(parents=True)
            for i in range(n): Image.new('RGB', (30,20), (40*i, 100*k, 0)).save(path/part/c/f'{i}.png')
    return path

@pytest.mark.parametrize('parts,sizes', [(('train','val'), (10,10)), (('train','valid'), (10,10)), (('train','test'), (10,10)), (('train','val','test'), (10,10)),
                                         (('a','b'), (16,4)), (('train',), (8,2)), (('val','test'), (16,4))])
def test_parts_of_a_folder(tmp_path, parts, sizes):
    "By the names of its folders, val before valid before test; else 80:20, the same each time"
    dls = image_folder(pictures(tmp_path/'x', parts), size=16, bs=3)
    assert (len(dls.train_ds), len(dls.valid_ds), dls.c)==(*sizes,2) and dls.vocab==['cat','dog'] and dls.bs==3 and workers(dls)==0
    again = image_folder(tmp_path/'x', size=16, bs=3)
    assert dls.train_ds.items==again.train_ds.items and dls.valid_ds.items==again.valid_ds.items
    if parts[0]=='train' and len(parts)>1: assert {o.parent.parent.name for o in dls.valid_ds.items}=={parts[1]}
    for x,y in dls.train_ds: assert x.shape==(3,16,16) and x.dtype==torch.uint8 and int(x[1,0,0])==100*int(y)
    few = image_folder(tmp_path/'x', n_train=3, n_valid=2)
    assert few.train_ds.items==dls.train_ds.items[:3] and few.valid_ds.items==dls.valid_ds.items[:2] and few.train_ds[0][0].shape==(3,128,128) and few.bs==64

def test_what_fits_in_memory_is_decoded_once(tmp_path, monkeypatch):
    assert article.data.in_memory==2**31
    path,opened = pictures(tmp_path/'x', ['a']),[]
    whole = Image.open
    monkeypatch.setattr(article.data.Image, 'open', lambda p: (opened.append(p), whole(p))[1])
    monkeypatch.setattr(article.data, 'in_memory', 10*3*16*16) # just enough
    dls = image_folder(path, size=16, bs=2)
    for _ in range(2): list(dls.train_ds)
    assert len(opened)==10 and workers(dls)==0
    monkeypatch.setattr(article.data, 'in_memory', 10*3*16*16-1)
    dls = image_folder(path, size=16, bs=2)
    assert len(opened)==10 and workers(dls)>0
    for _ in range(2): list(dls.train_ds)
    assert len(opened)==10+2*8

def test_get_data(tmp_path, monkeypatch):
    monkeypatch.setitem(article.data.datasets, 'mine', lambda **kw: kw)
    assert get_data('mine', size=3)==dict(size=3) and set(article.data.datasets)>={'digits','fashion_mnist','imagenette'}
    monkeypatch.setenv('HOME', str(tmp_path))
    pictures(tmp_path/'x', ['a'])
    mnist(tmp_path/'m')
    assert get_data('~/x', size=16, bs=2).c==2 and len(get_data('~/m', size=16, bs=2).train_ds)==12
    with pytest.raises(FileNotFoundError, match='no images in .*pass a folder that holds one folder of images a class'): image_folder(tmp_path/'m')
    with pytest.raises(ValueError) as e: get_data(str(tmp_path/'x/a/cat'), size=16, bs=2)
    assert str(e.value)==f"all images in {tmp_path/'x/a/cat'} are of one class, 'cat': pass a folder that holds one folder of images a class"

# Models

def convs(m): return [(o.in_channels, o.out_channels, o.kernel_size[0], o.stride[0], o.bias is not None) for o in m.modules() if isinstance(o, nn.Conv2d)]

def test_simple_convnet():
    m = simple_convnet()
    assert convs(m)==[(3,32,5,2,True),(32,64,3,2,True),(64,128,3,2,True),(128,128,3,2,True)]
    assert [type(o).__name__ for o in m[4:]]==['AdaptiveAvgPool2d','Flatten','Linear'] and (m[-1].in_features, m[-1].out_features)==(128,10)
    assert all(type(o[-1]) is nn.ReLU for o in m[:4]) and type(simple_convnet(3, nn.Tanh)[0][-1]) is nn.Tanh and simple_convnet(3)[-1].out_features==3

def test_plain_convnet():
    m = plain_convnet(6, 7, nn.Tanh, 16)
    assert convs(m)==[(3,8,5,2,True),(8,16,3,2,True),*[(16,16,3,1,True)]*3] and m[-1].out_features==7 and type(m[0][-1]) is nn.Tanh
    assert convs(plain_convnet(3))==[(3,32,5,2,True),(32,64,3,2,True)] and plain_convnet(3)[-1].in_features==64 and plain_convnet(3)[-1].out_features==10
    assert [sum(isinstance(o, (nn.Conv2d,nn.Linear)) for o in architectures[f'convnet{n}']().modules()) for n in (10,20,50)]==[10,20,50]

def test_affine():
    norm = nn.BatchNorm2d(2)
    norm.weight.data,norm.bias.data = torch.tensor([2.,3.]),torch.tensor([0.5,-1.])
    m = affine_norm(nn.Sequential(nn.Sequential(norm), nn.ReLU()))
    x = torch.randn(4,2,3,3)
    assert type(m[0][0]) is Affine and m[0][0].weight is norm.weight and m[0][0].bias is norm.bias
    assert torch.allclose(m[0](x), torch.stack([2*x[:,0]+0.5, 3*x[:,1]-1], 1))

def test_remove_norm():
    "The convolution before it gets a bias of 0; one without a normalization stays as it is"
    m = nn.Sequential(ConvLayer(3,4), ConvLayer(4,4,norm_type=None), nn.BatchNorm2d(4))
    removed = remove_norm(m)
    assert removed is m and type(m[0][1]) is nn.Identity and m[0][0].bias.tolist()==[0]*4 and isinstance(m[0][0].bias, nn.Parameter)
    assert convs(m)[1][-1] and m[1][0].bias.any() and type(m[2]) is nn.BatchNorm2d

@pytest.mark.parametrize('arch', [xresnet18, xresnet50])
def test_architectures(arch):
    plain = arch(n_out=3)
    count = lambda m,t: sum(isinstance(o, t) for o in m.modules())
    n = count(plain, nn.BatchNorm2d)
    for end,norms,affines in (('',0,0), ('_bn',n,0), ('_affine',0,n)):
        m = architectures[arch.__name__+end](3, act_cls=nn.Tanh)
        assert (count(m, nn.BatchNorm2d), count(m, Affine))==(norms,affines) and m[-1].out_features==3 and count(m, nn.Tanh)==count(plain, nn.ReLU) and not count(m, nn.ReLU)
        assert [o[:4] for o in convs(m)]==[o[:4] for o in convs(plain)] and all(o[4] for o in convs(m))==(end=='')
    assert architectures[arch.__name__]()[-1].out_features==10

def test_inits():
    known = dict(normal=('normal',{}), default=('default',{}), xavier=('xavier',{}), kaiming=('kaiming',{}), orthogonal=('orthogonal',{}), lsuv=('lsuv',{}),
        lsuv_uncentered=('lsuv',dict(center=False)), lsuv_orthogonal=('lsuv',dict(pre='orthogonal', center=False)), lsuv_activation=('lsuv',dict(at='activation')),
        lsuv_small_branches=('lsuv',dict(branch_scale=0.25)), lsuv_residual=('lsuv_residual',{}))
    assert {k:inits[k] for k in known}==known and list(inits)[:len(known)]==list(known)

def test_build_model():
    "A GeneralReLU, whose constant is set, where the activation is what counts"
    for k in inits: assert type(build_model('simple_convnet', k, 4)[0][-1]) is (GeneralReLU if k=='lsuv_activation' else nn.ReLU), k
    assert build_model('simple_convnet', 'lsuv', 4)[-1].out_features==4

def test_reports_of_each_start():
    "Of one batch and one seed; the names of the starts"
    dls = digits(size=8, bs=16, n_train=64, n_valid=16)
    a,b,c = (init_reports(dls, 'simple_convnet', ['default','lsuv'], seed) for seed in (0,0,1))
    assert list(a)==['default','lsuv'] and [r.scheme for r in a.values()]==['default','lsuv']
    for k in a: assert a[k].df.equals(b[k].df) and not a[k].df.equals(c[k].df)
    assert init_reports(dls, 'simple_convnet', ['lsuv'])['lsuv'].df.equals(a['lsuv'].df) # seed 0, whatever came before
    layers,relus = report_part(a),report_part(a, after_relu=True)
    assert layers['lsuv'].df.type.tolist()==['Conv2d']*4+['Linear'] and relus['lsuv'].df.type.tolist()==['ReLU']*4
    activation = init_reports(dls, 'simple_convnet', ['lsuv_activation'])
    assert report_part(activation, after_relu=True)['lsuv_activation'].df.type.tolist()==['GeneralReLU']*4
    for end,t in (('_bn','BatchNorm2d'), ('_affine','Affine')):
        assert t in set(report_part(init_reports(dls, 'xresnet18'+end, ['default']))['default'].df.type)

# Settings

def test_optimizers():
    p = [nn.Parameter(torch.ones(2))]
    adam = opts['adam'](p, lr=0.1)
    h = adam.opt.param_groups[0]
    assert isinstance(adam, OptimWrapper) and type(adam.opt) is torch.optim.AdamW and (h['betas'], h['eps'], h['weight_decay'], h['fused'])==((0.9,0.99),1e-5,0.01,True)
    assert opts['sgd'] is SGD and set(opts)=={'adam','sgd'}

base = dict(data='digits', model='simple_convnet', size='16', n_train='0', n_valid='0', bs='32', epochs='3', opt='adam', lrs='1e-3 3e-3', schemes='default lsuv', seeds='0 1')
def settings(path, **kwargs):
    f = path/'s.ini'
    f.write_text('[mine]\n' + '\n'.join(f'{k} = {v}' for k,v in {**base, **kwargs}.items() if v is not None))
    return f

def test_read_experiment(tmp_path):
    cfg = read_experiment('mine', settings(tmp_path))
    assert cfg==dict(data='digits', model='simple_convnet', size=16, n_train=0, n_valid=0, bs=32, epochs=3, opt='adam', amp=False, lrs=[1e-3,3e-3],
                     schemes=['default','lsuv'], seeds=[0,1])
    cfg = read_experiment('mine', settings(tmp_path), size=24, seeds='3 3 1', amp='Yes', lrs='1e-2')
    assert (cfg['size'], cfg['seeds'], cfg['amp'], cfg['lrs'])==(24,[3,1],True,[0.01])
    for text,value in (('on',True), ('1',True), ('no',False), ('off',False)): assert read_experiment('mine', settings(tmp_path, amp=text))['amp'] is value
    assert settings_file.name=='experiments.ini' and read_experiment('simple')==read_experiment('simple', settings_file)

@pytest.mark.parametrize('key,good,bad,what', [
    ('size','8','7','a whole number, 8 or more'), ('n_train','0','-1','a whole number, 0 or more'), ('n_valid','0','-1','a whole number, 0 or more'),
    ('bs','2','1','a whole number, 2 or more'), ('epochs','1','0','a whole number, 1 or more'), ('opt','sgd','lamb','known; there are adam, sgd'),
    ('amp','yes','perhaps','yes or no'), ('lrs','1e-9','0','a list, separated by spaces, each a positive number'),
    ('lrs','1','inf','a list, separated by spaces, each a positive number'), ('lrs','1','','a list, separated by spaces, each a positive number'),
    ('seeds','0','-1','a list, separated by spaces, each a whole number, 0 or more'), ('epochs','2','2.5','a whole number, 1 or more'),
    ('model','convnet10','convnet11','known; there are simple_convnet, convnet10')])
def test_limits_of_settings(tmp_path, key, good, bad, what):
    assert read_experiment('mine', settings(tmp_path, **{key:good}))
    with pytest.raises(ValueError) as e: read_experiment('mine', settings(tmp_path, **{key:bad}))
    assert str(e.value).startswith(f"{tmp_path/'s.ini'} [mine]: {key} = '{bad}' is not {what}")
    with pytest.raises(ValueError) as e: read_experiment('mine', settings(tmp_path), **{key:bad})
    assert str(e.value).startswith(f"--{key.replace('_','-')} = '{bad}' is not {what}")

def test_wrong_settings(tmp_path):
    for kwargs,said in [(dict(bs=None), 'no bs; add it'), (dict(bs=None, opt=None), 'no bs, opt; add them'), (dict(epocks=3), "unknown key 'epocks'; known: data, model, size")]:
        with pytest.raises(ValueError) as e: read_experiment('mine', settings(tmp_path, **kwargs))
        assert str(e.value).startswith(f"{tmp_path/'s.ini'} [mine]: {said}")
    for name in ('yours','DEFAULT'):
        with pytest.raises(ValueError, match=f"no experiment '{name}' in .*s.ini; there are mine"): read_experiment(name, settings(tmp_path))
    with pytest.raises(FileNotFoundError, match='no settings at none.ini: pass another --settings, or none for those of fastinit'): read_experiment('mine', 'none.ini')

@pytest.mark.parametrize('changed,title', [
    ({}, 'digits, 1,437 images of 16 px, 3 epochs'), (dict(n_train=960), 'digits, 960 images of 16 px, 3 epochs'),
    (dict(data='imagenette128'), 'Imagenette, 9,469 images of 16 px, 3 epochs'), (dict(data='cifar10_20k', n_train=10000), 'CIFAR-10, 10,000 images of 16 px, 3 epochs'),
    (dict(data='fashion_mnist'), 'Fashion-MNIST, 60,000 images of 16 px, 3 epochs'), (dict(data='flowers', n_train=77), 'flowers, 77 images of 16 px, 3 epochs')])
def test_titles(tmp_path, changed, title):
    (tmp_path/'run.json').write_text(json.dumps(dict(settings=dict(data='digits', model='simple_convnet', size=16, n_train=0, epochs=3) | changed, made_by=[{}])))
    assert experiment_title(tmp_path)==title and read_run(tmp_path)[0]['amp'] is False and read_run(tmp_path)[1]==[{}]

def test_sizes_of_data_sets():
    assert data_sets=={'digits':('digits',1437,360), 'fashion_mnist':('Fashion-MNIST',60000,10000), 'cifar10_20k':('CIFAR-10',20000,5000),
                       'imagenette':('Imagenette',9469,3925), 'imagenette128':('Imagenette',9469,3925)}

# Runs

@pytest.fixture
def no_training(monkeypatch):
    "The calls of `run_cell`, which trains nothing; nor is memory cleared before each"
    calls = []
    def _cell(dls, model, scheme, lr, seed, epochs, opt, amp, state):
        calls.append((seed, lr, scheme))
        return [dict(scheme=scheme, lr=lr, seed=seed, epoch=i+1, train_loss=1., valid_loss=1., accuracy=0.5, diverged=False, cpu_s=1.) for i in range(epochs)]
    monkeypatch.setattr(article.runs, 'run_cell', _cell)
    monkeypatch.setattr(article.runs.gc, 'collect', lambda: 0)
    return calls

tiny = dict(data='digits', model='simple_convnet', size=8, n_train=64, n_valid=32, bs=32, epochs=2, opt='adam', amp=False, lrs=[1e-3,1e-2], schemes=['default','lsuv'], seeds=[0,1])
def few(): return digits(8, 32, 64, 32)

def test_new_learner():
    "The same weights and batches for a seed, whatever came before; the start comes with the first fit"
    dls = few()
    def _state(seed, opt='adam'):
        learn = new_learner(dls, 'simple_convnet', 'lsuv_uncentered', seed, opt)
        return learn,[p.clone() for p in learn.model.parameters()],[x for x,_ in learn.dls.train]
    (a,wa,xa),(b,wb,xb),(c,wc,xc) = _state(0),_state(0),_state(1)
    assert all(map(torch.equal, wa, wb)) and all(map(torch.equal, xa, xb)) and not torch.equal(wa[0], wc[0]) and not torch.equal(xa[0], xc[0])
    assert a.init.scheme=='lsuv' and a.init.kwargs['center'] is False and [m.name for m in a.metrics]==['accuracy'] and a.dls.train is not dls.train
    assert a.opt_func is opts['adam'] and _state(0, 'sgd')[0].opt_func is SGD

def test_run_cell():
    rows = run_cell(few(), 'simple_convnet', 'lsuv', 1e-3, 3, 2)
    assert [list(r) for r in rows]==[['scheme','lr','seed','epoch','train_loss','valid_loss','accuracy','diverged','cpu_s']]*2
    assert [(r['scheme'],r['lr'],r['seed'],r['epoch'],r['diverged']) for r in rows]==[('lsuv',1e-3,3,1,False),('lsuv',1e-3,3,2,False)]
    assert rows[0]['cpu_s']==rows[1]['cpu_s']>0 and all(0<=r['accuracy']<=1 and r['train_loss']>0 and r['valid_loss']>0 for r in rows)
    learn = new_learner(few(), 'simple_convnet', 'lsuv', 3)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, 1e-3)
    assert np.allclose([list(r.values())[4:7] for r in rows], learn.recorder.values)

def test_a_run_that_diverges():
    "Its rows are all there: no training loss, and what the model gives then"
    rows = run_cell(few(), 'simple_convnet', 'normal', 1e30, 0, 3)
    assert [r['epoch'] for r in rows]==[1,2,3] and all(r['diverged'] for r in rows) and math.isnan(rows[-1]['train_loss']) and rows[-1]['accuracy']<0.5

def test_order_of_runs(tmp_path, no_training):
    "Seed by seed and rate by rate, so that what is unfinished is balanced; what is done is not run again, what is half done is"
    calls = no_training
    res = run_experiment(tiny, tmp_path, dls=few(), command='c')
    assert calls==[(s,lr,k) for s in (0,1) for lr in (1e-3,1e-2) for k in ('default','lsuv')] and len(res)==16 and list(res.epoch[:2])==[1,2]
    assert list(res)==['scheme','lr','seed','epoch','train_loss','valid_loss','accuracy','diverged','cpu_s'] and list(res.index)==list(range(16))
    calls.clear()
    run_experiment(tiny, tmp_path, dls=few(), command='c')
    assert not calls
    pd.read_csv(tmp_path/'results.csv')[:-1].to_csv(tmp_path/'results.csv', index=False)
    assert len(run_experiment(tiny, tmp_path, dls=few()))==16 and calls==[(1,1e-2,'lsuv')]
    calls.clear()
    part = run_experiment(dict(tiny, seeds=[2], schemes=['lsuv']), tmp_path, dls=few(), best=dict(lsuv=1e-2))
    assert list(part)==list(res) and list(part.index)==[0,1]
    assert calls==[(2,1e-2,'lsuv')] and part.seed.tolist()==[2,2] and len(pd.read_csv(tmp_path/'results.csv'))==18 # only what was asked for is given
    calls.clear()
    run_experiment(tiny, dls=few(), best=dict(default=1e-2, lsuv=1e-3))
    assert calls==[(s,lr,k) for s in (0,1) for lr,k in ((1e-2,'default'), (1e-3,'lsuv'))]

@pytest.mark.parametrize('key,other', [('model','convnet10'), ('size',16), ('n_train',32), ('n_valid',16), ('bs',16), ('epochs',3), ('opt','sgd'), ('amp',True), ('data','other')])
def test_a_folder_has_one_kind_of_run(tmp_path, no_training, key, other):
    run_experiment(tiny, tmp_path, dls=few())
    with pytest.raises(ValueError) as e: run_experiment({**tiny, key:other}, tmp_path, dls=few())
    assert str(e.value)==f"{tmp_path/'results.csv'} was made with {key} = {tiny[key]}, not {other}: pass another --out, or remove it"
    (tmp_path/'run.json').unlink()
    with pytest.raises(ValueError, match='has no run.json next to it that tells its settings: pass another --out'): run_experiment(tiny, tmp_path, dls=few())

def test_what_is_noted(tmp_path, no_training):
    from importlib.metadata import version
    import platform
    run_experiment(dict(tiny, data='/some/where/flowers'), tmp_path, dls=few(), command='a command')
    info = json.loads((tmp_path/'run.json').read_text())
    assert info['settings']=={k:tiny[k] for k in ('data','model','size','n_train','n_valid','bs','epochs','opt','amp')} | {'data':'flowers'}
    (made,) = info['made_by']
    assert made==dict(command='a command', processor=article.runs.processor(), machine=platform.machine(), threads=torch.get_num_threads(),
                      python=platform.python_version(), **{k:version(k) for k in ('fastai-fastinit','fastai','torch')})
    assert made['processor'] and (tmp_path/'run.json').read_text().endswith('}\n')

def test_what_computes(monkeypatch):
    "The GPU by its name, where that is what trains; else what /proc/cpuinfo says first"
    cpu = article.runs.processor()
    if Path('/proc/cpuinfo').exists(): assert f': {cpu}\n' in Path('/proc/cpuinfo').read_text()
    monkeypatch.setattr(article.runs, 'default_device', lambda: torch.device('cuda'))
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'a GPU')
    assert article.runs.processor()=='a GPU'!=cpu

def test_memory_format_of_bfloat16():
    "Channels last, which is faster there"
    seen = []
    class Look(Callback):
        order = 90
        def after_pred(self): seen.append((self.model[1][0].weight.is_contiguous(memory_format=torch.channels_last), self.pred.dtype))
    learn = new_learner(few(), 'simple_convnet', 'lsuv', 0).add_cbs([article.runs._Autocast(), Look()])
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert set(seen)=={(True,torch.float32)} and not torch.is_autocast_enabled('cpu')

# The command

def results(seeds=(0,), lrs=(1e-3,), epochs=2):
    return pd.DataFrame([dict(scheme=k, lr=lr, seed=s, epoch=e+1, train_loss=1., valid_loss=1., accuracy=a+0.1*e+lr+s/100, diverged=a<0.2 and lr>1e-3, cpu_s=30.)
                         for k,a in (('default',0.1),('lsuv',0.5)) for lr in lrs for s in seeds for e in range(epochs)])

def test_report_of_the_command():
    cfg = dict(tiny, data='/some/where/digits')
    def _lines(*args): return [l for l in article.command._report(*args).splitlines() if l]
    text = _lines(dict(cfg, seeds=[0]), results(), 'Made by: me')
    assert text[0]=='simple_convnet on digits, 8 px, 2 epochs of one-cycle adam: 2 runs, 1 minute of CPU time, 0 not finite at the end'
    assert text[1]=='Accuracy after epoch 2 by peak learning rate:' and text[-1]=='Made by: me' and 'At the best rate of each:' in text
    text = _lines(cfg, results((0,1), (1e-3,1e-2)), '')
    assert text[0].endswith(': 8 runs, 4 minutes of CPU time, 2 not finite at the end')
    assert text[1]=='Accuracy after epoch 2 by peak learning rate, mean (lowest–highest) of 2 seeds:'
    one = results(epochs=1).query("scheme=='lsuv'").assign(cpu_s=4.)
    assert _lines(dict(cfg, epochs=1, seeds=[0]), one, '')[0]=='simple_convnet on digits, 8 px, 1 epoch of one-cycle adam: 1 run, 4 seconds of CPU time, 0 not finite at the end'

def test_command_as_typed():
    f = article.command._command
    assert f('simple', dict(data='/some/where/my flowers', n_train=5, amp='yes', lrs='1e-3 1e-2'))=="fastinit-article simple --data 'my flowers' --n-train 5 --amp --lrs '1e-3 1e-2'"
    assert f('simple', {})=='fastinit-article simple'

@pytest.mark.parametrize('lrs', [(1e-3,), (1e-3,1e-2)])
def test_what_the_command_writes(tmp_path, lrs):
    import matplotlib.pyplot as plt
    plt.close('all')
    reports = init_reports(few(), 'simple_convnet', ['default','lsuv'])
    made = article.command._write(tmp_path, results(lrs=lrs), reports, 'mean (lowest–highest)')
    charts = ['init_stats.png','after_relu.png','init_stats_zoom.png','accuracy.png'] + ['lr_range.png']*(len(lrs)>1)
    assert [o.name for o in made]==['results.csv','results.txt','run.json','init_stats.csv', *charts] and all((tmp_path/o).exists() for o in charts)
    assert (tmp_path/'results.txt').read_text(encoding='utf-8')=='mean (lowest–highest)\n'
    stats = pd.read_csv(tmp_path/'init_stats.csv')
    assert stats.columns[:3].tolist()==['scheme','layer','type'] and not [c for c in stats if c.startswith('Unnamed')]
    assert list(stats.scheme.unique())==['default','lsuv'] and 'shape' not in stats and np.allclose(stats['std'], pd.concat([r.df['std'] for r in reports.values()]))
    assert not plt.get_fignums()
    figs = article.command._charts(results(lrs=lrs), reports)
    def _n(k): return [len(o.get_xdata()) for o in figs[k].axes[1].get_lines() if o.get_label() in ('default','lsuv')]
    assert _n('init_stats')==[5,5] and _n('after_relu')==[4,4] and figs['init_stats_zoom'].axes[1].get_ylim()==(0,3)
    assert figs['accuracy'].axes[0].get_ylabel()=='accuracy'
    plt.close('all')

@pytest.mark.parametrize('encoding,dash', [('utf-8','–'), ('ascii','?')])
def test_what_the_command_prints(tmp_path, monkeypatch, encoding, dash):
    "The tables, then each file on a line; what a terminal cannot show is a question mark"
    reports,cfg = init_reports(few(), 'simple_convnet', ['default','lsuv']),dict(tiny)
    monkeypatch.setattr(article.command, '_run', lambda *args: (cfg, few(), results((0,1))))
    monkeypatch.setattr(article.command, 'init_reports', lambda *args: reports)
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    (tmp_path/'res').mkdir()
    with monkeypatch.context() as mp:
        mp.setattr(sys, 'stdout', out)
        article.main('simple', out=str(tmp_path/'res'))
    out.flush()
    text = out.buffer.getvalue().decode(encoding)
    assert f'mean (lowest{dash}highest) of 2 seeds' in text and text.startswith('\nsimple_convnet on digits, 8 px')
    lines = text.rstrip('\n').splitlines()
    assert lines[-8:]==[str(tmp_path/'res'/o) for o in ('results.csv','results.txt','run.json','init_stats.csv','init_stats.png','after_relu.png','init_stats_zoom.png','accuracy.png')]
    assert lines[-9]=='' and 'Made by: fastinit-article simple' in lines
