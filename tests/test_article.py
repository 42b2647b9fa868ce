"The command, as a user runs it, and the data it takes."
import json, re, subprocess, sys
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from fastai.vision.all import Callback, URLs, nn
from fastinit import article
from fastinit.article import (digits, fashion_mnist, get_data, imagenette, new_learner, read_experiment, read_results, run_cell,
                              run_experiment, simple_convnet)
from conftest import idx

cmd = str(Path(sys.executable).with_name('fastinit-article'))
tiny = dict(size=16, bs=64, epochs=2, lrs='1e-3 3e-3', schemes='default lsuv_activation', seeds='0', n_train=320, n_valid=100)
few = dict(n_train=64, n_valid=32, size=16, epochs=1)
charts = 'init_stats after_relu init_stats_zoom accuracy lr_range'.split()
def run(*args, cwd): return subprocess.run([cmd, *map(str, args)], cwd=cwd, capture_output=True, text=True)
def assert_same(a, b): # another number of threads rounds differently
    pd.testing.assert_frame_equal(a.drop(columns='cpu_s'), b.drop(columns='cpu_s'), rtol=1e-3)

def test_run(tmp_path):
    options = '\n'.join(f'{k}={v}' for k,v in tiny.items())
    (tmp_path/'settings.ini').write_text(f'[DEFAULT]\ndata=digits\nopt=adam\n{options}\n[tiny]\nmodel=simple_convnet\n')
    r = run('tiny', '--settings', 'settings.ini', '--out', 'res', cwd=tmp_path)
    assert r.returncode==0, r.stderr
    for f in (*[f'{c}.png' for c in charts], 'results.csv', 'results.txt', 'run.json', 'init_stats.csv'):
        assert f'res/{f}' in r.stdout and (tmp_path/'res'/f).stat().st_size>100
    df = pd.read_csv(tmp_path/'res/results.csv')
    assert len(df)==2*2*2 and df.accuracy.between(0,1).all() and set(df.scheme)=={'default','lsuv_activation'} and (df.cpu_s>0).all()
    assert not list((tmp_path/'res').glob('*.svg'))
    for c in charts:
        im = Image.open(tmp_path/f'res/{c}.png')
        assert min(im.size)>400 and len(im.getcolors(2**20))<=128
    assert 'default' in r.stdout and 'after epoch 2' in r.stdout and '0.003' in r.stdout
    info = json.loads((tmp_path/'res/run.json').read_text())
    assert info['settings']['n_train']==320 and info['settings']['amp'] is False
    assert [o['command'] for o in info['made_by']]==['fastinit-article tiny'] and {'fastai','torch','processor'}<=set(info['made_by'][0])
    assert not [l for l in r.stderr.splitlines() if 'Warning' in l]
    # half of it, as after an interruption: what is missing is made, and the numbers are the same again
    (tmp_path/'again').mkdir()
    (tmp_path/'again/run.json').write_text(json.dumps(info))
    df[:5].to_csv(tmp_path/'again/results.csv', index=False)
    cfg = read_experiment('tiny', tmp_path/'settings.ini')
    run_experiment(cfg, tmp_path/'again')
    assert_same(pd.read_csv(tmp_path/'again/results.csv'), df)
    # other settings do not go into the same file
    with pytest.raises(ValueError, match='was made with size = 16, not 32: pass another --out'):
        run_experiment({**cfg, 'size':32}, tmp_path/'again')

@pytest.mark.parametrize('args,kwargs,match', [
    (('none',), {}, "no experiment 'none' in"),
    (('simple',), dict(settings='nowhere.ini'), 'no settings at nowhere.ini'),
    (('simple',), dict(schemes='lsuv magic'), "--schemes = 'lsuv magic' is not a list"),
    (('simple',), dict(lrs='-1'), "--lrs = '-1' is not a list, separated by spaces, each a positive number"),
    (('simple',), dict(n_train=-5), "--n-train = '-5' is not a whole number, 0 or more"),
    (('simple',), dict(data='nowhere'), "data = 'nowhere' is not a folder; known names: digits, fashion_mnist, imagenette"),
    (('simple',), dict(data='.'), 'no images in .'),
    (('simple',), dict(best_of='nowhere'), 'no earlier results in nowhere: run.json is missing'),
    (('simple',), dict(best_of='begun'), 'no earlier results in begun: results.csv is missing'),
    (('simple',), dict(out='afile'), "--out = 'afile' is a file: pass the name of a folder"),
    (('simple',), dict(out='afile/sub', **few), 'afile/sub'),
    (('simple',), dict(epochs='x'), "--epochs = 'x' is not a whole number, 1 or more"),
    (('simple',), dict(data='loose', **few), "all images in loose are of one class, 'loose': pass a folder that holds one folder of images a class")])
def test_bad(args, kwargs, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'afile').write_text('')
    (tmp_path/'begun').mkdir()
    (tmp_path/'begun/run.json').write_text(json.dumps(dict(settings={}, made_by=[])))
    if kwargs.get('data')=='loose': (tmp_path/'loose').mkdir()
    for i in range(3*(kwargs.get('data')=='loose')): Image.new('RGB', (20,20)).save(tmp_path/f'loose/{i}.png')
    with pytest.raises(SystemExit, match='fastinit-article: .*'+re.escape(match)): article.main(*args, **kwargs)
    assert not (tmp_path/'results').exists()

@pytest.mark.parametrize('text', ['model = simple_convnet', '[a]\nmodel', '[a]\n[a]', b'\xff[a]'])
def test_bad_settings(text, tmp_path):
    "Said in one line, with the file's name"
    (tmp_path/'some.ini').write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SystemExit, match='fastinit-article: .*some.ini is not a file of settings: ') as e: article.main('a', settings=tmp_path/'some.ini')
    assert '\n' not in str(e.value)

def test_bad_as_seen(tmp_path):
    r = run('none', cwd=tmp_path)
    assert r.returncode!=0 and 'Traceback' not in r.stderr
    assert r.stderr.splitlines()[-1].startswith("fastinit-article: no experiment 'none'")
    r = run('simple', '--epochs', 'x', cwd=tmp_path)
    assert r.stderr.splitlines()[-1]=="fastinit-article: --epochs = 'x' is not a whole number, 1 or more"

def test_run_as_a_module(tmp_path):
    "The command under its own name; help of the self-check, which then does not run"
    def _module(*args): return subprocess.run([sys.executable, '-m', *args], cwd=tmp_path, capture_output=True, text=True)
    r = _module('fastinit.article', 'none')
    assert r.returncode==1 and r.stderr.splitlines()[-1].startswith("fastinit-article: no experiment 'none' in ")
    assert _module('fastinit.article', '--help').stdout.startswith('usage: fastinit-article [-h]')
    r = _module('fastinit', '--help')
    assert r.returncode==0 and r.stdout.startswith('usage: python -m fastinit [-h]') and 'ok  ' not in r.stdout
    assert _module('fastinit', 'typo').returncode==2

def test_help(tmp_path):
    r = run('--help', cwd=tmp_path)
    text = ' '.join(r.stdout.split())
    assert r.returncode==0
    for o in ('Folder for results.csv', '(default: results)', '--n-train', 'Peak learning rates', 'adam or sgd'): assert o in text

def test_elsewhere(tmp_path):
    "In another nbdev project its settings.ini is not read"
    (tmp_path/'settings.ini').write_text('[DEFAULT]\nlib_name = other\n[simple]\nmodel = theirs\n')
    options = {**few, 'lrs':'1e-3', 'schemes':'lsuv', 'seeds':'0'}
    r = run('simple', *(o for k,v in options.items() for o in (f"--{k.replace('_','-')}", v)), cwd=tmp_path)
    assert r.returncode==0 and len(pd.read_csv(tmp_path/'results/results.csv'))==1

def test_commands_are_kept(tmp_path):
    "Each that filled a folder, once; and the one of a folder of an earlier version"
    cfg = dict(read_experiment('simple'), **few, lrs=[1e-3], schemes=['lsuv'])
    for seeds,command in (([0],'first'), ([0],'first'), ([0,1],'second')):
        run_experiment(dict(cfg, seeds=seeds), tmp_path, command=command)
    info = json.loads((tmp_path/'run.json').read_text())
    assert [o['command'] for o in info['made_by']]==['first','second']
    old = dict(info['made_by'][0], settings={k:v for k,v in info['settings'].items() if k!='amp'}, command='oldest')
    (tmp_path/'run.json').write_text(json.dumps(old))
    assert '<code>oldest --out ' in read_results(tmp_path)[1]
    run_experiment(dict(cfg, seeds=[0]), tmp_path, command='third')
    assert [o['command'] for o in json.loads((tmp_path/'run.json').read_text())['made_by']]==['oldest','third']

class Stop(Callback):
    "Ends a run in the middle of an epoch, as a signal would"
    order = 100
    def __init__(self, epoch): self.stop_at = epoch
    def after_batch(self):
        if self.training and self.epoch==self.stop_at: raise KeyboardInterrupt

def ended(monkeypatch, epoch, f):
    "Call `f`, whose training is ended in `epoch`"
    with monkeypatch.context() as mp:
        mp.setattr(article.runs, 'new_learner', lambda *args: new_learner(*args).add_cb(Stop(epoch)))
        with pytest.raises(KeyboardInterrupt): f()

def noisy(c, act_cls): return nn.Sequential(nn.Dropout(0.2), simple_convnet(c, act_cls))

@pytest.mark.parametrize('model,scheme,opt,amp', [('simple_convnet','lsuv_activation','adam',False), ('xresnet18_bn','lsuv','sgd',False),
                                                  ('simple_convnet','lsuv','adam',True), ('noisy','kaiming','adam',False)])
def test_resume(model, scheme, opt, amp, tmp_path, monkeypatch):
    "A run that is ended twice gives the rows of one that is not, bit by bit, and trains no epoch again"
    monkeypatch.setitem(article.architectures, 'noisy', noisy)
    args,state = (digits(16, 64, 320, 100), model, scheme, 1e-3, 0, 4, opt, amp),tmp_path/'unfinished.pt'
    whole = run_cell(*args)
    for epoch in (1,3): ended(monkeypatch, epoch, lambda: run_cell(*args, state))
    torch.randn(7) # the random state of another process
    epochs = []
    class Count(Callback):
        def before_train(self): epochs.append(self.epoch)
    monkeypatch.setattr(article.runs, 'new_learner', lambda *args: new_learner(*args).add_cb(Count()))
    rows = run_cell(*args, state)
    assert epochs==[3]
    for a,b in zip(whole, rows, strict=True): assert {**a, 'cpu_s':0}=={**b, 'cpu_s':0}

def test_resume_experiment(tmp_path, monkeypatch):
    "What is kept stands beside the results while a run is unfinished, and serves that run alone"
    cfg = dict(read_experiment('simple'), **{**few, 'epochs':3}, lrs=[1e-3], schemes=['default','lsuv'], seeds=[0])
    ended(monkeypatch, 2, lambda: run_experiment(cfg, tmp_path))
    assert (tmp_path/'unfinished.pt').exists() and not (tmp_path/'results.csv').exists()
    other = run_experiment(dict(cfg, schemes=['lsuv']), tmp_path)
    assert other.drop(columns='cpu_s').equals(run_experiment(dict(cfg, schemes=['lsuv'])).drop(columns='cpu_s'))
    both = run_experiment(cfg, tmp_path)
    assert not list(tmp_path.glob('*.pt')) and len(both)==6

def test_amp(tmp_path, monkeypatch):
    "Trains in bfloat16 and measures in float32; recorded"
    cfg = dict(read_experiment('simple', amp='yes'), **few, lrs=[1e-3], schemes=['lsuv'], seeds=[0])
    seen = []
    def _model(c, act_cls):
        m = simple_convnet(c, act_cls)
        m[0][0].register_forward_hook(lambda m,i,o: seen.append(o.dtype))
        return m
    monkeypatch.setitem(article.architectures, 'seen', _model)
    run_experiment(dict(cfg, model='seen'), tmp_path)
    assert seen[0]==torch.float32 and set(seen[-2:])=={torch.bfloat16}
    assert article.read_run(tmp_path)[0]['amp'] is True

@pytest.mark.parametrize('has', [True, False])
def test_no_bfloat16(has, tmp_path, monkeypatch, recwarn):
    "A processor that has no instructions for it: said before training, not where nothing is left to train"
    monkeypatch.setattr(article.runs, '_has_bfloat16', lambda: has)
    cfg = dict(read_experiment('simple', amp='yes'), **few, lrs=[1e-3], schemes=['default'], seeds=[0])
    def _said(**kwargs):
        recwarn.clear()
        run_experiment(dict(cfg, **kwargs), tmp_path/str(kwargs))
        return ['--no-amp' in str(w.message) for w in recwarn if 'bfloat16' in str(w.message)]
    assert _said()==([] if has else [True])
    assert _said()==_said(amp=False)==[]

def test_no_amp(tmp_path):
    "In float32 where the settings say bfloat16; noted in the command"
    ini = tmp_path/'a.ini'
    ini.write_text(article.settings_file.read_text().replace('\namp = no\n', '\namp = yes\n', 1))
    article.main('simple', settings=str(ini), out=str(tmp_path/'o'), **{**tiny, 'schemes':'default', 'epochs':1}, no_amp=True)
    settings,made_by = article.read_run(tmp_path/'o')
    assert settings['amp'] is False and '--no-amp' in made_by[0]['command']
    with pytest.raises(SystemExit, match='--amp or --no-amp'): article.main('simple', amp=True, no_amp=True)

def test_best_of(tmp_path):
    "Each start at its own best rate"
    cfg = dict(read_experiment('simple'), **few, lrs=[1e-3,1e-2], schemes=['default','lsuv'], seeds=[0])
    res = run_experiment(cfg, best=dict(default=1e-2, lsuv=1e-3))
    assert list(zip(res.scheme, res.lr))==[('default',1e-2),('lsuv',1e-3)]
    run_experiment(cfg, tmp_path/'rates', command='some')
    article.main('simple', out=str(tmp_path/'best'), **{**tiny, 'schemes':'default lsuv', 'epochs':1}, best_of=str(tmp_path/'rates'))
    best = article.best_table(read_results(tmp_path/'rates')[0]).best_lr
    assert pd.read_csv(tmp_path/'best/results.csv').set_index('scheme').lr.to_dict()==best.to_dict()

def test_best_of_lacks_a_scheme(tmp_path):
    cfg = dict(read_experiment('simple'), **few, lrs=[1e-3], schemes=['default','lsuv'], seeds=[0])
    with pytest.raises(ValueError, match='no earlier runs of lsuv: '): run_experiment(cfg, best=dict(default=1e-2))

def test_letters(tmp_path):
    "As many classes as there are labels; a part that is lacking is named; a title without the number of images"
    for part,n in (('train',130),('t10k',26)):
        idx(tmp_path, np.arange(n).repeat(784).reshape(n,28,28), f'{part}-images-idx3-ubyte', False)
        idx(tmp_path, np.arange(n)%26, f'{part}-labels-idx1-ubyte', False)
    article.main('simple', data=str(tmp_path), out=str(tmp_path/'out'), size=16, n_train=0, n_valid=0, epochs=1, lrs='1e-3', schemes='default', seeds='0')
    assert pd.read_csv(tmp_path/'out/results.csv').valid_loss.between(2, 5).all() # log 26 = 3.3
    assert article.experiment_title(tmp_path/'out')==f'{tmp_path.name}, all images of 16 px, 1 epoch'
    assert get_data(str(tmp_path), size=16, bs=8, n_train=0, n_valid=0).c==26
    (tmp_path/'t10k-labels-idx1-ubyte').unlink()
    with pytest.raises(FileNotFoundError, match='lacks t10k-labels-idx1-ubyte'): get_data(str(tmp_path), size=16, bs=8, n_train=0, n_valid=0)

def test_settings_name_every_experiment():
    for name in ('simple','xresnet50','xresnet50_bn','xresnet50_affine'):
        cfg = read_experiment(name)
        assert len(cfg['lrs'])>=4 and len(cfg['seeds'])>=3 and cfg['schemes']==list(article.inits)[:9]

@pytest.mark.parametrize('sub,zipped', [('',True), ('FashionMNIST/raw',False)])
def test_fashion_mnist(sub, zipped, tmp_path):
    "Debian's layout and torchvision's"
    for part,n in (('train',50),('t10k',20)):
        idx(tmp_path/sub, np.arange(n).repeat(784).reshape(n,28,28), f'{part}-images-idx3-ubyte', zipped)
        idx(tmp_path/sub, np.arange(n)%10, f'{part}-labels-idx1-ubyte', zipped)
    dls = get_data(str(tmp_path), size=28, bs=8, n_train=30, n_valid=10)
    assert (len(dls.train_ds), len(dls.valid_ds), dls.c)==(30,10,10)
    x,y = dls.train_ds[0]
    assert x.shape==(3,28,28) and len({int(o[1]) for o in dls.train_ds})>1
    full = get_data(str(tmp_path), size=28, bs=8, n_train=0, n_valid=0)
    assert (len(full.train_ds), len(full.valid_ds))==(50,20)
    values = np.array([float(o[0][0,0,0]) for o in [*full.train_ds, *full.valid_ds]])
    labels = np.array([int(o[1]) for o in [*full.train_ds, *full.valid_ds]])
    i = np.argsort(values[:50])
    assert (labels[:50][i]==np.arange(50)%10).all() # images and labels still belong together
    again = get_data(str(tmp_path), size=28, bs=8, n_train=30, n_valid=10)
    assert all(a[1]==b[1] for a,b in zip(dls.train_ds, again.train_ds))

def test_fashion_mnist_missing(monkeypatch):
    monkeypatch.setattr(article.data, 'fashion_paths', [])
    with pytest.raises(FileNotFoundError, match='apt-get install dataset-fashion-mnist'): fashion_mnist()

@pytest.fixture
def images(tmp_path):
    "A tree as Imagenette's: train and val, a folder a class, colour photos of several sizes and a grey one"
    rng = np.random.default_rng(0)
    for part,n in (('train',12),('val',4)):
        for c,wnid in enumerate(('n01440764','n02102040','n03888257')):
            d = tmp_path/'imagenette2-160'/part/wnid
            d.mkdir(parents=True)
            for i in range(n):
                a = rng.integers(0, 80, (160+i, 170, 3), dtype=np.uint8)
                a[...,c] += 150
                Image.fromarray(a[...,0] if i==0 else a).save(d/f'{wnid}_{i}.JPEG')
    return tmp_path/'imagenette2-160'

def test_imagenette(images, monkeypatch):
    asked = []
    monkeypatch.setattr(article.data, 'untar_data', lambda url: (asked.append(url), images)[1])
    dls = get_data('imagenette', size=64, bs=6, n_train=0, n_valid=0)
    assert asked==[URLs.IMAGENETTE_160] and (len(dls.train_ds), len(dls.valid_ds), dls.c)==(36,12,3)
    assert {Path(f).parent.parent.name for f in dls.valid_ds.items}=={'val'}
    x,y = dls.one_batch()
    assert x.shape==(6,3,64,64) and abs(float(x.mean()))<3
    some = get_data('imagenette', size=64, bs=6, n_train=9, n_valid=5)
    assert (len(some.train_ds), len(some.valid_ds))==(9,5)
    assert list(some.train_ds.items)==list(get_data('imagenette', size=64, bs=6, n_train=9, n_valid=5).train_ds.items)
    monkeypatch.setattr(article.data, 'in_memory', 9*64*64*3) # too little: workers decode
    each = get_data('imagenette', size=64, bs=6, n_train=9, n_valid=5)
    assert each.train_ds.kept is None and each.train.fake_l.num_workers>0
    for a,b in zip(some.valid, each.valid): assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    monkeypatch.undo()
    monkeypatch.setattr(article.data, 'untar_data', lambda url: images)
    cfg = dict(read_experiment('simple'), data='imagenette', size=64, bs=6, epochs=3, lrs=[1e-2], schemes=['lsuv'], seeds=[0])
    assert run_experiment(cfg).accuracy.iloc[-1]>0.6 # three colours

def test_middle(tmp_path):
    "Scaled to the shorter side, the middle cut out; normalized on the device"
    for k,wide in (('a',True), ('b',False)):
        (tmp_path/'any'/k).mkdir(parents=True)
        a = np.zeros((40,120,3), np.uint8)
        a[:,40:80] = 255
        for i in range(5): Image.fromarray(a if wide else a.transpose(1,0,2)).save(tmp_path/'any'/k/f'{i}.png')
    dls = get_data(str(tmp_path/'any'), size=20, bs=8, n_train=0, n_valid=0)
    assert all(x.dtype==torch.uint8 and x.shape==(3,20,20) and x[:,2:-2,2:-2].eq(255).all() for x,y in dls.train_ds)
    white = (1-torch.tensor([0.485,0.456,0.406]))/torch.tensor([0.229,0.224,0.225])
    assert (dls.one_batch()[0][0,:,10,10]-white).abs().max()<1e-6

def test_folder_by_name(images, tmp_path):
    "Where a folder of images is on this machine is not recorded"
    sizes = {**tiny, 'schemes':'lsuv', 'lrs':'1e-3', 'n_train':30, 'n_valid':6, 'bs':6}
    article.main('simple', out=str(tmp_path/'res'), data=str(images), **sizes)
    info = json.loads((tmp_path/'res/run.json').read_text())
    assert info['settings']['data']=='imagenette2-160' and str(tmp_path) not in json.dumps(info) + (tmp_path/'res/results.txt').read_text()
    assert '--data imagenette2-160' in info['made_by'][0]['command']

def test_folder_without_split(images):
    dls = get_data(str(images/'train'), size=32, bs=6, n_train=0, n_valid=0)
    assert (len(dls.train_ds), len(dls.valid_ds), dls.c)==(29,7,3)

def test_imagenette_without_network(monkeypatch):
    def _untar(url): raise OSError('no route to host')
    monkeypatch.setattr(article.data, 'untar_data', _untar)
    with pytest.raises(FileNotFoundError, match='no route to host.*--data FOLDER'): imagenette()
